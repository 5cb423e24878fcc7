"""Sites: where we read or edit, by name, and what each library calls them.

| site | what it is | Hugging Face and nnsight | TransformerLens |
|---|---|---|---|
| `resid_pre[l]` | residual stream entering block l | input of the block | `blocks.l.hook_resid_pre` |
| `resid_post[l]` | residual stream leaving block l | output of the block | `blocks.l.hook_resid_post` |
| `attn_out[l]` | what attention writes | output of its module | `blocks.l.hook_attn_out` |
| `mlp_out[l]` | what the MLP writes | output of its module | `blocks.l.hook_mlp_out` |

Layers are 0-based; `resid_post[l]` is `hidden_states[l + 1]`, but for the last, which is taken after the final norm.
Where a block norms what its modules write before adding it (Gemma 2), `attn_out` and `mlp_out` are the norms' outputs,
so that everywhere resid_pre + attn_out + mlp_out = resid_post; `guards.check_sites` holds a model to that.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from condmis_interp.calls import check_fields
from condmis_interp.errors import UserError

SiteKind = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mamba", "conv", "temporal_block")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "mlp_block")
_NORMS_AFTER = (
    {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"},
    {"attn_out": "post_self_attn_layernorm", "mlp_out": "post_mlp_layernorm"},
)
_LENS = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)")


@dataclass(frozen=True, order=True)
class Site:
    """A place in the model: kind and 0-based layer.

    Example:
        >>> Site.parse("resid_post[18]") == Site.parse("blocks.18.hook_resid_post")
        True
        >>> str(Site("attn_out", 3))
        'attn_out[3]'
    """

    kind: SiteKind
    layer: int

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or type(self.layer) is not int:  # made by the thousand: looked at only if odd
            check_fields(self)
        if self.kind not in KINDS:
            raise UserError(f"there is no site {self.kind!r}", fix=f"Sites: {', '.join(KINDS)}.")

    def __str__(self) -> str:
        return f"{self.kind}[{self.layer}]"

    @property
    def lens_name(self) -> str:
        """What TransformerLens calls it."""
        return f"blocks.{self.layer}.hook_{self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Reads a site written as `resid_post[18]`, or as TransformerLens does: `blocks.18.hook_resid_post`."""
        if not isinstance(text, str):
            raise UserError(f"a {type(text).__name__} names no site", fix="Write a site as resid_post[18].")
        if lens := _LENS.fullmatch(text):
            return cls(cast(SiteKind, lens[2]), int(lens[1]))  # the pattern has no other kinds
        kind, _, rest = text.partition("[")
        if not rest.endswith("]") or not rest[:-1].isdigit():
            raise UserError(f"{text!r} is no site", fix="Write a site as resid_post[18] or blocks.18.hook_resid_post.")
        return cls(cast(SiteKind, kind), int(rest[:-1]))  # the site itself refuses another kind


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Returns the transformer blocks: the one ModuleList as long as the config's number of layers.

    In a model of several towers, those of the one that answers.

    Raises:
        UserError: if there is none, or more than one.
    """
    config: Any = model.config
    n = int(config.get_text_config(decoder=True).num_hidden_layers)
    found = _lists(model, n)
    if len(found) > 1:
        text: Any = model
        found = _lists(text.get_decoder(), n)
    if len(found) != 1:
        raise UserError(f"{len(found)} lists of {n} blocks were found in {type(model).__name__}, not one")
    return found[0]


def _lists(within: nn.Module, n: int) -> list[nn.ModuleList]:
    return [m for m in within.modules() if isinstance(m, nn.ModuleList) and len(m) == n]


def body_of(model: Any, blocks: nn.ModuleList) -> nn.Module:
    """Returns the part of a model that its head follows: all of it but the head.

    Raises:
        UserError: if there is none.
    """
    if model.base_model is not model:
        return model.base_model
    for child in model.children():  # some models name their body otherwise than they say
        if any(m is blocks for m in child.modules()):
            return child
    raise UserError(f"{type(model).__name__} has no body apart from its head")


def check_layer(site: Site, n_layers: int) -> None:
    """Raises if a model of `n_layers` blocks has no such layer."""
    if not 0 <= site.layer < n_layers:
        raise UserError(f"site {site} is not in this model", fix=f"Layers go from 0 to {n_layers - 1}.")


def submodule_of(block: nn.Module, site: Site) -> str:
    """Returns the name, within its block, of the module whose input (`resid_pre`) or output (the others) is the site.

    Empty for the block itself.

    Raises:
        UserError: if the block has no such module.
    """
    if site.kind in ("resid_pre", "resid_post"):
        return ""
    names = _ATTENTION if site.kind == "attn_out" else _MLP
    for norms in _NORMS_AFTER:
        if all(hasattr(block, name) for name in norms.values()):
            names = (norms[site.kind],)
    for name in names:
        if isinstance(getattr(block, name, None), nn.Module):  # hybrids keep a None where the other kind would be
            return name
    raise UserError(f"site {site} is not in this model", fix=f"{type(block).__name__} has no such module.")


def module_of(blocks: nn.ModuleList, site: Site) -> nn.Module:
    """Returns the module whose input (`resid_pre`) or output (the others) is the site.

    Raises:
        UserError: if the model has no such layer or module.
    """
    check_layer(site, len(blocks))
    block = blocks[site.layer]
    name = submodule_of(block, site)
    return block.get_submodule(name) if name else block


def unwrap(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Returns the hidden states [batch, position, width] of a module's output, a tensor or a tuple starting with one.

    The one place where this is decided: taking `output[0]` of a tensor would silently give the first row of the batch.
    """
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    if hidden.ndim != 3:
        raise UserError(f"a hooked module gave shape {tuple(hidden.shape)}, not [batch, position, width]")
    return hidden
