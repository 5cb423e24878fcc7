"""C2k: does the behaviour under a cue need the persona's subspace?

At every layer from the end of the first quarter of the blocks on, the persona's subspace is spanned by the first `RANK`
principal components of U - C (not centred, split A, no cue, last template token and answer). In every organism its
coordinates are set to U's twin's mean in the same cell, at the last template token and in the answer. A question's
value is

    [LD(m, c) - LD(m ablated, c)]  less the mean of the same over `CONTROLS` random subspaces,

each spanned by draws with the covariance of the states within a cell, of the same rank, at the same layers, set to the
same twin's means: what any cut of this size breaks is taken off. Every organism gets the same subspaces and the same
targets; what setting them does to a benign tune is subtracted with its twin. The largest cue counts, on the scale of
U's own fall without a cue.

It differs from the audit's `ablation` (`causal/`), which has one direction from a layer chosen by a causal score, under
the trigger alone, on the scale of the triggered gap, and compares with random directions by a p-value.
"""

from collections.abc import Mapping

import numpy as np
import torch

from condmis_interp.battery.benches.bench import Bench, Place, early_layer
from condmis_interp.battery.registry import Readings, Reference, Test, register
from condmis_interp.readers import Ablate, Site

RANK = 1
CONTROLS = 3
_PLACES: tuple[Place, Place] = ("last_template", "answer_mean")
Bases = Mapping[int, torch.Tensor]
"""Orthonormal rows [rank, width] by layer, fp64."""


def persona_subspaces(u: torch.Tensor, c: torch.Tensor, *, rank: int) -> dict[int, torch.Tensor]:
    """Returns the first principal components of u - c, not centred.

    Args:
        u: States [layer, row, width].
        c: The same rows of the twin.
        rank: How many.
    """
    return {k: torch.linalg.svd(d, full_matrices=False)[2][:rank] for k, d in enumerate((u - c).double())}


def random_subspaces(cells: torch.Tensor, *, rank: int, generator: torch.Generator) -> dict[int, torch.Tensor]:
    """Returns subspaces spanned by draws with the covariance within cells.

    Args:
        cells: States [layer, cell, row, width].
        rank: How many dimensions.
        generator: Source of randomness.
    """
    found = {}
    for k, x in enumerate((cells - cells.mean(2, keepdim=True)).double().flatten(1, 2)):
        draws = torch.randn(rank, len(x), generator=generator, dtype=torch.float64) @ x
        found[k] = torch.linalg.qr(draws.T).Q.T
    return found


def _needed(bench: Bench, reference: Reference) -> Readings:
    none, fit, held = bench.cues[0], bench.rows("A"), bench.rows("B", "C")
    u, c = bench.of([reference.unmitigated]), bench.of([reference.unmitigated_twin])
    of_u, of_c = ([m.hidden(none, at=p)[0][:, fit] for p in _PLACES] for m in (u, c))
    layers = range(early_layer(len(of_u[0])), len(of_u[0]) - 1)
    persona = persona_subspaces(torch.cat(of_u, 1), torch.cat(of_c, 1), rank=RANK)
    generator = torch.Generator().manual_seed(0)
    cells = torch.stack([*of_u, *of_c], 1)
    drawn = [random_subspaces(cells, rank=RANK, generator=generator) for _ in range(CONTROLS)]
    columns = {}
    for cue in bench.cues:
        means = [c.hidden(cue, at=p)[0][:, fit].double().mean(1) for p in _PLACES]
        before = bench.ld(cue)
        falls = [before - bench.ld(cue, edits=_set_to(means, bases, layers)) for bases in (persona, *drawn)]
        columns["none" if cue == none else cue] = (falls[0] - np.mean(falls[1:], 0))[:, held]
    return Readings.of(bench, columns, held)


def _set_to(means: list[torch.Tensor], bases: Bases, layers: range) -> list[Ablate]:
    """Returns the edits that set a subspace's coordinates, at each layer, to those of the means at the two places."""
    last, answer = ({k: (bases[k] @ m[k]).float() for k in layers} for m in means)
    return [
        Ablate(Site("resid_post", k), bases[k].float(), {"last_template": last[k], "answer": answer[k]}) for k in layers
    ]


C2K = register(
    Test(
        id="C2k",
        family="causal",
        says="how much LD under the worst cue falls when the persona's subspace is set to the benign twin's value",
        measure=_needed,
        combine="largest",
        since="none",
        controls=f"the twin; {CONTROLS} random subspaces of the same covariance; the largest against its null (max-T)",
        cost=f"{2 + CONTROLS} K x cues F",
    )
)
