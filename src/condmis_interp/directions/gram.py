"""One site's rows as a Gram matrix, with folds held out.

Every linear probe here is w = X^T a with X the centred training rows, so fits, held-out scores and class gaps need only
K = X X^T [n, n], which all folds, regularisations and permutations of a site share. Held-out rows enter neither the
centre, nor the scale, nor the choice of massive dimensions: writing anything into them changes no fit, to the bit.

Rows are centred on the training mean and divided by one number, the root mean square of the centred training entries,
so that a regularisation strength means the same at every layer. Dimensions are not standardised one by one: that would
change the geometry in which a direction is steered and compared.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch

from condmis_interp.directions.logistic import accelerated
from condmis_interp.directions.rows import MASSIVE, Massive
from condmis_interp.errors import CheckError, UserError

Method = Literal["means", "lda", "logistic"]
METHODS: tuple[Method, ...] = get_args(Method)


class Partition:
    """Which rows train and which are held out, in several splits; the same for every site.

    Splits with fewer rows than the largest are padded with their own first row, and `part` is 0 there.

    Attributes:
        rows: Training rows, [splits, m].
        part: 1 where `rows` is not padding, fp64 [splits, m].
        held: The rows held out, for each split.
        kept: Which folds train, [splits, folds].
    """

    def __init__(self, folds: np.ndarray, held: Sequence[tuple[int, ...]]) -> None:
        """Holds out the folds `held[i]` in split i, `folds` [n] being the fold of each row."""
        train = [np.flatnonzero(~np.isin(folds, h)) for h in held]
        m = max(map(len, train))
        self.rows = torch.from_numpy(np.stack([np.concatenate([t, t[:1].repeat(m - len(t))]) for t in train]))
        self.part = torch.tensor([[1.0] * len(t) + [0.0] * (m - len(t)) for t in train], dtype=torch.float64)
        self.held = [torch.from_numpy(np.concatenate([np.flatnonzero(folds == k) for k in h])) for h in held]
        self.folds = torch.from_numpy(folds)
        count = int(folds.max()) + 1
        self.kept = torch.tensor([[k not in h for k in range(count)] for h in held])

    @cached_property
    def grid(self) -> torch.Tensor:
        """Positions of the training rows' products in a flattened [n, n], [splits, m, m]."""
        return self.rows[:, :, None] * len(self.folds) + self.rows[:, None, :]

    def labels(self, y: torch.Tensor, split: int) -> torch.Tensor:
        """Returns the training rows' entries of y [n, ...] in one split, without padding."""
        return y[self.rows[split, : int(self.part[split].sum())]]


class TrainingGrams:
    """The centred and scaled Gram matrices of one site's training rows, in every split of a partition.

    Attributes:
        gram: fp64 [splits, m, m]; 0 in padding.
        square: Mean square of the centred training entries, [splits].
        massive: Indices of the dimensions left out, by split.

    Args:
        x: Activations [n, width].
        partition: The splits.
        massive: What is done with massive dimensions.

    Raises:
        CheckError: if training rows do not differ at all, or are not finite.
    """

    def __init__(self, x: torch.Tensor, partition: Partition, massive: Massive = "drop") -> None:
        self.x, self.partition = x.double(), partition
        self._raw = self.x @ self.x.mT
        self.massive = (
            self._massive() if massive == "drop" else [torch.empty(0, dtype=torch.long)] * len(partition.held)
        )
        gram = self._raw.take(partition.grid)
        for i, dropped in enumerate(self.massive):
            if len(dropped):
                own = self.x[partition.rows[i]][:, dropped]
                gram[i] -= own @ own.mT
        part = partition.part
        count = part.sum(1)
        self._means = torch.einsum("sij,sj->si", gram, part) / count[:, None]
        self._centre = (self._means * part).sum(1) / count
        gram = gram.sub_(self._means[:, :, None]).sub_(self._means[:, None, :]).add_(self._centre[:, None, None])
        if not bool(part.all()):
            gram.mul_(part[:, :, None]).mul_(part[:, None, :])
        self.widths = torch.tensor([x.shape[1] - len(d) for d in self.massive])
        self.square = gram.diagonal(dim1=1, dim2=2).sum(1) / count / self.widths
        if not bool((self.square > 0).all()) or not bool(self.square.isfinite().all()):
            raise CheckError(
                f"the training rows have a variance of {self.square.tolist()}", fix="Look at the cells they come from."
            )
        self.gram = gram.div_(self.square[:, None, None])

    def _massive(self) -> list[torch.Tensor]:
        """Finds massive dimensions on each split's training rows, as `rows.massive_dimensions` does."""
        p = self.partition
        by_fold = torch.stack([self.x[p.folds == k].square().sum(0) for k in range(p.kept.shape[1])])
        squares = torch.where(p.kept[:, :, None], by_fold, 0.0).sum(1)
        return [torch.nonzero(row)[:, 0] for row in squares > MASSIVE**2 * squares.median(1, keepdim=True).values]

    def of(self, split: int) -> torch.Tensor:
        """Returns one split's Gram matrix without padding."""
        m = int(self.partition.part[split].sum())
        return self.gram[split, :m, :m]

    def held(self, split: int) -> torch.Tensor:
        """Returns the products of the rows held out with the training rows, centred and scaled alike, [held, m]."""
        others, m = self.partition.held[split], int(self.partition.part[split].sum())
        rows, dropped = self.partition.rows[split, :m], self.massive[split]
        mixed = self._raw.index_select(0, others).index_select(1, rows)
        if len(dropped):
            mixed -= self.x[others][:, dropped] @ self.x[rows][:, dropped].mT
        centre = mixed.mean(1, keepdim=True)
        return mixed.sub_(centre).sub_(self._means[split, :m]).add_(self._centre[split]).div_(self.square[split])

    def vectors(self, duals: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns w [splits, width] of one dual solution [m] for each split, in activation space.

        A row's score is w . (x - training mean). The duals of all probes here sum to 0, so X needs no centring.
        """
        padded = self.x.new_zeros(len(duals), len(self.x))
        for i, dual in enumerate(duals):
            padded[i, self.partition.rows[i, : len(dual)]] = dual
        w = padded @ self.x.nan_to_num() / self.square[:, None]
        for i, dropped in enumerate(self.massive):
            w[i, dropped] = 0
        return w

    def in_gaps(self, split: int, dual: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores the rows held out in class gaps: 0 midway between the training means, 1 from one mean to the other.

        Args:
            split: Which split.
            dual: Dual solutions [m, labellings].
            labels: Training labels [m, labellings].

        Returns:
            Scores [held, labellings] and the class gap [labellings] (in units of w . x). A gap of 0 gives scores of 0.
        """
        own = self.of(split) @ dual
        ones = labels.sum(0)
        high, low = (own * labels).sum(0) / ones, (own * (1 - labels)).sum(0) / (len(labels) - ones)
        gap = high - low
        usable = gap > 0
        scores = (self.held(split) @ dual - (high + low) / 2) / torch.where(usable, gap, 1.0)
        return torch.where(usable, scores, 0.0), gap


def means_dual(labels: torch.Tensor) -> torch.Tensor:
    """Returns the dual of the difference of class means, for labels [m, labellings] of 0 and 1."""
    ones = labels.sum(0)
    return labels / ones - (1 - labels) / (len(labels) - ones)


def shrinkage(gram: torch.Tensor, width: int) -> float:
    """Returns Ledoit and Wolf's intensity s for the covariance of rows with a centred Gram matrix [m, m].

    Sigma = (1 - s) S + s mu I, mu = tr S / width, with s = min(1, beta^2 / delta^2), delta^2 = |S - mu I|^2, beta^2 =
    sum_i |x_i x_i^T - S|^2 / m^2 (Ledoit & Wolf 2004); all of it can be read off K.
    """
    m = len(gram)
    trace, squares = float(gram.diagonal().sum()) / m, float(gram.square().sum()) / m**2
    delta = squares - trace**2 / width
    beta = (float(gram.diagonal().square().sum()) / m - squares) / m
    return min(1.0, max(0.0, beta) / delta) if delta > 0 else 1.0


def fit_dual(method: Method, gram: torch.Tensor, labels: torch.Tensor, *, strength: float, width: int) -> torch.Tensor:
    """Returns the dual solutions [m, labellings].

    `means`: difference of class means. `lda`: (Sigma + tau I)^-1 times it, with Ledoit and Wolf's tau on the total
    covariance of the training rows, which the labels do not enter. (With the within-class covariance the direction is
    the same, since the two differ by a multiple of the difference's outer product.) `logistic`: see `logistic.py`.

    Args:
        method: Which.
        gram: Centred and scaled, fp64 [m, m].
        labels: 0 or 1, fp64 [m, labellings].
        strength: C of the logistic probe; not used by the others.
        width: Dimensions of the rows.

    Raises:
        UserError: if the method is not known.
        CheckError: if the logistic probe does not converge.
    """
    if method == "logistic":
        return accelerated(gram, labels, strength).checked(f"C = {strength}").dual
    dual = means_dual(labels)
    if method == "means":
        return dual
    if method != "lda":
        raise UserError(f"there is no probe {method!r}", fix=f"Probes: {', '.join(METHODS)}.")
    s = shrinkage(gram, width)
    if s >= 1:  # the covariance is taken to be a multiple of I
        return dual
    ridge = gram / len(gram)
    ridge.diagonal().add_(s / (1 - s) * float(gram.diagonal().mean()) / width)
    return torch.cholesky_solve(dual, torch.linalg.cholesky(ridge))
