"""Linear probes at every layer and position, cross-validated by family.

| probe | direction | good at |
|---|---|---|
| `means` | difference of class means | steering; nothing to tune |
| `lda` | shrunk covariance^-1 x difference of means; Marks & Tegmark's mass-mean probe (2023) | reading |
| `logistic` | L2-regularised logistic regression, scikit-learn's objective | reading |

Every site and fold is fitted on its Gram matrix (`gram.py`, `logistic.py`), sites side by side in torch's threads. A
fold's direction scores the rows it was not fitted on, in class gaps of its training rows: 0 midway between the training
means, 1 from one mean to the other. AUROC is over all held-out scores of a site together. It says how well a class can
be read, not that the direction causes anything, and it may not be compared with 0.5: `nested.py` gives its null.

`sparse_logistic` is the L1 probe, at one site, by scikit-learn.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from sklearn.linear_model import LogisticRegression

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.gram import Method, SiteGram, Split, TrainingGram, fit_dual
from condmis_interp.directions.logistic import newton
from condmis_interp.directions.rows import Massive, Rows
from condmis_interp.errors import CheckError
from condmis_interp.stats.folds import check_folds
from condmis_interp.stats.ranks import auroc
from condmis_interp.threads import side_by_side

_TOGETHER = 15
"""Most sites solved side by side: more take fewer calls, fewer stay in the processor's cache."""
POSITION_DASHES = ("solid", "dot", "dash", "dashdot")


@dataclass(frozen=True)
class ProbeFits:
    """Probes at every site and fold.

    Attributes:
        rows: What they were fitted on.
        method: Which probe.
        strength: C of the logistic probe.
        folds: Fold of each row, [n].
        vectors: w in activation space, fp64 [sites, folds, width].
        gaps: Class gap of the training rows along w, [sites, folds].
        scores: Held-out scores in class gaps, [sites, n].
        auroc: Over all held-out scores of a site, [sites].
        massive: Massive dimensions left out in any fold, by site.
        residual: How far the worst logistic fit is from its optimum (0 for the others).
        iterations: Iterations of the slowest logistic fit.

    Example:
        From `fit_probes`:

        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:8, 0] += 9
        >>> cells = (("U", "none"),) * 8 + (("C", "none"),) * 8
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> fits = fit_probes(rows, np.arange(16) % 4, method="lda")
        >>> fits.direction(3, "answer_mean", fold=0).data
        'U - C, all folds but 0'
        >>> fits.to_pandas()
           layer     position  auroc  massive
        0      3  answer_mean    1.0        0
    """

    rows: Rows
    method: Method
    strength: float
    folds: np.ndarray
    vectors: torch.Tensor
    gaps: np.ndarray
    scores: np.ndarray
    auroc: np.ndarray
    massive: tuple[tuple[int, ...], ...]
    residual: float
    iterations: int

    def direction(self, layer: int, position: str, fold: int) -> Direction:
        """Returns a fold's direction; its scale is the distance of the class means along it."""
        i = self.rows.sites.index((layer, position))
        w = self.vectors[i, fold]
        # the class means are gap / |w| apart along w / |w|: with that length a dose of 1 moves one to the other
        return Direction.of(
            w * float(self.gaps[i, fold]) / float(w.norm()) ** 2,
            site=self.rows.site(i),
            method=self.method,
            data=f"{self.rows.data}, all folds but {fold}",
            position=position,
            splits=self.rows.splits,
            n=int((self.folds != fold).sum()),
        )

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each site: layer, position, auroc, massive (number of dimensions left out)."""
        sites = pd.DataFrame(self.rows.sites, columns=["layer", "position"])
        return sites.assign(auroc=self.auroc, massive=[len(m) for m in self.massive])

    def figure(self) -> go.Figure:
        """Draws AUROC by layer, a line for each position."""
        figure = go.Figure()
        for (position, t), dash in zip(
            self.to_pandas().groupby("position", sort=False), POSITION_DASHES * 9, strict=False
        ):
            figure.add_scatter(
                x=t.layer, y=t.auroc, name=str(position), mode="lines+markers", line={"color": theme.BLUE, "dash": dash}
            )
        return theme.styled(figure, x="layer", y=f"held-out AUROC, {self.method} probe")

    def __repr__(self) -> str:
        best = int(np.nanargmax(self.auroc))
        layer, position = self.rows.sites[best]
        return (
            f"ProbeFits({self.method}; {self.rows.data}; {len(self.auroc)} sites x {self.folds.max() + 1} folds; best "
            f"AUROC {self.auroc[best]:.3f} at layer {layer}, {position} (chosen after the fact))"
        )


@checked
def fit_probes(
    rows: Rows, folds: np.ndarray, *, method: Method = "logistic", strength: float = 0.01, massive: Massive = "drop"
) -> ProbeFits:
    """Fits a probe at every site and fold and scores the held-out rows.

    Args:
        rows: Labelled rows.
        folds: Fold of each row, [n], from `stats.grouped_folds`.
        method: `means`, `lda` or `logistic`.
        strength: C of the logistic probe, for entries with a root mean square of 1 (the default of scikit-learn is 1;
            with fewer rows than dimensions less reads better).
        massive: Whether massive dimensions are left out.

    Raises:
        UserError: if the method is not known.
        CheckError: if a family lies in two folds, or a fold's training rows lack a class.

    Example:
        Two cells of eight questions, the first shifted; the questions are dealt to four folds:

        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:8, 0] += 9
        >>> cells = (("U", "none"),) * 8 + (("C", "none"),) * 8
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> fit_probes(rows, np.arange(16) % 4)
        ProbeFits(logistic; U - C; 1 sites x 4 folds; best AUROC 1.000 at layer 3, answer_mean (chosen after the fact))
    """
    check_folds(folds, rows.families)
    labels = torch.from_numpy(rows.labels).double()
    count = int(folds.max()) + 1
    for k in range(count):
        if len(set(rows.labels[folds != k].tolist())) < 2:
            raise CheckError(f"without fold {k} the rows have one class alone", fix="Use other folds or fewer.")
    splits = [Split.of(folds, (k,)) for k in range(count)]

    def fit(x: torch.Tensor) -> _Fits:
        sites = SiteGram(x, folds, massive)
        dual = torch.zeros(len(x), count, rows.n, dtype=torch.float64)
        gaps, squares = torch.empty(2, len(x), count, dtype=torch.float64)
        left_out = torch.empty(len(x), count, x.shape[-1], dtype=torch.bool)
        scores = torch.empty(len(x), rows.n, dtype=torch.float64)
        residual, iterations = 0.0, 0
        for k, split in enumerate(splits):
            part, own = TrainingGram(sites, split), labels[split.rows]
            if method == "logistic":
                solved = newton(part.gram, own.expand(len(x), -1), strength).checked(f"C = {strength}")
                residual = max(residual, float(solved.residual.max()))
                iterations = max(iterations, solved.iterations)
                found = solved.dual[..., None]
            else:
                found = fit_dual(method, part.gram, own[:, None], strength=strength, width=part.width)
            in_gaps, gaps[:, k : k + 1] = part.in_gaps(found, own[:, None])
            scores[:, split.held], dual[:, k, split.rows] = in_gaps[..., 0], found[..., 0]
            squares[:, k], left_out[:, k] = part.square, part.massive
        # held-out rows have a dual of 0, so one product gives the vectors of all folds
        w = (dual @ sites.x / squares[..., None]).masked_fill_(left_out, 0)
        return _Fits(w, gaps, scores, left_out.any(1), residual, iterations)

    threads = torch.get_num_threads()
    # equal parts, as many in every round as there are threads, so that none waits for another's last one
    rounds = math.ceil(len(rows.flat) / (_TOGETHER * threads))
    found = side_by_side(fit, rows.flat.tensor_split(min(rounds * threads, len(rows.flat))))
    scores = torch.cat([f.scores for f in found]).numpy()
    return ProbeFits(
        rows=rows,
        method=method,
        strength=strength,
        folds=folds,
        vectors=torch.cat([f.vectors for f in found]),
        gaps=torch.cat([f.gaps for f in found]).numpy(),
        scores=scores,
        auroc=auroc(scores, rows.labels),
        massive=tuple(tuple(torch.nonzero(m)[:, 0].tolist()) for f in found for m in f.massive),
        residual=max(f.residual for f in found),
        iterations=max(f.iterations for f in found),
    )


@dataclass(frozen=True)
class _Fits:
    """What is found at some sites, with a leading dimension of sites.

    Attributes:
        vectors: w, [sites, folds, width].
        gaps: Class gaps of the training rows, [sites, folds].
        scores: Held-out scores, [sites, n].
        massive: Which dimensions are left out in any fold, bool [sites, width].
        residual: Of the worst logistic fit.
        iterations: Of the slowest.
    """

    vectors: torch.Tensor
    gaps: torch.Tensor
    scores: torch.Tensor
    massive: torch.Tensor
    residual: float
    iterations: int


@checked
def sparse_logistic(
    rows: Rows, *, layer: int, position: str, strength: float = 0.1, generator: torch.Generator
) -> Direction:
    """Returns the direction of an L1-regularised logistic probe at one site (scikit-learn, SAGA).

    Use it to ask how few dimensions carry a class; correlated dimensions share one weight arbitrarily, so don't steer
    with it. Entries are centred and divided by their root mean square, as everywhere here.

    Args:
        rows: Labelled rows.
        layer: 0-based layer.
        position: Position.
        strength: C.
        generator: Seeds SAGA's order of rows.

    Raises:
        CheckError: if every weight is 0.

    Example:
        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:8, 0] += 9
        >>> cells = (("U", "none"),) * 8 + (("C", "none"),) * 8
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> sparse_logistic(rows, layer=3, position="answer_mean", generator=torch.Generator().manual_seed(0)).vector
        tensor([1., 0., 0.])
    """
    i = rows.sites.index((layer, position))
    x = rows.flat[i].double().numpy()
    x = x - x.mean(0)
    x = x / np.sqrt(np.square(x).mean())  # so that C means the same at every layer
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    probe = LogisticRegression(C=strength, l1_ratio=1.0, solver="saga", tol=1e-4, max_iter=5000, random_state=seed)
    w = torch.from_numpy(probe.fit(x, rows.labels).coef_[0])
    return Direction.of(
        w,
        site=rows.site(i),
        method=f"logistic, L1, C = {strength}, {int((w != 0).sum())} dimensions",
        data=rows.data,
        position=position,
        splits=rows.splits,
        n=rows.n,
    )
