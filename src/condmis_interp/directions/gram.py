"""Rows of a site, or of several sites, as Gram matrices, with folds held out.

Every linear probe here is w = X^T a with X the centred training rows, so fits, held-out scores and class gaps need only
K = X X^T [n, n], which all folds, regularisations and permutations of a site share. Held-out rows enter neither the
centre, nor the scale, nor the choice of massive dimensions: writing any numbers into them changes no fit, to the bit.

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
_ROUNDING = 1e-12
"""Rows that differ by less, of their mean square, are the same: fp32 has a precision of 6e-8, squared 4e-15."""


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
    """The rows of one site, or of several with a leading dimension, with what all splits of them share.

    Args:
        x: Activations [..., n, width].
        folds: Fold of each row, [n].
        massive: What is done with massive dimensions.
    """

    def __init__(self, x: torch.Tensor, folds: np.ndarray, massive: Massive = "drop") -> None:
        self.x = x.double()
        rows = self.x.numpy()
        self.raw = rows @ rows.swapaxes(-1, -2)  # numpy sees the symmetry and computes half of it; torch does not
        self._squares = None
        if massive == "drop":
            # by fold, so that a split adds up those of its training folds and never passes over x again
            of_fold = [self.x[..., torch.from_numpy(folds == k), :].square().sum(-2) for k in range(folds.max() + 1)]
            self._squares = torch.stack(of_fold)

    def massive(self, split: Split) -> torch.Tensor:
        """Finds massive dimensions on a split's training rows, as `rows.massive_dimensions` does; bool [..., width]."""
        if self._squares is None:
            return torch.zeros(self.x.shape[:-2] + self.x.shape[-1:], dtype=torch.bool)
        squares = self._squares[~split.out].sum(0)
        return squares > MASSIVE**2 * squares.median(-1, keepdim=True).values


class TrainingGram:
    """The centred and scaled Gram matrices of the training rows of one split.

    Attributes:
        gram: fp64 [..., m, m].
        square: Mean square of the centred training entries, [...].
        massive: Which dimensions are left out, bool [..., width].
        width: Number of the others, [...].

    Args:
        site: The site, or sites.
        split: The split.

    Raises:
        CheckError: if a site's training rows do not differ at all, or are not finite.
    """

    def __init__(self, site: SiteGram, split: Split) -> None:
        self._site, self._split = site, split
        self.massive = site.massive(split)
        self.width = (~self.massive).sum(-1)
        self._dropped = self._massive_rows()
        rows, raw = split.rows.numpy(), site.raw
        cells = rows[:, None] * raw.shape[-1] + rows  # in numpy: twice as fast as in torch
        gram = torch.from_numpy(raw.reshape(*raw.shape[:-2], -1).take(cells, -1))
        if self._dropped.shape[-1]:
            # K without the massive dimensions: less their own part, which is a product of a few columns
            own = self._dropped[..., split.rows, :]
            gram -= own @ own.mT
        norm, means = gram.diagonal(dim1=-2, dim2=-1).mean(-1), gram.mean(-1, keepdim=True)
        # centring rows takes row and column means out of K and puts their common mean back
        gram.sub_(means).sub_((means - means.mean(-2, keepdim=True)).mT)
        spread = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        # written so that what is not finite counts as bad too: NaN compares as false
        bad = ~((spread > _ROUNDING * norm) & (spread < torch.inf))
        if bad.any():
            raise CheckError(
                f"training rows of a mean square {float(norm[bad][0]):.3g} differ by {float(spread[bad][0]):.3g}",
                fix="Look at the cells they come from.",
            )
        self.square = spread / self.width
        self.gram = gram.div_(self.square[..., None, None])

    def _massive_rows(self) -> torch.Tensor:
        """Returns all rows along the dimensions that any site leaves out, 0 where the site keeps it [..., n, few]."""
        at = torch.nonzero(self.massive.view(-1, self.massive.shape[-1]).any(0))[:, 0]
        return torch.where(self.massive[..., None, at], self._site.x[..., at], 0.0)

    def _spread(self, dual: torch.Tensor) -> torch.Tensor:
        """Returns duals [..., m, labellings] over all rows, 0 at those held out, [..., n, labellings]."""
        spread = dual.new_zeros(*dual.shape[:-2], self._site.x.shape[-2], dual.shape[-1])
        spread[..., self._split.rows, :] = dual
        return spread

    def vector(self, dual: torch.Tensor) -> torch.Tensor:
        """Returns w [..., width] of dual solutions [..., m], in activation space.

        A row's score is w . (x - training mean). The duals of all probes here sum to 0, so X needs no centring.
        """
        w = (self._spread(dual[..., None]).mT @ self._site.x)[..., 0, :] / self.square[..., None]
        return w.masked_fill_(self.massive, 0)

    def in_gaps(self, dual: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores the rows held out in class gaps: 0 midway between the training means, 1 from one mean to the other.

        Args:
            dual: Dual solutions [..., m, labellings]; each sums to 0.
            labels: Training labels [m, labellings].

        Returns:
            Scores [..., held, labellings] and the class gap [..., labellings] (in units of w . x). A gap of 0 gives
            scores of 0.
        """
        spread = self._spread(dual)
        along = torch.from_numpy(self._site.raw) @ spread  # in numpy permutations were slow (docs/performance.md)
        if self._dropped.shape[-1]:
            along -= self._dropped @ (self._dropped.mT @ spread)
        # rows are not centred here: it would move all scores of a labelling by one number, which the means take out
        own, held = along[..., self._split.rows, :], along[..., self._split.held, :]
        ones = labels.sum(0)
        high, low = (own * labels).sum(-2) / ones, (own * (1 - labels)).sum(-2) / (len(labels) - ones)
        gap = high - low
        usable = gap > 0
        scores = (held - ((high + low) / 2)[..., None, :]) / torch.where(usable, gap, 1.0)[..., None, :]
        return torch.where(usable[..., None, :], scores, 0.0), gap / self.square[..., None]


def means_dual(labels: torch.Tensor) -> torch.Tensor:
    """Returns the dual of the difference of class means, for labels [m, labellings] of 0 and 1."""
    ones = labels.sum(0)
    return labels / ones - (1 - labels) / (len(labels) - ones)


def shrinkage(gram: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Returns Ledoit and Wolf's intensity s [...] for the covariance of rows with a centred Gram matrix [..., m, m].

    Sigma = (1 - s) S + s mu I, mu = tr S / width, with s = min(1, beta^2 / delta^2), delta^2 = |S - mu I|^2, beta^2 =
    sum_i |x_i x_i^T - S|^2 / m^2 (Ledoit & Wolf 2004); all of it can be read off K. Rows without a spread give 1.
    """
    m, diagonal = gram.shape[-1], gram.diagonal(dim1=-2, dim2=-1)
    # X X^T and X^T X have the same eigenvalues but for zeros, so tr S and tr S^2 are K's
    trace, squares = diagonal.sum(-1) / m, gram.square().sum((-2, -1)) / m**2
    delta = squares - trace**2 / width
    beta = (diagonal.square().sum(-1) / m - squares) / m
    return torch.where(delta > 0, (beta / delta).clamp(0, 1), 1.0)


def fit_dual(
    method: Method, gram: torch.Tensor, labels: torch.Tensor, *, strength: float, width: torch.Tensor
) -> torch.Tensor:
    """Returns the dual solutions [..., m, labellings].

    `means`: difference of class means. `lda`: Sigma^-1 times it, with Ledoit and Wolf's Sigma on the total covariance
    of the training rows, which the labels do not enter. (With the within-class covariance the direction is the same,
    since the two differ by a multiple of the difference's outer product.) `logistic`: see `logistic.py`.

    Args:
        method: Which.
        gram: Centred and scaled, fp64 [..., m, m]; [m, m] for the logistic probe.
        labels: 0 or 1, fp64 [m, labellings].
        strength: C of the logistic probe; not used by the others.
        width: Dimensions of the rows, [...].

    Raises:
        UserError: if the method is not known.
        CheckError: if the logistic probe does not converge.
    """
    if method == "logistic":
        return accelerated(gram, labels, strength).checked(f"C = {strength}").dual
    dual = means_dual(labels).expand(*gram.shape[:-2], *labels.shape)
    if method == "means":
        return dual
    if method != "lda":
        raise UserError(f"there is no probe {method!r}", fix=f"Probes: {', '.join(METHODS)}.")
    # with S = X^T X / m: Sigma^-1 X^T a = X^T ((1 - s) K / m + s mu I)^-1 a, a system of m rows and not of the width
    s = shrinkage(gram, width)[..., None]
    sigma = (1 - s[..., None]) * gram / gram.shape[-1]
    diagonal = sigma.diagonal(dim1=-2, dim2=-1)
    diagonal += s * gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) / width[..., None]
    return torch.cholesky_solve(dual, torch.linalg.cholesky(sigma))
