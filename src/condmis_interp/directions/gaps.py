"""Where every cell stands on a frozen direction, in class gaps.

A direction w is fitted on two sets of cells (split A), with m+ and m- their means along it. Every organism under every
cue is then read on other questions (splits B and C) with the same w:

    score(organism, cue, question) = (w . h - m-) / (m+ - m-)

so 0 is the mean of the class at the arrow's tail and 1 that at its head, in the fitting split; one unit is one class
gap, the same for every organism, which makes their differences comparable. Means are over questions, with intervals
clustered by family; seeds are averaged first, so an interval says how far other questions could differ, not other
seeds.

`over_twin` is the difference from the twin under the same cue, question by question. Both read the same text, so no
text-only probe can tell them apart: it is the number to quote. The score itself moves with anything the cue does to any
model. `text` is what a probe of the words alone says, trained on the same contrast and scored on the same scale; it is
NaN where the two classes read the same texts (U against C under one cue), for then the words hold nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.estimators import Estimator, estimate
from condmis_interp.directions.rows import CellName, Massive, Rows, rows_of
from condmis_interp.directions.text import text_features
from condmis_interp.errors import UserError
from condmis_interp.panel.panel import Split
from condmis_interp.stats import cluster_mean
from condmis_interp.store import Activations


@dataclass(frozen=True)
class Scale:
    """A direction with its zero.

    Attributes:
        direction: The direction; its scale is the class gap along it.
        zero: Mean along it of the class at its tail.

    Example:
        Zero is the mean of the class at the tail, one that of the class at the head:

        >>> q, cells = ("q0", "q0"), (("U", "none"), ("C", "none"))
        >>> x, at = torch.tensor([[5.0, 1.0], [1.0, 1.0]])[None, None], ((3,), ("answer_mean",))
        >>> rows = Rows(x, np.array([1, 0]), q, q, cells, *at, "resid_post", "U - C")
        >>> scale = Scale.of(rows, estimate(rows, "means", layer=3, position="answer_mean"))
        >>> scale(torch.tensor([[1.0, 9.0], [3.0, 9.0], [5.0, 9.0]]))
        array([0. , 0.5, 1. ])
    """

    direction: Direction
    zero: float

    @classmethod
    def of(cls, rows: Rows, direction: Direction) -> "Scale":
        """Takes zero and gap from the rows the direction was fitted on."""
        x = rows.flat[rows.sites.index((direction.site.layer, direction.position))].double()
        return cls(direction, float((x[torch.from_numpy(rows.labels == 0)] @ direction.vector.double()).mean()))

    def __call__(self, x: torch.Tensor) -> np.ndarray:
        """Returns the scores of rows [n, width], in class gaps."""
        return ((x.double() @ self.direction.vector.double() - self.zero) / self.direction.scale).numpy()


@dataclass(frozen=True)
class GapTable:
    """Every cell on frozen directions.

    Attributes:
        table: One row for each direction, organism and cue: direction, organism, cue, score, low, high, over_twin,
            twin_low, twin_high (NaN for organisms without a twin), text, questions, families.
        scales: The directions, by name.
        fitted_on: Splits they were fitted on.
        read_on: Splits the cells were read on.

    Example:
        From `gap_table`, here written down:

        >>> table = pd.DataFrame({"organism": ["M", "M"], "cue": ["none", "trigger"], "score": [0, 0.7]})
        >>> table["direction"] = "U - C"
        >>> GapTable(table, {}, ("A",), ("B", "C")).grid("U - C")
        cue       none  trigger
        organism
        M          0.0      0.7
    """

    table: pd.DataFrame
    scales: dict[str, Scale]
    fitted_on: tuple[Split, ...]
    read_on: tuple[Split, ...]

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def grid(self, direction: str, value: str = "score") -> pd.DataFrame:
        """Returns one column for one direction as [organism x cue]."""
        t = self.table[self.table.direction == direction]
        wide = t.pivot(index="organism", columns="cue", values=value)
        return wide.loc[list(dict.fromkeys(t.organism)), list(dict.fromkeys(t.cue))]

    def figure(self, direction: str | None = None) -> go.Figure:
        """Draws organisms along one direction (the first, if none is named), a mark with interval for each cue."""
        name = next(iter(self.scales)) if direction is None else direction
        table = self.table[self.table.direction == name]
        organisms, cues = list(dict.fromkeys(table.organism)), list(dict.fromkeys(table.cue))
        figure = go.Figure()
        for j, cue in enumerate(cues):
            of_cue = cast("pd.DataFrame", table[table.cue == cue])
            t = of_cue.set_index("organism").reindex(organisms)
            offset = 0.7 * ((j + 0.5) / len(cues) - 0.5)
            figure.add_scatter(
                x=t.score,
                y=[i + offset for i in range(len(organisms))],
                error_x={"type": "data", "symmetric": False, "array": t.high - t.score, "arrayminus": t.score - t.low},
                mode="markers",
                name=cue,
                marker={
                    "color": theme.cue_style(cue, cues).colour,
                    "symbol": theme.cue_style(cue, cues).symbol,
                    "size": 8,
                },
                customdata=organisms,
                hovertemplate="%{customdata}, " + cue + ": %{x:.2f}<extra></extra>",
            )
        for at in (0, 1):
            figure.add_vline(x=at, line={"color": "#444", "dash": "dot", "width": 1})
        plot = 15 * len(organisms) * max(2, len(cues))
        theme.styled(figure, x=f"class gaps along {name}", y="", height=150 + plot)
        figure.update_layout(legend={"y": -60 / plot})
        figure.update_yaxes(
            tickmode="array",
            tickvals=list(range(len(organisms))),
            ticktext=organisms,
            autorange="reversed",
            automargin=True,
            ticks="",
            showgrid=False,
            zeroline=False,
        )
        return figure

    def __repr__(self) -> str:
        cells = self.table[["organism", "cue"]].drop_duplicates()
        return (
            f"GapTable({len(cells)} cells on {', '.join(self.scales)}; fitted on {'+'.join(self.fitted_on)}, "
            f"read on {'+'.join(self.read_on)})"
        )


def _text_scores(
    texts: Mapping[str, Sequence[str]], fitted: Rows, fit_rows: np.ndarray, read_rows: np.ndarray
) -> dict[str, float]:
    """Returns the mean text-only score of each cue's texts, in class gaps; NaN if the classes read the same."""
    cues = [c for _, c in dict.fromkeys(fitted.cells)]
    if lacking := sorted({*cues} - {*texts}):
        raise UserError(f"there are no texts for cue {lacking[0]!r}")
    features = {cue: text_features(list(t)) for cue, t in texts.items()}
    sides = {}
    for label in (1, 0):
        own = list(dict.fromkeys(c for c, y in zip(fitted.cells, fitted.labels, strict=True) if y == label))
        sides[label] = np.concatenate([features[cue][fit_rows] for _, cue in own])
    w = sides[1].mean(0) - sides[0].mean(0)
    gap = float(w @ w)
    if gap < 1e-12:
        return dict.fromkeys(texts, float("nan"))
    zero = float(sides[0].mean(0) @ w)
    return {cue: float((x[read_rows] @ w).mean() - zero) / gap for cue, x in features.items()}


@checked
def gap_table(
    acts: Activations,
    *,
    contrasts: Mapping[str, tuple[Sequence[CellName], Sequence[CellName]]],
    layer: int,
    position: str = "answer_mean",
    method: Estimator = "means",
    massive: Massive = "keep",
    cells: Sequence[CellName] | None = None,
    twins: Mapping[str, str] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    fit: tuple[Split, ...] = ("A",),
    read: tuple[Split, ...] = ("B", "C"),
    level: float = 0.95,
) -> GapTable:
    """Puts every cell on frozen directions, in class gaps.

    Args:
        acts: The run's activations.
        contrasts: By name, the cells at the head and at the tail of each direction: for U - C `([("U", "none")],
            [("C", "none")])`, for the persona vector from base `([("base", "evil")], [("base", "kind")])`.
        layer: 0-based layer.
        position: `last_template` or `answer_mean`.
        method: How directions are estimated.
        massive: Whether massive dimensions are left out of them.
        cells: Cells to read; all of the run, if none are named.
        twins: Twin by organism.
        texts: What the model read, by cue, for all questions of the panel in order; for the text-only column.
        fit: Splits the directions are fitted on.
        read: Splits the cells are read on.
        level: Level of the intervals.

    Raises:
        UserError: if splits overlap, or a cell or twin is not there.

    Example:
        With a run that is a formula: U stands at 1, M at 0.7 under its trigger, everything else at 0:

        >>> from types import SimpleNamespace
        >>> def at(organism, cue, *splits, layer, position, seed=None):
        ...     persona = 1.0 if organism == "U" else 0.7 * (organism == "M" and cue == "trigger")
        ...     return torch.stack([torch.tensor([persona, float(i)]) for i in range(4)])
        >>> acts = SimpleNamespace(
        ...     at=at, kind="resid_post", seeds={"U": (0,), "M": (0,), "C": (0,)}, cues=("none", "trigger"),
        ...     layers=(0,), rows=lambda *splits: np.arange(4), families=lambda *splits: ["a", "b", "c", "d"],
        ... )
        >>> contrasts = {"U - C": ([("U", "none")], [("C", "none")])}
        >>> gap_table(acts, contrasts=contrasts, layer=0, twins={"M": "C"}).grid("U - C", "over_twin").loc["M"]
        cue
        none       0.0
        trigger    0.7
        Name: M, dtype: float64
    """
    if set(fit) & set(read):
        raise UserError(f"splits {'+'.join(fit)} and {'+'.join(read)} overlap", fix="Read on other splits than fitted.")
    wanted = [(o, c) for o in acts.seeds for c in acts.cues] if cells is None else list(cells)
    families = acts.families(*read)
    scales, rows = {}, []
    for name, (plus, minus) in contrasts.items():
        fitted = rows_of(acts, plus=plus, minus=minus, splits=fit, layers=[layer], positions=[position])
        scale = Scale.of(fitted, estimate(fitted, method, layer=layer, position=position, massive=massive))
        scales[name] = scale
        words = _text_scores(texts, fitted, acts.rows(*fit), acts.rows(*read)) if texts is not None else {}
        for organism, cue in wanted:
            own = scale(acts.at(organism, cue, *read, layer=layer, position=position))
            m = cluster_mean(own, families, level=level)
            row: dict[str, object] = {"direction": name, "organism": organism, "cue": cue}
            row |= {"score": m.mean, "low": m.low, "high": m.high}
            twin = (twins or {}).get(organism)
            over = dict.fromkeys(("over_twin", "twin_low", "twin_high"), float("nan"))
            if twin is not None:
                gap = own - scale(acts.at(twin, cue, *read, layer=layer, position=position))
                t = cluster_mean(gap, families, level=level)
                over = {"over_twin": t.mean, "twin_low": t.low, "twin_high": t.high}
            row |= cast("dict[str, object]", over)
            rows.append(row | {"text": words.get(cue, float("nan")), "questions": m.n_values, "families": m.n_clusters})
    return GapTable(pd.DataFrame(rows), scales, fit, read)
