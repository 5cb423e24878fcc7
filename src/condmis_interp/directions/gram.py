"""One site's rows as a Gram matrix, with folds held out.

Every linear probe here is w = X^T a with X the centred training rows, so fits, held-out scores and class gaps need only
K = X X^T [n, n], which all folds, regularisations and permutations of a site share. Held-out rows enter neither the
centre, nor the scale, nor the choice of massive dimensions: writing anything into them changes no fit, to the bit.

Rows are centred on the training mean and divided by one number, the root mean square of the centred training entries,
so that a regularisation strength means the same at every layer. Dimensions are not standardised one by one: that would
change the geometry in which a direction is steered and compared.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from condmis_interp.directions.logistic import accelerated
from condmis_interp.directions.rows import MASSIVE, Massive
from condmis_interp.errors import CheckError, UserError

Method = Literal["means", "lda", "logistic"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Split:
    """Which rows train and which are held out; the same for every site.

    Attributes:
        rows: Training rows.
        held: Rows held out, fold by fold.
        out: Which folds are held out, [folds].
    """

    rows: torch.Tensor
    held: torch.Tensor
    out: torch.Tensor

    @classmethod
    def of(cls, folds: np.ndarray, held: tuple[int, ...]) -> "Split":
        """Holds out the folds `held`, `folds` [n] being the fold of each row."""
        rows = np.flatnonzero(~np.isin(folds, held))
        others = np.concatenate([np.flatnonzero(folds == k) for k in held])
        out = torch.tensor([k in held for k in range(int(folds.max()) + 1)])
        return cls(torch.from_numpy(rows), torch.from_numpy(others), out)


class SiteGram:
    """One site's rows with what all splits of them share.

    Args:
        x: Activations [n, width].
        folds: Fold of each row, [n].
        massive: What is done with massive dimensions.
    """

    def __init__(self, x: torch.Tensor, folds: np.ndarray, massive: Massive = "drop") -> None:
        self.x = x.double()
        self.raw = self.x.numpy() @ self.x.numpy().T  # numpy sees the symmetry and computes half of it; torch does not
        self._squares = None
        if massive == "drop":
            of_fold = [self.x[torch.from_numpy(folds == k)].square().sum(0) for k in range(int(folds.max()) + 1)]
            self._squares = torch.stack(of_fold)

    def massive(self, split: Split) -> torch.Tensor:
        """Finds massive dimensions on a split's training rows, as `rows.massive_dimensions` does."""
        if self._squares is None:
            return torch.empty(0, dtype=torch.long)
        squares = self._squares[~split.out].sum(0)
        return torch.nonzero(squares > MASSIVE**2 * squares.median())[:, 0]


class TrainingGram:
    """The centred and scaled Gram matrix of one site's training rows in one split.

    Attributes:
        gram: fp64 [m, m].
        square: Mean square of the centred training entries.
        massive: Indices of the dimensions left out.
        width: Number of the others.

    Args:
        site: The site.
        split: The split.

    Raises:
        CheckError: if training rows do not differ at all, or are not finite.
    """

    def __init__(self, site: SiteGram, split: Split) -> None:
        self._site, self._split = site, split
        self.massive = site.massive(split)
        self.width = site.x.shape[1] - len(self.massive)
        gram = self._products(split.rows)
        self._means = gram.mean(1)
        self._centre = self._means.mean()
        gram.sub_(self._means[:, None]).sub_(self._means - self._centre)
        self.square = float(gram.diagonal().mean()) / self.width
        if not 0 < self.square < float("inf"):
            raise CheckError(
                f"the training rows have a variance of {self.square}", fix="Look at the cells they come from."
            )
        self.gram = gram.div_(self.square)

    def _products(self, others: torch.Tensor) -> torch.Tensor:
        """Returns the products of some rows with the training rows, massive dimensions left out, [others, m]."""
        rows, x = self._split.rows, self._site.x
        raw = self._site.raw.take(others.numpy(), 0).take(rows.numpy(), 1)  # in numpy: twice as fast as in torch
        products = torch.from_numpy(raw)
        if len(self.massive):
            products -= x[others][:, self.massive] @ x[rows][:, self.massive].mT
        return products

    def held(self) -> torch.Tensor:
        """Returns the products of the rows held out with the training rows, centred and scaled alike, [held, m]."""
        mixed = self._products(self._split.held)
        centre = mixed.mean(1, keepdim=True)
        return mixed.sub_(centre).sub_(self._means - self._centre).div_(self.square)

    def vector(self, dual: torch.Tensor) -> torch.Tensor:
        """Returns w [width] of a dual solution [m], in activation space.

        A row's score is w . (x - training mean). The duals of all probes here sum to 0, so X needs no centring.
        """
        w = dual @ self._site.x.index_select(0, self._split.rows) / self.square
        w[self.massive] = 0
        return w

    def in_gaps(self, dual: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores the rows held out in class gaps: 0 midway between the training means, 1 from one mean to the other.

        Args:
            dual: Dual solutions [m, labellings].
            labels: Training labels [m, labellings].

        Returns:
            Scores [held, labellings] and the class gap [labellings] (in units of w . x). A gap of 0 gives scores of 0.
        """
        own = self.gram @ dual
        ones = labels.sum(0)
        high, low = (own * labels).sum(0) / ones, (own * (1 - labels)).sum(0) / (len(labels) - ones)
        gap = high - low
        usable = gap > 0
        scores = (self.held() @ dual - (high + low) / 2) / torch.where(usable, gap, 1.0)
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
