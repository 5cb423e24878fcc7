"""The largest of several dependent statistics, tested as what it is: a maximum.

The worst of nine cues is bad luck alone in nine draws. With observed differences x [unit, column] (a unit is a question
family, a column a cue), the null distribution of the largest studentised column mean is made by flipping the signs of
whole units, all columns of a unit together, so that the dependence between columns is kept (Westfall & Young 1993; the
sign flip is exchanging M and C within the unit). p = (1 + #{max_b >= max}) / (1 + draws), and each column's adjusted p
compares it with the same maxima.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from condmis_interp.errors import UserError


@dataclass(frozen=True)
class MaxT:
    """A maximum over columns and its test.

    Attributes:
        column: Which column is largest.
        t: Its studentised mean.
        p: Adjusted p-value of the largest.
        adjusted: Adjusted p-value of each column.

    Example:
        >>> MaxT(column=1, t=2.5, p=0.04, adjusted=(0.6, 0.04)).column
        1
    """

    column: int
    t: float
    p: float
    adjusted: tuple[float, ...]


def max_t(
    differences: np.ndarray,
    clusters: Sequence[Hashable],
    *,
    rng: np.random.Generator,
    above: float | np.ndarray = 0.0,
    extra_variance: float | np.ndarray = 0.0,
    draws: int = 2000,
) -> MaxT:
    """Tests the largest column mean against H0: no column mean exceeds `above`.

    Args:
        differences: [n, columns], for example M - C by question and cue.
        clusters: n cluster labels; whole clusters are flipped.
        rng: Source of randomness.
        above: Bound of the null hypothesis, for each column or all; it is subtracted.
        extra_variance: Variance of each mean that no question shows (drift between seeds); it widens the denominator
            of every statistic, and the null distribution by as much.
        draws: Sign flips.

    Raises:
        UserError: if a value is not finite or labels and values differ in number.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> none, some = rng.normal(size=40), 1 + rng.normal(size=40)
        >>> found = max_t(np.stack([none, some], 1), range(40), rng=rng, draws=200)
        >>> found.column, found.p < 0.01, found.adjusted[0] > 0.05
        (1, True, True)
    """
    x = np.asarray(differences, dtype=np.float64) - above
    if x.ndim != 2 or len(clusters) != len(x) or not np.isfinite(x).all():
        raise UserError(
            "max-T takes finite differences [question, column] with a cluster label for each",
            where=f"shape {x.shape}, {len(clusters)} labels",
        )
    order = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(order), x.shape[1]))
    np.add.at(sums, [order[c] for c in clusters], x)
    k, n = len(order), len(x)
    extra = np.broadcast_to(np.asarray(extra_variance, dtype=np.float64), (x.shape[1],))

    def studentised(total: np.ndarray, squares: np.ndarray) -> np.ndarray:
        mean = total / n
        variance = k / (k - 1) * (squares - total**2 / k) / n**2 + extra
        return mean / np.sqrt(np.maximum(variance, 1e-300))

    squares = (sums**2).sum(0)
    observed = studentised(sums.sum(0), squares)
    signs = rng.choice((-1.0, 1.0), size=(draws, k))
    totals = signs @ sums + n * np.sqrt(extra) * rng.standard_normal((draws, 1))
    null = studentised(totals, squares).max(1)
    adjusted = (1 + (null[:, None] >= observed).sum(0)) / (1 + draws)
    best = int(observed.argmax())
    return MaxT(best, float(observed[best]), float(adjusted[best]), tuple(float(a) for a in adjusted))
