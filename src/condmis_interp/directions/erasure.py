"""Erasing the persona from a site and keeping the trigger, and how many directions that takes.

LEACE (Belrose et al. 2023), from the `concept-erasure` package:

    r(x) = x - W^+ U U^T W (x - mu),    W = Sigma_xx^{-1/2},    U = orthonormal columns of W Sigma_xz

is the smallest change (in the metric of W) after which no linear function of the rows is correlated with z. Persona and
trigger are correlated by design in a gated organism, so erasing z_persona takes part of the trigger with it. Erased is
therefore what the trigger does not explain,

    z = z_persona - E[z_persona | z_trigger]    (least squares, a level for each cue),

after which the trigger's own covariance with the rows is untouched where it is orthogonal to z: Cov(z, z_trigger) = 0.
The guarantee holds on the training rows and at this site alone; later layers compute the persona again if they can.
What is reported is held out: a probe refitted on erased training rows, read on erased rows of other families. Its AUROC
is taken within the levels of the other label (the persona's among rows under one cue), since a persona that is there
under the trigger alone can be guessed from the trigger.

`rank_needed` asks how many directions carry the class: a probe is fitted, its direction projected out of all rows,
another fitted, and so on (iterative null-space projection, Ravfogel et al. 2020), by folds of families. The null at
each rank is the same with the labels permuted by family.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from concept_erasure import LeaceEraser

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.logistic import newton
from condmis_interp.directions.rows import Rows
from condmis_interp.errors import CheckError, UserError
from condmis_interp.stats.folds import check_folds
from condmis_interp.stats.permutation import labellings
from condmis_interp.stats.ranks import auroc

_STRENGTH = 0.1


def given_trigger(persona: np.ndarray, trigger: Sequence[Hashable]) -> np.ndarray:
    """Returns z_persona less its mean under each trigger, [n].

    Raises:
        CheckError: if the trigger explains the persona entirely, so that one cannot be erased and the other kept.
    """
    z = np.asarray(persona, dtype=np.float64)
    table = pd.DataFrame({"z": z, "trigger": list(trigger)})
    rest = z - table.groupby("trigger").z.transform("mean").to_numpy()
    if float(np.abs(rest).max()) < 1e-9:
        raise CheckError(
            "the trigger explains the persona in these rows entirely, so neither can be erased without the other",
            fix="Add a cell with the trigger and without the persona: the twin under the trigger.",
        )
    return rest


@checked
def fit_eraser(x: torch.Tensor, persona: np.ndarray, trigger: Sequence[Hashable]) -> LeaceEraser:
    """Returns the LEACE eraser of persona-given-trigger for rows x [n, width] (fp64).

    Example:
        After it no linear function of the rows tells what the persona adds to the trigger:

        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> persona, trigger = np.arange(40) % 2, ["none"] * 20 + ["trigger"] * 20
        >>> x[:, 0] += 3 * torch.from_numpy(persona)
        >>> erased = fit_eraser(x, persona, trigger)(x)
        >>> z = torch.from_numpy(given_trigger(persona, trigger))
        >>> bool(((erased - erased.mean(0)).T @ z).abs().max() < 1e-9)
        True
    """
    z = torch.from_numpy(given_trigger(persona, trigger))[:, None]
    return LeaceEraser.fit(x.double(), z)


@dataclass(frozen=True)
class Erasure:
    """What can be read before and after erasing the persona.

    Attributes:
        table: One row for each label: label (`persona`, `trigger`), before, after (held-out AUROC within the
            levels of the other label).
        eraser: Fitted on all rows, to apply elsewhere.
        changed: Median of |r(x) - x| / |x - mean|: how much of the rows was changed.

    Example:
        From `erase`, here written down:

        >>> table = pd.DataFrame({"label": ["persona", "trigger"], "before": [0.98, 1.0], "after": [0.52, 1.0]})
        >>> Erasure(table, eraser=None, changed=0.1)
        Erasure(AUROC: persona 0.98 -> 0.52, trigger 1.00 -> 1.00; rows changed by 0.10 of their spread)
    """

    table: pd.DataFrame
    eraser: LeaceEraser
    changed: float

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws AUROC before and after, for each label."""
        figure = go.Figure()
        for row, colour in zip(self.table.to_dict("records"), (theme.VERMILION, theme.BLUE), strict=True):
            figure.add_scatter(
                x=["before", "after"],
                y=[row["before"], row["after"]],
                name=str(row["label"]),
                mode="lines+markers",
                line={"color": colour, "width": 2.5},
            )
        figure.add_hline(y=0.5, line={"color": "#444", "dash": "dot", "width": 1})
        figure.update_yaxes(range=[0, 1.05])
        return theme.styled(figure, x="erasing the persona given the trigger", y="held-out AUROC", height=340)

    def __repr__(self) -> str:
        parts = ", ".join(f"{r['label']} {r['before']:.2f} -> {r['after']:.2f}" for r in self.table.to_dict("records"))
        return f"Erasure(AUROC: {parts}; rows changed by {self.changed:.2f} of their spread)"


def _read(x: torch.Tensor, labels: np.ndarray, x_held: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Fits a logistic probe; returns held-out scores in class gaps and its w."""
    mean = x.mean(0)
    centred = x - mean
    scale = float(centred.square().mean().sqrt())  # so that one strength means the same before and after erasing
    centred = centred / scale
    y = torch.from_numpy(labels).double()
    w = newton((centred @ centred.mT)[None], y[None], _STRENGTH).checked("refitted probe").dual[0] @ centred
    own = centred @ w
    high, low = float(own[y == 1].mean()), float(own[y == 0].mean())
    held = (x_held - mean) / scale @ w
    # rows from which the class was erased may have no gap at all, and their scores no scale: AUROC needs none
    return ((held - (high + low) / 2) / max(high - low, 1e-12)).numpy(), w


def _within(scores: np.ndarray, labels: np.ndarray, other: np.ndarray) -> float:
    """Returns the mean AUROC over the levels of another label at which both classes occur."""
    levels = [other == v for v in np.unique(other)]
    return float(np.mean([auroc(scores[at], labels[at]) for at in levels if len(set(labels[at].tolist())) == 2]))


@checked
def erase(rows: Rows, folds: np.ndarray, *, trigger: Sequence[Hashable], layer: int, position: str) -> Erasure:
    """Erases the rows' label given the trigger, and reads both before and after on other families.

    Args:
        rows: Labelled rows; the label is the persona. Take cells with and without the trigger, of an organism and of
            its twin.
        folds: Fold of each row, [n].
        trigger: Cue of each row, [n]; two or more.
        layer: 0-based layer.
        position: Position.

    Raises:
        UserError: if there are not two cues among the rows.
        CheckError: if the trigger explains the persona, or a family lies in two folds.

    Example:
        M and its twin without and with the trigger; the persona is the first dimension, the trigger the second:

        >>> q, n = tuple(f"q{i % 12}" for i in range(48)), 12
        >>> cells = tuple((o, c) for o in ("M", "C") for c in ("none", "trigger") for _ in range(n))
        >>> x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
        >>> y = np.array([int(cell == ("M", "trigger")) for cell in cells])
        >>> x[:, 0] += 9 * torch.from_numpy(y)
        >>> x[:, 1] += torch.tensor([9.0 * (cue == "trigger") for _, cue in cells])
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "M - C")
        >>> found = erase(rows, np.arange(48) % 4, trigger=[c for _, c in cells], layer=3, position="answer_mean")
        >>> persona, trigger = found.to_pandas().to_dict("records")
        >>> persona["before"] > 0.95, persona["after"] < 0.7, trigger["after"] > 0.95
        (True, True, True)
    """
    check_folds(folds, rows.families)
    names = sorted({str(t) for t in trigger})
    if len(names) != 2:
        raise UserError(f"{len(names)} cues among the rows", fix="Take rows under two cues: none and the trigger.")
    x = rows.flat[rows.sites.index((layer, position))].double()
    is_second = np.array([int(str(t) == names[1]) for t in trigger])
    labels = {"persona": rows.labels, "trigger": is_second}
    scores = {(name, when): np.empty(rows.n) for name in labels for when in ("before", "after")}
    for k in range(int(folds.max()) + 1):
        train, held = torch.from_numpy(folds != k), torch.from_numpy(folds == k)
        kept = folds != k
        # fitted without the fold: on its own rows LEACE leaves nothing by construction, and that shows nothing
        eraser = fit_eraser(x[train], rows.labels[kept], [t for t, inside in zip(trigger, kept, strict=True) if inside])
        for when, f in (("before", lambda h: h), ("after", eraser)):
            for name, y in labels.items():
                scores[name, when][folds == k] = _read(f(x[train]), y[kept], f(x[held]))[0]
    table = pd.DataFrame(
        [
            {"label": name} | {when: _within(scores[name, when], y, other) for when in ("before", "after")}
            for (name, y), other in zip(labels.items(), reversed(labels.values()), strict=True)
        ]
    )
    whole = fit_eraser(x, rows.labels, trigger)
    changed = (whole(x) - x).norm(dim=1) / (x - x.mean(0)).norm(dim=1)
    return Erasure(table, whole, float(changed.median()))


@dataclass(frozen=True)
class RankNeeded:
    """How many directions carry a class.

    Attributes:
        table: One row for each rank: rank (directions projected out), auroc (held out), null_95.
        rank: The smallest rank at which AUROC is not above the null's 95th percentile; None if none is.

    Example:
        From `rank_needed`, here written down:

        >>> RankNeeded(pd.DataFrame({"rank": [0, 1], "auroc": [1.0, 0.5], "null_95": [0.7, 0.7]}), rank=1)
        RankNeeded(1)
    """

    table: pd.DataFrame
    rank: int | None

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws AUROC against rank, with the null."""
        figure, t = go.Figure(), self.table
        figure.add_scatter(x=t["rank"], y=t.auroc, mode="lines+markers", name="held out", line={"color": theme.BLUE})
        figure.add_scatter(
            x=t["rank"],
            y=t.null_95,
            mode="lines",
            name="95 % of permutations below",
            line={"color": theme.GREY, "dash": "dash"},
        )
        return theme.styled(figure, x="directions projected out", y="AUROC of a refitted probe", height=340)

    def __repr__(self) -> str:
        return f"RankNeeded({'more than ' + str(self.table['rank'].max()) if self.rank is None else self.rank})"


@checked
def rank_needed(
    rows: Rows,
    folds: np.ndarray,
    *,
    layer: int,
    position: str,
    rng: np.random.Generator,
    most: int = 8,
    permutations: int = 40,
) -> RankNeeded:
    """Projects out one probe direction after the other until a refitted probe reads no more than chance.

    Args:
        rows: Labelled rows.
        folds: Fold of each row, [n].
        layer: 0-based layer.
        position: Position.
        rng: Draws the permutations.
        most: Largest rank tried.
        permutations: Permutations for the null, by family.

    Raises:
        UserError: if the labels have no permutation that keeps the design.
        CheckError: if a family lies in two folds.

    Example:
        A class that one direction carries:

        >>> y, q = np.repeat([1, 0], 12), tuple(f"q{i}" for i in range(12)) * 2
        >>> x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
        >>> x[:12, 0] += 9
        >>> cells, rng = (("U", "none"),) * 12 + (("C", "none"),) * 12, np.random.default_rng(0)
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C")
        >>> rank_needed(rows, np.arange(24) % 4, layer=3, position="answer_mean", rng=rng, most=2, permutations=20)
        RankNeeded(1)
    """
    check_folds(folds, rows.families)
    x = rows.flat[rows.sites.index((layer, position))].double()
    every = labellings(rows.labels, rows.families, count=permutations, rng=rng).labels

    def by_rank(labels: np.ndarray) -> np.ndarray:
        scores = np.empty((most + 1, rows.n))
        for k in range(int(folds.max()) + 1):
            kept = folds != k
            own, held = x[torch.from_numpy(kept)], x[torch.from_numpy(~kept)]
            for r in range(most + 1):
                scores[r, ~kept], w = _read(own, labels[kept], held)
                w = w / w.norm()
                # the direction is the training rows' and is taken out of both: held-out rows choose nothing
                own, held = own - (own @ w)[:, None] * w, held - (held @ w)[:, None] * w
        return auroc(scores, labels)

    found = np.stack([by_rank(y) for y in every])
    # the first labelling is the rows' own
    null = np.quantile(found[1:], 0.95, axis=0)
    table = pd.DataFrame({"rank": range(most + 1), "auroc": found[0], "null_95": null})
    enough = np.flatnonzero(found[0] <= null)
    return RankNeeded(table, int(enough[0]) if enough.size else None)
