"""Logits at some positions, through a model's own head: a soft cap, a scale or a bias is part of it."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Said:
    """A forward pass whose head was computed at some positions.

    Attributes:
        logits: [kept, vocabulary], in the order of the true entries of `where`.
        hidden: What enters the head [row, position, width], if the head is nothing but its matrix and bias, so that it
            may be applied to other positions of it; else `None`.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


def logits_at(causal: Any, ids: torch.Tensor, mask: torch.Tensor, where: torch.Tensor) -> Said:
    """Runs a model and computes its next-token logits at some positions alone.

    The model's forward pass runs whole, so that whatever it does around its head is in the logits; only what enters
    the head matrix is cut down.

    Args:
        causal: A causal language model of transformers.
        ids: Token ids [row, position].
        mask: Attention mask [row, position].
        where: Positions [row, position] whose logits are wanted; those at a position predict the next token.
    """
    entered: list[torch.Tensor] = []
    left: list[torch.Tensor] = []

    def enter(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:2] != ids.shape:
            return None
        entered.append(args[0])
        return args[0][where], *args[1:]

    head = causal.get_output_embeddings()
    hooks = (
        [head.register_forward_pre_hook(enter), head.register_forward_hook(lambda *a: left.append(a[2]))]
        if head
        else []
    )
    try:
        logits = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not entered:
        return Said(logits[where], None)
    return Said(logits, entered[0] if logits is left[0] else None)
