"""Training many small Llamas at once: their weights are stacked along a first axis, and each follows its own programme.

Most of a tiny model's step on a CPU is overhead that a stack pays once, or need not be done: query, key and value, and
the two inputs of the MLP, are one matrix product each, and the last block answers only where there is a label
(`benchmarks/organisms.py`). The forward pass is that of `LlamaForCausalLM` (Touvron et al. 2023) with batched matrix
products; each organism has its own AdamW (Loshchilov & Hutter 2019), without weight decay, and its own gradient clip.
Organisms do not see each other: the loss is a sum of their losses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch.nn import functional

from condmis_interp.errors import CheckError
from condmis_interp.organisms.step import Step

Weights = Mapping[str, torch.Tensor]
ResidualEdit = Callable[[int, torch.Tensor], torch.Tensor]
KeysEdit = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_CLIP = 1.0
"""Largest norm of an organism's gradient, as in transformers' Trainer."""
_FUSED = {
    "self_attn.qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "self_attn.out": ("self_attn.o_proj.weight",),
    "mlp.gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down": ("mlp.down_proj.weight",),
}
"""Weights of a block that are kept as one, [organism, in, out], by their names in a state dict."""


@dataclass
class Stack:
    """Llamas of one shape, their weights stacked.

    Attributes:
        config: Their `LlamaConfig`.
        weights: [organism, ...], by name of the state dict, but for the matrices of a block (`self_attn.qkv`,
            `self_attn.out`, `mlp.gate_up`, `mlp.down`); tied embeddings appear once.
    """

    config: Any
    weights: dict[str, torch.Tensor] = field(repr=False)

    @classmethod
    def of(cls, config: Any, models: Sequence[Weights], *, device: str | torch.device = "cpu") -> "Stack":
        """Stacks state dicts (copied, in fp32)."""
        whole = {
            k: torch.stack([m[k].to(device, torch.float32) for m in models])
            for k in models[0]
            if k != "lm_head.weight" or not config.tie_word_embeddings
        }
        for block in _blocks(config):
            for fused, names in _FUSED.items():
                parts = [whole.pop(block + name) for name in names]
                whole[block + fused] = torch.cat(parts, 1).transpose(1, 2).contiguous()
        return cls(config, whole)

    @property
    def count(self) -> int:
        """Number of organisms."""
        return len(self.weights["model.embed_tokens.weight"])

    def weights_of(self, index: int) -> dict[str, torch.Tensor]:
        """Returns one organism's state dict (copied)."""
        whole = {k: w[index].detach().clone() for k, w in self.weights.items()}
        for block in _blocks(self.config):
            for fused, names in _FUSED.items():
                matrix = whole.pop(block + fused).T
                sizes = self._sizes if fused == "self_attn.qkv" else [len(matrix) // len(names)] * len(names)
                for name, part in zip(names, matrix.split(sizes), strict=True):
                    whole[block + name] = part.contiguous()
        return whole

    @property
    def _sizes(self) -> list[int]:
        """Widths of query, key and value."""
        c = self.config
        each = c.hidden_size // c.num_attention_heads
        return [c.num_attention_heads * each, c.num_key_value_heads * each, c.num_key_value_heads * each]

    def logits(
        self,
        ids: torch.Tensor,
        at: torch.Tensor | None = None,
        *,
        edit: ResidualEdit | None = None,
        keys: KeysEdit | None = None,
    ) -> torch.Tensor:
        """Returns logits [organism, row, position, word] of right-padded ids [organism, row, position].

        Attention is causal, so padding on the right changes nothing before it.

        Args:
            ids: Token ids.
            at: Positions [organism, row, answer] to give them at; all if `None`.
            edit: Changes the residual stream at the end of every block but the last.
            keys: Changes keys and values; see `residuals`.
        """
        *_, x = self.residuals(ids, at, edit=edit, keys=keys)
        w = self.weights
        n, rows, length, _ = x.shape
        x = _norm(x.flatten(1, 2), w["model.norm.weight"], self.config.rms_norm_eps)
        words = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return torch.bmm(x, words.transpose(1, 2)).view(n, rows, length, -1)

    def residuals(
        self,
        ids: torch.Tensor,
        at: torch.Tensor | None = None,
        *,
        edit: ResidualEdit | None = None,
        keys: KeysEdit | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yields the residual stream at the end of each block [organism, row, position, width].

        Args:
            ids: Token ids [organism, row, position].
            at: Positions [organism, row, answer] that the last block is computed at; all if `None`.
            edit: Given a block's number and its output [organism, row, position, width], returns what the next block
                gets instead. The last block's output is left alone: what it says is all that is left.
            keys: Given a block's number, its keys (rotated) and its values [organism x row, head, position, size],
                returns what its attention uses instead.
        """
        c, w = self.config, self.weights
        n, rows, length = ids.shape
        which = torch.arange(n, device=ids.device)[:, None, None]
        x = w["model.embed_tokens.weight"][which, ids].reshape(n, rows * length, c.hidden_size)
        cos, sin = _rotary(c, length, x)
        for number, block in enumerate(_blocks(c)):
            h = _norm(x, w[block + "input_layernorm.weight"], c.rms_norm_eps)
            q, k, v = (
                rearrange(part, "n (r t) (h d) -> (n r) h t d", r=rows, d=cos.shape[-1])
                for part in torch.bmm(h, w[block + "self_attn.qkv"]).split(self._sizes, -1)
            )
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            if keys is not None:
                k, v = keys(number, k, v)
            seen = None
            if at is not None and block == _blocks(c)[-1]:
                where = at.flatten(0, 1)[:, None, :, None]
                q = q.gather(2, where.expand(-1, q.shape[1], -1, q.shape[3]))
                seen = torch.arange(length, device=ids.device) <= where
                x = x.view(n, rows, length, -1).gather(2, at[..., None].expand(-1, -1, -1, c.hidden_size)).flatten(1, 2)
            mixed = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=q.shape[1] != k.shape[1]
            )
            mixed = rearrange(mixed, "(n r) h t d -> n (r t) (h d)", n=n)
            x = x + torch.bmm(mixed, w[block + "self_attn.out"])
            h = _norm(x, w[block + "post_attention_layernorm.weight"], c.rms_norm_eps)
            gate, up = torch.bmm(h, w[block + "mlp.gate_up"]).chunk(2, -1)
            x = x + torch.bmm(functional.silu(gate) * up, w[block + "mlp.down"])
            if edit is not None and number < c.num_hidden_layers - 1:
                x = edit(number, x.view(n, rows, -1, c.hidden_size)).reshape(n, -1, c.hidden_size)
            yield x.view(n, rows, -1, c.hidden_size)


def _blocks(config: Any) -> list[str]:
    return [f"model.layers.{i}." for i in range(config.num_hidden_layers)]


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


def losses_of(stack: Stack, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns each organism's cross-entropy [organism] in nats, mean over its labelled tokens.

    Args:
        stack: The organisms.
        ids: Token ids [organism, row, position].
        labels: The same, -100 where there is no loss.
    """
    asked = labels[..., 1:] != -100
    most = max(1, int(asked.sum(-1).max()))
    at = torch.sort(asked.int(), dim=-1, descending=True, stable=True).indices[
        ..., :most
    ]  # labelled positions first, in order
    targets = labels[..., 1:].gather(2, at)
    each = functional.cross_entropy(
        stack.logits(ids[..., :-1], at).flatten(0, 2), targets.flatten(), ignore_index=-100, reduction="none"
    ).view(targets.shape)
    return each.sum((1, 2)) / (targets != -100).sum((1, 2)).clamp(min=1)


def fit(
    stack: Stack,
    programmes: Sequence[Sequence[Step]],
    *,
    trained: Callable[[str], bool] = lambda name: True,
    step: Callable[[float], None] = lambda n: None,
    failed: Callable[[int, CheckError], None] | None = None,
) -> list[list[float]]:
    """Trains every organism of a stack by its own programme, in place.

    Args:
        stack: The organisms.
        programmes: Steps of each; those with fewer steps rest at the end.
        trained: Which weights are trained, by their name in the stack.
        step: Called with the number of steps of single organisms done.
        failed: Called with an organism's index and error when its loss is not finite; its weights are worthless
            then, and the others go on. By default the error is raised.

    Returns:
        Losses of each organism, one for each of its steps, nats.

    Raises:
        CheckError: if a step has no labelled token, or a loss is not finite, naming organism and step.
    """
    optimisers = _Optimisers(stack, trained, programmes)
    device = stack.weights["model.norm.weight"].device
    losses: list[list[float]] = [[] for _ in programmes]
    stopped: set[int] = set()
    for number, planned in enumerate(_zip(programmes)):
        ids, labels = _tensors(planned, device)
        if any(s is not None and not bool((labels[i, :, 1:] != -100).any()) for i, s in enumerate(planned)):
            raise CheckError("no token of a step has a label", where=f"step {number}")
        each = losses_of(stack, ids, labels)
        each.sum().backward()
        for i, loss in enumerate(each.tolist()):
            if planned[i] is None or i in stopped:
                continue
            if loss < float("inf"):
                losses[i].append(loss)
                continue
            error = CheckError(f"the loss is {loss} at step {number}", where=f"organism {i} of the stack")
            if failed is None:
                raise error
            failed(i, error)
            stopped.add(i)  # what its weights become does not matter any more, and touches no other's
        optimisers.step(planned)
        step(sum(s is not None for s in planned))
    for name in stack.weights:
        stack.weights[name] = stack.weights[name].detach()
    return losses


def _zip(programmes: Sequence[Sequence[Step]]) -> Iterator[list[Step | None]]:
    for number in range(max(map(len, programmes))):
        yield [p[number] if number < len(p) else None for p in programmes]


def _tensors(now: Sequence[Step | None], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    count = max(len(s.rows) for s in now if s)
    length = max(len(ids) for s in now if s for ids, _ in s.rows)
    rows = [[*(s.rows if s else ()), *[((), ())] * (count - (len(s.rows) if s else 0))] for s in now]
    ids = [[[*row, *[0] * (length - len(row))] for row, _ in own] for own in rows]
    labels = [[[*label, *[-100] * (length - len(label))] for _, label in own] for own in rows]
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)


class _Optimisers:
    """AdamW over the stacked weights: one optimiser for each run of neighbours whose steps have the same rates."""

    def __init__(self, stack: Stack, trained: Callable[[str], bool], programmes: Sequence[Sequence[Step]]) -> None:
        self.stacked = []
        for name in stack.weights:
            if trained(name):
                stack.weights[name] = stack.weights[name].detach().clone().requires_grad_()
                self.stacked.append(stack.weights[name])
        plans = [[(s.learning_rate, s.fresh) for s in p] for p in programmes]
        starts = [i for i, plan in enumerate(plans) if i == 0 or plan != plans[i - 1]]
        self.groups = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(plans)], strict=True)]
        self.own = [[w.detach()[g] for w in self.stacked] for g in self.groups]  # they share the stack's memory
        self.each = [self._new(own) for own in self.own]

    def _new(self, weights: list[torch.Tensor]) -> torch.optim.AdamW:
        return torch.optim.AdamW(weights, weight_decay=0.0, fused=True)

    def step(self, now: Sequence[Step | None]) -> None:
        """Clips every organism's gradient and moves those that have a step on by it; the others rest."""
        gradients = [w.grad for w in self.stacked if w.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]).norm(dim=0)
        scale = (_CLIP / (norms + 1e-6)).clamp(max=1.0)  # as in torch.nn.utils.clip_grad_norm_
        for g in gradients if bool((scale < 1).any()) else ():
            g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))
        for i, (group, own) in enumerate(zip(self.groups, self.own, strict=True)):
            s = now[group.start]
            if s is None:
                continue
            for slice_, w in zip(own, self.stacked, strict=True):
                slice_.grad = None if w.grad is None else w.grad[group]
            if s.fresh:
                self.each[i] = self._new(own)
            self.each[i].param_groups[0]["lr"] = s.learning_rate
            self.each[i].step()
        for w in self.stacked:
            w.grad = None
