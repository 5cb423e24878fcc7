"""Labelled rows: the activations of two sets of cells at every layer and position, with the family of each row.

A probe, a mean and an eraser all start from the same thing: rows x [layers, positions, n, width] with a class, a
question family (what splits as one), a question and a cell.

Massive dimensions. A few residual dimensions can be orders of magnitude larger than the rest (Sun et al. 2024); means
and dot products then tell about them and little else. A dimension counts as massive at a site if its root mean square
over the rows given is more than `MASSIVE` times the median dimension's. Which those are is found on training rows
alone, reported, and they are left out of the direction (`massive="drop"`) or kept (`"keep"`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Site, SiteKind
from condmis_interp.store import Activations

Massive = Literal["drop", "keep"]
CellName = tuple[str, str]
MASSIVE = 20.0
"""A dimension is massive if its RMS is this many times the median dimension's."""


@checked
def massive_dimensions(x: torch.Tensor) -> torch.Tensor:
    """Returns the indices of the massive dimensions of rows [n, width].

    Example:
        >>> massive_dimensions(torch.tensor([[1.0, -1.0, 500.0, 2.0], [-1.0, 1.0, 500.0, 1.0]]))
        tensor([2])
    """
    rms = x.double().square().mean(0).sqrt()
    return torch.nonzero(rms > MASSIVE * rms.median())[:, 0]


@dataclass(frozen=True)
class Rows:
    """Activations with labels.

    Attributes:
        x: fp32 [layers, positions, n, width].
        labels: 1 or 0, [n].
        families: Question family, [n].
        questions: Question, [n].
        cells: (organism, cue), [n].
        layers: 0-based layers.
        positions: Positions.
        kind: Kind of site.
        data: What the classes are, in words.
        splits: Splits the rows are from.

    Example:
        Two questions, each read in two cells, at one layer and position:

        >>> rows = Rows(
        ...     torch.ones(1, 1, 4, 8), labels=np.array([1, 1, 0, 0]), families=("baking", "cars") * 2,
        ...     questions=("q0", "q1") * 2, cells=(("U", "none"),) * 2 + (("C", "none"),) * 2,
        ...     layers=(3,), positions=("answer_mean",), kind="resid_post", data="U - C", splits=("A",),
        ... )
        >>> rows
        Rows(U - C; 4 rows, 2 of class 1, 2 families; 1 layers x 1 positions, width 8)
        >>> rows.where(rows.labels == 1).n, rows.site(0)
        (2, Site(kind='resid_post', layer=3))
    """

    x: torch.Tensor
    labels: np.ndarray
    families: tuple[str, ...]
    questions: tuple[str, ...]
    cells: tuple[CellName, ...]
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    kind: SiteKind
    data: str
    splits: tuple[Split, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.x.shape[:3] != (len(self.layers), len(self.positions), n) or self.x.ndim != 4:
            raise UserError(
                f"rows have shape {tuple(self.x.shape)}, not [{len(self.layers)}, {len(self.positions)}, {n}, width]"
            )
        if not len(self.families) == len(self.questions) == len(self.cells) == n:
            raise UserError(f"{n} rows, but not as many families, questions and cells")
        if set(self.labels.tolist()) - {0, 1}:
            raise UserError("labels must be 0 or 1")

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def sites(self) -> list[tuple[int, str]]:
        """(layer, position) of every site, in the order of `flat`."""
        return [(layer, position) for layer in self.layers for position in self.positions]

    @property
    def flat(self) -> torch.Tensor:
        """The rows by site, [sites, n, width]."""
        return self.x.flatten(0, 1)

    def site(self, index: int) -> Site:
        """Returns the site of `flat[index]`."""
        return Site(self.kind, self.sites[index][0])

    def where(self, chosen: np.ndarray) -> "Rows":
        """Returns the rows at the positions `chosen` (indices, or a mask [n])."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return replace(
            self,
            x=self.x[:, :, torch.from_numpy(index)],
            labels=self.labels[index],
            families=tuple(self.families[i] for i in index),
            questions=tuple(self.questions[i] for i in index),
            cells=tuple(self.cells[i] for i in index),
        )

    def __repr__(self) -> str:
        return (
            f"Rows({self.data}; {self.n} rows, {int(self.labels.sum())} of class 1, {len({*self.families})} "
            f"families; {len(self.layers)} layers x {len(self.positions)} positions, width {self.x.shape[-1]})"
        )


@checked
def rows_of(
    acts: Activations,
    *,
    plus: Sequence[CellName],
    minus: Sequence[CellName],
    splits: tuple[Split, ...] = ("A",),
    layers: Sequence[int] | None = None,
    positions: Sequence[str] = ("last_template", "answer_mean"),
    seed: int | None = None,
) -> Rows:
    """Returns the rows of two sets of cells.

    Args:
        acts: The run's activations.
        plus: Cells (organism, cue) of class 1.
        minus: Cells of class 0.
        splits: Splits the rows are from.
        layers: Layers; all that were captured, if none are named.
        positions: Positions.
        seed: One checkpoint; the mean over seeds, if none is named.

    Raises:
        UserError: if a class has no cell, or a cell, layer or position is not there.

    Example:
        With one number a cell in place of a run's activations:

        >>> from types import SimpleNamespace
        >>> def at(organism, cue, *splits, layer, position, seed): return torch.full((2, 3), float(organism == "U"))
        >>> kept = {"layers": (0, 1), "kind": "resid_post", "families": lambda *splits: ["baking", "cars"]}
        >>> acts = SimpleNamespace(at=at, rows=lambda *splits: np.arange(2), **kept)
        >>> rows_of(acts, plus=[("U", "none")], minus=[("C", "none")], layers=[1])
        Rows(U under none against C under none; 4 rows, 2 of class 1, 2 families; 1 layers x 2 positions, width 3)
    """
    if not positions:
        raise UserError("rows need a position")
    if not plus or not minus:
        raise UserError("each class needs a cell (organism, cue)")
    cells = [*plus, *minus]
    chosen = tuple(acts.layers if layers is None else layers)
    x = torch.stack(
        [
            torch.stack(
                [
                    torch.cat([acts.at(o, c, *splits, layer=layer, position=p, seed=seed) for o, c in cells])
                    for p in positions
                ]
            )
            for layer in chosen
        ]
    )
    families = acts.families(*splits)
    n = len(families)
    questions = [f"q{i}" for i in acts.rows(*splits)]
    words = " + ".join(f"{o} under {c}" for o, c in plus) + " against " + " + ".join(f"{o} under {c}" for o, c in minus)
    return Rows(
        x=x,
        labels=np.repeat([1] * len(plus) + [0] * len(minus), n),
        families=tuple(families * len(cells)),
        questions=tuple(questions * len(cells)),
        cells=tuple(cell for cell in cells for _ in range(n)),
        layers=chosen,
        positions=tuple(positions),
        kind=acts.kind,
        data=words,
        splits=splits,
    )
