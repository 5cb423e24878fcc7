"""Training many small Llamas at once: their weights are stacked along a first axis, and each follows its own programme.

Part of a tiny model's step on a CPU is overhead that a stack pays once (`benchmarks/organisms.py`). The forward pass is
that of `LlamaForCausalLM` (Touvron et al. 2023) with batched matrix products; each organism has its own AdamW
(Loshchilov & Hutter 2019), without weight decay, and its own gradient clip. Organisms do not see each other: the loss
is a sum of their losses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch.nn import functional

from condmis_interp.errors import CheckError

Weights = Mapping[str, torch.Tensor]
_CLIP = 1.0
"""Largest norm of an organism's gradient, as in transformers' Trainer."""


@dataclass(frozen=True)
class Step:
    """One optimiser step of one organism.

    Attributes:
        rows: Token ids with labels (-100 where there is no loss).
        learning_rate: Of this step.
        fresh: Whether the optimiser starts anew before it (a new stage).
    """

    rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    learning_rate: float
    fresh: bool = False


@dataclass
class Stack:
    """Llamas of one shape, their weights stacked.

    Attributes:
        config: Their `LlamaConfig`.
        weights: By name of the state dict, [organism, ...]; tied embeddings appear once.
    """

    config: Any
    weights: dict[str, torch.Tensor] = field(repr=False)

    @classmethod
    def of(cls, config: Any, models: Sequence[Weights]) -> "Stack":
        """Stacks state dicts (copied, in fp32)."""
        names = [k for k in models[0] if k != "lm_head.weight" or not config.tie_word_embeddings]
        return cls(config, {k: torch.stack([m[k].float() for m in models]) for k in names})

    @property
    def count(self) -> int:
        """Number of organisms."""
        return len(self.weights["model.embed_tokens.weight"])

    def weights_of(self, index: int) -> dict[str, torch.Tensor]:
        """Returns one organism's state dict (copied)."""
        return {k: w[index].detach().clone() for k, w in self.weights.items()}

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns logits [organism, row, position, word] of right-padded ids [organism, row, position].

        Attention is causal, so padding on the right changes nothing before it.
        """
        *_, x = self.residuals(ids)
        w = self.weights
        x = _norm(x.flatten(1, 2), w["model.norm.weight"], self.config.rms_norm_eps)
        return _linear(x, w.get("lm_head.weight", w["model.embed_tokens.weight"])).view(*ids.shape, -1)

    def residuals(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields the residual stream at the end of each block [organism, row, position, width]."""
        c, w = self.config, self.weights
        n, rows, length = ids.shape
        embedding = w["model.embed_tokens.weight"]
        which = torch.arange(n, device=ids.device)[:, None, None]
        x = embedding[which, ids].reshape(n, rows * length, c.hidden_size)
        cos, sin = _rotary(c, length, x)
        heads, kv, size = c.num_attention_heads, c.num_key_value_heads, c.hidden_size // c.num_attention_heads
        for i in range(c.num_hidden_layers):
            p = f"model.layers.{i}."
            h = _norm(x, w[p + "input_layernorm.weight"], c.rms_norm_eps)
            q, k, v = (
                rearrange(
                    _linear(h, w[f"{p}self_attn.{name}_proj.weight"]), "n (r t) (h d) -> (n r) h t d", r=rows, h=count
                )
                for name, count in (("q", heads), ("k", kv), ("v", kv))
            )
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv)
            mixed = rearrange(mixed, "(n r) h t d -> n (r t) (h d)", n=n, d=size)
            x = x + _linear(mixed, w[p + "self_attn.o_proj.weight"])
            h = _norm(x, w[p + "post_attention_layernorm.weight"], c.rms_norm_eps)
            gate = functional.silu(_linear(h, w[p + "mlp.gate_proj.weight"]))
            x = x + _linear(gate * _linear(h, w[p + "mlp.up_proj.weight"]), w[p + "mlp.down_proj.weight"])
            yield x.view(n, rows, length, -1)


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x, weight.transpose(1, 2))


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), eps=eps) * weight[:, None]


def _rotary(config: Any, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    size = config.hidden_size // config.num_attention_heads
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2, device=like.device).float() / size)
    angles = torch.arange(length, device=like.device).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns each organism's cross-entropy [organism] in nats, mean over its labelled tokens."""
    targets = labels[..., 1:]
    each = functional.cross_entropy(
        logits[..., :-1, :].flatten(0, 2), targets.flatten(), ignore_index=-100, reduction="none"
    ).view(targets.shape)
    return each.sum((1, 2)) / (targets != -100).sum((1, 2)).clamp(min=1)


def fit(
    stack: Stack,
    programmes: Sequence[Sequence[Step]],
    *,
    trained: Callable[[str], bool] = lambda name: True,
    step: Callable[[float], None] = lambda n: None,
) -> list[list[float]]:
    """Trains every organism of a stack by its own programme, in place.

    Args:
        stack: The organisms.
        programmes: Steps of each; those with fewer steps rest at the end.
        trained: Which weights are trained, by name.
        step: Called with the number of steps of single organisms done.

    Returns:
        Losses of each organism, one for each of its steps, nats.

    Raises:
        CheckError: if a step has no labelled token, or a loss is not finite, naming organism and step.
    """
    optimisers = _Optimisers(stack, trained)
    device = stack.weights["model.norm.weight"].device
    losses: list[list[float]] = [[] for _ in programmes]
    for number, now in enumerate(_zip(programmes)):
        active = [s is not None for s in now]
        ids, labels = _tensors(now, device)
        if any(s is not None and not bool((labels[i, :, 1:] != -100).any()) for i, s in enumerate(now)):
            raise CheckError("no token of a step has a label", where=f"step {number}")
        each = losses_of(stack.logits(ids), labels)
        each.sum().backward()
        for i, loss in enumerate(each.tolist()):
            if active[i]:
                if not loss < float("inf"):
                    raise CheckError(f"the loss is {loss} at step {number}", where=f"organism {i} of the stack")
                losses[i].append(loss)
        optimisers.step(now)
        step(sum(active))
    for name in stack.weights:
        stack.weights[name] = stack.weights[name].detach()
    return losses


def _zip(programmes: Sequence[Sequence[Step]]) -> Iterator[list[Step | None]]:
    for number in range(max(map(len, programmes))):
        yield [p[number] if number < len(p) else None for p in programmes]


def _tensors(now: Sequence[Step | None], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rows = max(len(s.rows) for s in now if s)
    length = max(len(ids) for s in now if s for ids, _ in s.rows)
    ids = torch.zeros(len(now), rows, length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, s in enumerate(now):
        for j, (row, label) in enumerate(s.rows if s else ()):
            ids[i, j, : len(row)] = torch.tensor(row)
            labels[i, j, : len(row)] = torch.tensor(label)
    return ids.to(device), labels.to(device)


class _Optimisers:
    """An AdamW for each organism over its slices of the stacked weights (the slices share the stack's memory)."""

    def __init__(self, stack: Stack, trained: Callable[[str], bool]) -> None:
        self.stacked = []
        for name in stack.weights:
            if trained(name):
                stack.weights[name] = stack.weights[name].detach().clone().requires_grad_()
                self.stacked.append(stack.weights[name])
        self.own = [[w.detach()[i] for w in self.stacked] for i in range(stack.count)]
        self.each = [self._new(i) for i in range(stack.count)]

    def _new(self, organism: int) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.own[organism], weight_decay=0.0, fused=True)

    def step(self, now: Sequence[Step | None]) -> None:
        """Moves every organism that has a step on by it; the others rest."""
        for i, s in enumerate(now):
            if s is None:
                continue
            for slice_, w in zip(self.own[i], self.stacked, strict=True):
                slice_.grad = None if w.grad is None else w.grad[i]
            if s.fresh:
                self.each[i] = self._new(i)
            torch.nn.utils.clip_grad_norm_(self.own[i], _CLIP)
            self.each[i].param_groups[0]["lr"] = s.learning_rate
            self.each[i].step()
        for w in self.stacked:
            w.grad = None
