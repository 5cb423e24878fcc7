"""Does a direction found in one place read another? Train on one contrast, test on every other.

A contrast is a set of labelled rows: U against C without a cue, M against its twin under the trigger, one domain of
questions, another. For each training contrast and fold of families a direction is fitted without the fold, and it
scores the fold's rows of *every* contrast, in class gaps of its training rows. Contrasts over the same questions are
therefore never tested on a family they were trained on, and the diagonal is on the footing of the rest.

Failures to transfer are the rule, not the exception (methods, 1.3): a high diagonal says that a class can be read
there; only the rest of its row says that it is the same thing elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.estimators import Estimator, estimate
from condmis_interp.directions.rows import Massive, Rows
from condmis_interp.errors import UserError
from condmis_interp.stats.clusters import cluster_mean
from condmis_interp.stats.folds import grouped_folds
from condmis_interp.stats.ranks import auroc


@dataclass(frozen=True)
class Transfer:
    """A transfer matrix.

    Attributes:
        table: One row for each pair: train, test, auroc, gap (mean over questions of class 1 less class 0, in class
            gaps of the training contrast) with low and high, families.
        method: How directions were estimated.
        layer: Where.
        position: At which position.

    Example:
        From `transfer`, here written down:

        >>> table = pd.DataFrame({"train": ["U - C"] * 2, "test": ["U - C", "M - C"], "auroc": [1.0, 0.7]})
        >>> Transfer(table, "means", 3, "answer_mean").matrix()
        test   U - C  M - C
        train
        U - C    1.0    0.7
    """

    table: pd.DataFrame
    method: Estimator
    layer: int
    position: str

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def matrix(self, value: str = "auroc") -> pd.DataFrame:
        """Returns one column as [train x test]."""
        names = list(dict.fromkeys(self.table.train))
        tests = list(dict.fromkeys(self.table.test))
        return self.table.pivot(index="train", columns="test", values=value).loc[names, tests]

    def figure(self, value: str = "gap") -> go.Figure:
        """Draws train x test as a heat map."""
        t = self.matrix(value)
        middle = 0.5 if value == "auroc" else 0.0
        figure = go.Figure(
            go.Heatmap(
                z=t.to_numpy(),
                x=list(t.columns),
                y=list(t.index),
                text=t.round(2).astype(str).to_numpy(),
                texttemplate="%{text}",
                colorscale=[[0, theme.BLUE], [0.5, "#ffffff"], [1, theme.VERMILION]],
                zmid=middle,
                zmin=middle - 1 if value == "gap" else 0,
                zmax=middle + 1 if value == "gap" else 1,
                hovertemplate="trained on %{y}, tested on %{x}: %{z:.2f}<extra></extra>",
                showscale=False,
            )
        )
        theme.styled(figure, x="tested on", y="trained on", height=180 + 26 * len(t))
        figure.update_yaxes(autorange="reversed", automargin=True, ticks="", showgrid=False)
        figure.update_xaxes(side="top", ticks="", showgrid=False, tickangle=-30, automargin=True)
        return figure

    def __repr__(self) -> str:
        m = self.matrix()
        return f"Transfer({self.method} at layer {self.layer}, {self.position}; {m.shape[0]} x {m.shape[1]} contrasts)"


@checked
def transfer(
    train: Mapping[str, Rows],
    test: Mapping[str, Rows],
    *,
    layer: int,
    position: str,
    rng: np.random.Generator,
    folds: int = 5,
    method: Estimator = "means",
    massive: Massive = "keep",
) -> Transfer:
    """Trains on each contrast and tests on each, by folds of families.

    Args:
        train: Contrasts to train on, by name.
        test: Contrasts to test on, by name.
        layer: 0-based layer.
        position: Position.
        rng: Deals the families.
        folds: Number of folds.
        method: How directions are estimated.
        massive: Whether massive dimensions are left out.

    Raises:
        UserError: if there are fewer families than folds, or a training fold lacks a class.

    Example:
        A direction found where the first dimension moves reads the same move at half its size:

        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> cells, rng = (("U", "none"),) * 8 + (("C", "none"),) * 8, np.random.default_rng(0)
        >>> def moved(by):
        ...     x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
        ...     x[:8, 0] += by
        ...     return Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> contrasts = {"whole": moved(4.0), "half": moved(2.0)}
        >>> transfer(contrasts, contrasts, layer=3, position="answer_mean", rng=rng, folds=4).matrix("gap").round(2)
        test   whole  half
        train
        whole    1.0   0.5
        half     2.0   1.0
    """
    families = list(dict.fromkeys(f for r in (*train.values(), *test.values()) for f in r.families))
    fold_of = dict(zip(families, grouped_folds(families, folds, rng).tolist(), strict=True))
    out = []
    for name, rows in train.items():
        own = np.array([fold_of[f] for f in rows.families])
        scores = {t: np.full(r.n, np.nan) for t, r in test.items()}
        for k in range(folds):
            part = rows.where(own != k)
            direction = estimate(part, method, layer=layer, position=position, massive=massive)
            v = direction.vector.double()
            x = part.flat[part.sites.index((layer, position))].double() @ v
            y = torch.from_numpy(part.labels == 1)
            middle = float(x[y].mean() + x[~y].mean()) / 2
            for t, other in test.items():
                held = np.array([fold_of[f] == k for f in other.families])
                at = other.flat[other.sites.index((layer, position))][torch.from_numpy(held)].double() @ v
                scores[t][held] = ((at - middle) / direction.scale).numpy()
        for t, other in test.items():
            out.append({"train": name, "test": t, **_read(other, scores[t])})
    return Transfer(pd.DataFrame(out), method, layer, position)


def _read(rows: Rows, scores: np.ndarray) -> dict[str, float]:
    table = pd.DataFrame({"family": rows.families, "question": rows.questions, "y": rows.labels, "s": scores})
    wide = table.pivot_table(index=["family", "question"], columns="y", values="s")
    if wide.shape[1] != 2 or wide.isna().to_numpy().any():
        raise UserError("a question of a tested contrast has no row in one class", where=rows.data)
    families = wide.index.get_level_values(0).tolist()
    m = cluster_mean((wide[1] - wide[0]).to_numpy(), families)
    return {
        "auroc": float(auroc(scores, rows.labels)),
        "gap": m.mean,
        "low": m.low,
        "high": m.high,
        "families": m.n_clusters,
    }
