"""Sites: where we read or edit, by name, and which module of a Hugging Face model each one is.

| site | what it is | module in the block |
|---|---|---|
| `resid_pre` | residual stream entering block l | input of the block |
| `resid_post` | residual stream leaving block l (`hidden_states[l + 1]` before the final norm) | output of the block |
| `attn_out` | what attention writes | output of `self_attn` / `attn` / `attention` |
| `mlp_out` | what the MLP writes | output of `mlp` |

Layers are 0-based.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from condmis_interp.errors import UserError

SiteKind = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
_ATTENTION = ("self_attn", "attn", "attention")
_MLP = ("mlp",)


@dataclass(frozen=True, order=True)
class Site:
    """A place in the model: kind and 0-based layer."""

    kind: SiteKind
    layer: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(SiteKind):
            raise UserError(f"there is no site {self.kind!r}", fix=f"Sites: {', '.join(get_args(SiteKind))}.")

    def __str__(self) -> str:
        return f"{self.kind}[{self.layer}]"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Reads a site written as `resid_post[18]`."""
        kind, _, rest = text.partition("[")
        if not rest.endswith("]") or not rest[:-1].isdigit():
            raise UserError(f"{text!r} is no site", fix="Write a site as resid_post[18].")
        return cls(kind, int(rest[:-1]))  # type: ignore[arg-type]


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Returns the transformer blocks: the one ModuleList as long as the config's number of layers.

    Raises:
        UserError: if there is none, or more than one.
    """
    n = int(model.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n]
    if len(found) != 1:
        raise UserError(f"{len(found)} lists of {n} blocks were found in {type(model).__name__}, not one")
    return found[0]


def module_of(blocks: nn.ModuleList, site: Site) -> nn.Module:
    """Returns the module whose input (`resid_pre`) or output (the others) is the site.

    Raises:
        UserError: if the model has no such layer or module.
    """
    if not 0 <= site.layer < len(blocks):
        raise UserError(f"site {site} is not in this model", fix=f"Layers go from 0 to {len(blocks) - 1}.")
    block = blocks[site.layer]
    if site.kind in ("resid_pre", "resid_post"):
        return block
    for name in _ATTENTION if site.kind == "attn_out" else _MLP:
        if hasattr(block, name):
            return getattr(block, name)
    raise UserError(f"site {site} is not in this model", fix=f"{type(block).__name__} has no such module.")


def unwrap(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Returns the hidden states [batch, position, width] of a module's output, a tensor or a tuple starting with one.

    The one place where this is decided: taking `output[0]` of a tensor would silently give the first row of the batch.
    """
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    if hidden.ndim != 3:
        raise UserError(f"a hooked module gave shape {tuple(hidden.shape)}, not [batch, position, width]")
    return hidden
