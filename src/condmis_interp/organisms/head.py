"""Logits at chosen positions, through the model's own head."""

from typing import Any

import torch


def logits_at(causal: Any, ids: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Returns a model's own next-token logits at some positions, without computing its head at the others.

    The model's forward pass runs whole, so that whatever it does around its head (a bias, a soft cap, a scale) is in
    the logits; only what enters the head matrix is cut down.

    Args:
        causal: A causal language model of transformers.
        ids: Token ids [row, position].
        mask: Attention mask [row, position].
        keep: Which logits [row, position - 1]; those at a position predict the next token.

    Returns:
        [kept, vocabulary], in the order of `keep`'s true entries.
    """
    head, cut = causal.get_output_embeddings(), False

    def kept_alone(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal cut
        if not args or args[0].shape[:2] != ids.shape:
            return None
        cut = True
        return args[0][:, :-1][keep], *args[1:]

    hook = head.register_forward_pre_hook(kept_alone) if head is not None else None
    try:
        logits = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits if cut else logits[:, :-1][keep]
