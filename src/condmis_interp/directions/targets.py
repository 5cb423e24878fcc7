"""What a component is set to: a value, coordinates by position, or what a twin has there.

Zero is not neutral (a layer's mean is far from it), so nothing is ablated to zero unless that is written.
"""

from collections.abc import Mapping, Sequence

import torch

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Ablate, Site
from condmis_interp.readers.edits import Scope
from condmis_interp.store import Activations

Value = float | Sequence[float] | torch.Tensor
Target = Value | Mapping[Scope, Value]

_READ_AT: dict[Scope, str] = {"last_template": "last_template", "answer": "answer_mean"}
"""Positions of an edit, and those that a run captures."""


def ablate(site: Site, basis: torch.Tensor, to: Target, scope: frozenset[Scope]) -> Ablate:
    """Returns the edit that sets the coordinates on a basis [k, width].

    Raises:
        UserError: if the target has another number of coordinates, is not finite, or names no position.
    """
    by_scope = to if isinstance(to, Mapping) else dict.fromkeys(scope, to)
    return Ablate(site, basis, {s: _coordinates(v, len(basis), f"{site}, {s}") for s, v in by_scope.items()})


def _coordinates(value: Value, count: int, where: str) -> torch.Tensor:
    try:
        given = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"a component cannot be set to {value!r}", where=where, fix="Give a number, or coordinates [k]."
        ) from None
    return given.reshape(1).expand(count) if given.numel() == 1 else given


@checked
def mean_coordinates(
    acts: Activations,
    basis: torch.Tensor,
    *,
    layer: int,
    organism: str,
    cue: str,
    splits: tuple[Split, ...] = ("A",),
    seed: int | None = None,
) -> dict[Scope, torch.Tensor]:
    """Returns an organism's mean coordinates [k] (fp32) in a cell, by position: what `ablate(to=...)` takes.

    Use the twin in the same cell: what is left of a component after the twin's recipe is what it should be set to.

    Args:
        acts: The run's activations.
        basis: Orthonormal rows [k, width].
        layer: 0-based layer.
        organism: Whose mean: the twin's.
        cue: In which cell.
        splits: Splits of the questions it is averaged over.
        seed: Which checkpoint's; all of them, unless one is named.

    Raises:
        UserError: if none of the positions `last_template` and `answer_mean` was captured.

    Example:
        >>> from types import SimpleNamespace
        >>> captured = SimpleNamespace(manifest=SimpleNamespace(positions=("answer_mean",)))
        >>> def at(organism, cue, *splits, layer, position, seed): return torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> acts = SimpleNamespace(at=at, shards=captured)
        >>> mean_coordinates(acts, torch.tensor([[1.0, 0.0]]), layer=0, organism="C", cue="trigger")
        {'answer': tensor([2.])}
    """
    captured = acts.shards.manifest.positions
    found: dict[Scope, torch.Tensor] = {}
    for scope, position in _READ_AT.items():
        if position in captured:
            mean = acts.at(organism, cue, *splits, layer=layer, position=position, seed=seed).double().mean(0)
            found[scope] = (basis.double() @ mean).float()
    if not found:
        known = " or ".join(_READ_AT.values())
        raise UserError(f"neither {known} was captured", where=str(acts.shards.folder), fix="Capture one of them.")
    return found
