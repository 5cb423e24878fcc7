"""Can the class be read at all? Nested cross-validation with a permutation null through the whole pipeline.

For each outer fold k, layer, position and regularisation are chosen on the other folds (inner folds are those same
folds: the fit without folds j and k scores fold j for k, and fold k for j); the probe is refitted there at the chosen
site and scores fold k in class gaps. The statistic is the AUROC of all held-out scores. Every permutation of the labels
goes through all of it, choices included. Without that the best of 28 layers reaches an AUROC above .7 where nothing is
to be found, and grouped cross-validation is biased below .5 (methods, 1.4).

Inner ties are common where a class can be read perfectly; they go to the site with the larger standardised gap.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.gram import Method, SiteGram, Split, TrainingGram, fit_dual
from condmis_interp.directions.rows import Massive, Rows
from condmis_interp.stats.clusters import ClusterMean, cluster_mean
from condmis_interp.stats.folds import check_folds
from condmis_interp.stats.permutation import PermutationP, labellings, permutation_p
from condmis_interp.stats.ranks import auroc

STRENGTHS = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class ProbeTest:
    """A nested probe and its null.

    Attributes:
        rows: What was read.
        method: Which probe.
        auroc: Of the held-out scores.
        null: AUROC under each permutation of the labels, through the whole pipeline.
        p: Of `auroc` among them.
        scores: Held-out scores in class gaps, [n].
        gap: Mean over questions of class 1 less class 0, held out, in class gaps, with an interval clustered by family;
            None if questions do not hold both classes.
        chosen: One row for each outer fold: fold, layer, position, strength, inner AUROC.
        by_site: One row for each site: layer, position, inner AUROC averaged over the outer folds, the 95th percentile
            of the same over permutations.
        folds: Fold of each row.

    Example:
        From `probe_test`, here written down:

        >>> q, cells = ("q0", "q0"), (("U", "none"), ("C", "none"))
        >>> x, at = torch.tensor([[2.0], [0.0]])[None, None], ((3,), ("answer_mean",))
        >>> rows = Rows(x, np.array([1, 0]), q, q, cells, *at, "resid_post", "U - C")
        >>> held = {"scores": np.array([0.6, -0.4]), "folds": np.zeros(2, dtype=int)}
        >>> found = ProbeTest(rows, "means", 1.0, np.empty(0), None, gap=None, chosen=None, by_site=None, **held)
        >>> found
        ProbeTest(means; U - C; AUROC 1.000, no null asked for)
        >>> found.to_pandas()[["organism", "cue", "label", "score"]]
          organism   cue  label  score
        0        U  none      1    0.6
        1        C  none      0   -0.4
    """

    rows: Rows
    method: Method
    auroc: float
    null: np.ndarray
    p: PermutationP | None
    scores: np.ndarray
    gap: ClusterMean | None
    chosen: pd.DataFrame
    by_site: pd.DataFrame
    folds: np.ndarray

    def to_pandas(self) -> pd.DataFrame:
        """Returns the held-out scores: organism, cue, family, question, label, fold, score."""
        return pd.DataFrame(
            {
                "organism": [o for o, _ in self.rows.cells],
                "cue": [c for _, c in self.rows.cells],
                "family": self.rows.families,
                "question": self.rows.questions,
                "label": self.rows.labels,
                "fold": self.folds,
                "score": self.scores,
            }
        )

    def figure(self) -> go.Figure:
        """Draws the AUROC against its null."""
        figure = go.Figure()
        figure.add_histogram(
            x=self.null, name=f"{len(self.null)} permutations", marker={"color": theme.GREY}, nbinsx=30
        )
        figure.add_vline(
            x=self.auroc,
            line={"color": theme.BLUE, "width": 2.5},
            annotation={"text": f"observed {self.auroc:.3f}", "font": {"color": theme.BLUE}},
            annotation_position="top left" if self.auroc > 0.75 else "top right",
        )
        return theme.styled(figure, x="AUROC, held out, site chosen inside the fold", y="permutations", height=340)

    def __repr__(self) -> str:
        p = f"p {self.p.p:.3g} of {self.p.labellings}" if self.p else "no null asked for"
        null = f", null {np.mean(self.null):.3f} [95 % below {np.quantile(self.null, 0.95):.3f}]" if self.p else ""
        return f"ProbeTest({self.method}; {self.rows.data}; AUROC {self.auroc:.3f}, {p}{null})"


def _criterion(scores: torch.Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns AUROC and a tie-breaker in [0, 1) for scores [n, ..., labellings] and labels [labellings, n]."""
    s = np.ascontiguousarray(np.moveaxis(scores.numpy(), 0, -1))
    area = auroc(s, labels)
    ones, zeros = labels.sum(-1), (1 - labels).sum(-1)
    high, low = (s * labels).sum(-1) / ones, (s * (1 - labels)).sum(-1) / zeros
    # sum of squares within the classes; the floor is for scores that are all alike
    spread = np.sqrt((np.square(s).sum(-1) - ones * high**2 - zeros * low**2).clip(1e-24) / (ones + zeros))
    distance = ((high - low) / spread).clip(0)
    return area, distance / (1 + distance)


@checked
def probe_test(
    rows: Rows,
    folds: np.ndarray,
    *,
    rng: np.random.Generator,
    method: Method = "logistic",
    strengths: Sequence[float] = STRENGTHS,
    permutations: int = 200,
    units: Sequence[Hashable] | None = None,
    massive: Massive = "drop",
) -> ProbeTest:
    """Reads a class with layer, position and regularisation chosen inside the folds, and tests it by permutation.

    Args:
        rows: Labelled rows.
        folds: Fold of each row, [n], from `stats.grouped_folds`; three or more.
        rng: Draws the permutations.
        method: `means`, `lda` or `logistic`.
        strengths: Candidate C of the logistic probe.
        permutations: Permutations of the labels; 0 for none.
        units: Exchangeable unit of each row; families, if none are given. See `stats.permutation`: with few families
            the p-values are few.
        massive: Whether massive dimensions are left out.

    Raises:
        UserError: if the labels have no permutation that keeps the design.
        CheckError: if a family lies in two folds, or a fit does not converge.

    Example:
        Two cells of eight questions, the first shifted; the labels are permuted question by question:

        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:8, 0] += 9
        >>> cells, rng = (("U", "none"),) * 8 + (("C", "none"),) * 8, np.random.default_rng(0)
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> probe_test(rows, np.arange(16) % 4, rng=rng, method="means", permutations=50)
        ProbeTest(means; U - C; AUROC 1.000, p ... of ..., null ... [95 % below ...])
    """
    check_folds(folds, rows.families)
    exchangeable = rows.families if units is None else units
    found = labellings(rows.labels, exchangeable, count=max(permutations, 1), rng=rng)
    exhaustive = found.exhaustive
    every = found.labels if permutations else found.labels[:1]
    y = torch.from_numpy(every.T.copy()).double()
    grid = tuple(strengths) if method == "logistic" else (1.0,)
    count, m = int(folds.max()) + 1, len(every)
    flat = rows.flat
    inner = np.empty((count, len(flat), len(grid), m))
    order = np.empty_like(inner)
    # a fit without folds j and k scores j where k is the outer fold, and k where j is: half the fits
    pairs = list(itertools.combinations(range(count), 2))
    splits = [Split.of(folds, pair) for pair in pairs]
    where = [torch.from_numpy(np.flatnonzero(folds == k)) for k in range(count)]
    for i, x in enumerate(flat):
        site = SiteGram(x, folds, massive)
        scored = torch.zeros(count, rows.n, len(grid), m, dtype=torch.float64)
        for split, (j, k) in zip(splits, pairs, strict=True):
            labels, part = y[split.rows], TrainingGram(site, split)
            for g, strength in enumerate(grid):
                dual = fit_dual(method, part.gram, labels, strength=strength, width=part.width)
                s, _ = part.in_gaps(dual, labels)
                scored[k, where[j], g], scored[j, where[k], g] = s.split([len(where[j]), len(where[k])])
        for k in range(count):
            kept = folds != k
            area, tie = _criterion(scored[k, torch.from_numpy(kept)], every[:, kept])
            # AUROC has steps of 1 / (ones x zeros), far above 1e-7: the tie-breaker orders nothing but ties
            inner[k, i], order[k, i] = area, area + 1e-7 * tie
    best = order.reshape(count, -1, m).argmax(1)  # [folds, labellings]
    scores = np.zeros((m, rows.n))
    outer = [Split.of(folds, (k,)) for k in range(count)]
    # refitted site by site, and only those that some labelling chose; each labelling at the site that it chose
    for i in np.unique(best // len(grid)):
        site = SiteGram(flat[i], folds, massive)
        for k, split in enumerate(outer):
            part = TrainingGram(site, split)
            for g, strength in enumerate(grid):
                which = np.flatnonzero(best[k] == i * len(grid) + g)
                if len(which):
                    labels = y[split.rows][:, torch.from_numpy(which)]
                    dual = fit_dual(method, part.gram, labels, strength=strength, width=part.width)
                    scores[np.ix_(which, where[k].numpy())] = part.in_gaps(dual, labels)[0].mT.numpy()
    statistics = auroc(scores, every)
    observed = [divmod(int(c), len(grid)) for c in best[:, 0]]
    chosen = pd.DataFrame(
        [
            {
                "fold": k,
                "layer": rows.sites[i][0],
                "position": rows.sites[i][1],
                "strength": grid[g] if method == "logistic" else np.nan,
                "inner_auroc": inner[k, i, g, 0],
            }
            for k, (i, g) in enumerate(observed)
        ]
    )
    best_strength = inner.max(2).mean(0)  # [sites, labellings]
    by_site = pd.DataFrame(rows.sites, columns=["layer", "position"]).assign(
        auroc=best_strength[:, 0], null_95=np.quantile(best_strength[:, 1:], 0.95, axis=1) if m > 1 else np.nan
    )
    return ProbeTest(
        rows,
        method,
        float(statistics[0]),
        statistics[1:],
        permutation_p(statistics, exhaustive=exhaustive, rng=rng) if m > 1 else None,
        scores[0],
        _paired_gap(rows, scores[0]),
        chosen,
        by_site,
        folds,
    )


def _paired_gap(rows: Rows, scores: np.ndarray) -> ClusterMean | None:
    """Returns the mean difference of the classes within questions, clustered by family."""
    table = pd.DataFrame(
        {"family": rows.families, "question": rows.questions, "label": rows.labels, "score": scores}
    ).pivot_table(index=["family", "question"], columns="label", values="score")
    if table.isna().to_numpy().any() or table.shape[1] < 2 or table.index.get_level_values(0).nunique() < 2:
        return None
    return cluster_mean((table[1] - table[0]).to_numpy(), table.index.get_level_values(0).tolist())
