"""Anchored ratios rho = (M - C) / (U - C) with Fieller's confidence set.

With N and D the means of numerator and denominator over clusters and V their joint cluster-robust covariance, the set
is

    {rho : (N - rho D)^2 <= t^2 (V_NN - 2 rho V_ND + rho^2 V_DD)},    t = t_{K-1, (1+level)/2}

(Fieller 1954). It is bounded only if the anchor separation z = D / sqrt(V_DD) exceeds t. Below z = 5 the ratio says
little (methods: 13-29 % of the sets are unbounded at z = 3, about 1 % at z = 5), so a test with gate_z < 5 is void.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from condmis_interp.errors import UserError
from condmis_interp.stats.clusters import cluster_covariance
from condmis_interp.stats.drift import Drift


@dataclass(frozen=True)
class AnchoredRatio:
    """A ratio of two clustered means.

    Attributes:
        rho: Point estimate N / D.
        low: Lower end of Fieller's set; -inf if the set is unbounded.
        high: Upper end; inf if unbounded.
        gate_z: Anchor separation D / SE(D).
        n_values: Number of values (questions).
        n_clusters: Number of clusters (families).
        mean: (N, D).
        covariance: Cluster-robust covariance of (N, D), [2, 2]; V_NN holds the drift.
        drift: Variance of N between seeds, which no question shows (`stats.drift`).
        df: Degrees of freedom of its t tests.

    Example:
        >>> ratio = anchored_ratio([0.5, 0.4, 0.6, 0.5], [2, 2, 2, 3], range(4))
        >>> ratio.p_above(0.0) < 0.05, ratio.p_below(0.5) < 0.05
        (True, True)
    """

    rho: float
    low: float
    high: float
    gate_z: float
    n_values: int
    n_clusters: int
    mean: tuple[float, float]
    covariance: tuple[tuple[float, float], tuple[float, float]]
    drift: float = 0.0
    df: float = 1.0

    def p_above(self, bound: float) -> float:
        """Returns the one-sided p-value against H0: rho <= `bound` (t test of N - bound * D over clusters, D > 0)."""
        (vn, c), (_, vd) = self.covariance
        variance = vn - 2 * bound * c + bound**2 * vd
        gap = self.mean[0] - bound * self.mean[1]
        if self.mean[1] <= 0:
            return 1.0
        if variance <= 0:
            return 0.0 if gap > 0 else 1.0
        return float(stdtr(self.df, -gap / math.sqrt(variance)))

    def p_below(self, bound: float) -> float:
        """Returns the one-sided p-value against H0: rho >= `bound` (the equivalence side)."""
        return 1.0 - self.p_above(bound) if self.mean[1] > 0 else 1.0


def anchored_ratio(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    drift: Drift | None = None,
) -> AnchoredRatio:
    """Returns mean(numerator) / mean(denominator) with Fieller's set over clusters.

    Args:
        numerator: Per question, for example M - C in a cell; [n].
        denominator: Per question, for example U - C without a cue; [n], paired with `numerator`.
        clusters: n cluster labels.
        level: Confidence level of the two-sided set.
        drift: Variance between seeds of either organism's mean. It is added to the numerator's; the degrees of
            freedom are then Satterthwaite's (1946).

    Raises:
        UserError: as in `cluster_covariance`.

    Example:
        >>> ratio = anchored_ratio([1, 2, 1, 2], [2, 3, 2, 3], ["a", "b", "c", "d"])
        >>> ratio.rho, bool(ratio.low < 0.6 < ratio.high)
        (0.6, True)
    """
    x = np.stack([np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)], axis=1)
    v = cluster_covariance(x, clusters)
    n, d = (float(m) for m in x.mean(0))
    k = len(set(clusters))
    df = float(k - 1)
    between = drift.of_difference if drift is not None else 0.0
    if drift is not None and between > 0:
        df = (v[0, 0] + between) ** 2 / (v[0, 0] ** 2 / (k - 1) + between**2 / drift.df)
        v[0, 0] += between
    se = math.sqrt(v[1, 1])
    gate_z = d / se if se > 0 else math.copysign(math.inf, d)
    return _of(n, d, v, df, level, between, gate_z, len(x), k)


def anchored_number(numerator: float, denominator: float, drift: Drift, *, level: float = 0.95) -> AnchoredRatio:
    """Returns the ratio of two numbers that an organism has one of each, so that seeds alone are its error.

    Copying such a number to every question would give it an error of 0, and a test that no reading can fail. Its
    sampling unit is the organism: the variance is the drift between benign ones, with the drift's degrees of freedom.
    The anchors count as fixed, and their separation is in standard deviations of the difference of two benign
    organisms.

    Args:
        numerator: M - mean C.
        denominator: The anchor less its twin.
        drift: Between seeds, scaled to the means that are compared; its `of_difference` is the numerator's variance.
        level: Confidence level of the two-sided set.

    Raises:
        UserError: if nothing is known of the drift: then the number has no error to be judged with.

    Example:
        >>> ratio = anchored_number(0.5, 2.0, Drift(0.0072, 7))
        >>> round(ratio.rho, 2), round(float(ratio.low), 2), round(float(ratio.high), 2)
        (0.25, 0.11, 0.39)
    """
    if not drift.df:
        raise UserError(
            "one number an organism can be judged only against what benign seeds scatter by, and that is not known",
            fix="Give the twin more seeds, four or more.",
        )
    v = np.array([[drift.of_difference, 0.0], [0.0, 0.0]])
    sd = math.sqrt(v[0, 0])
    gate_z = denominator / sd if sd > 0 else math.copysign(math.inf, denominator)
    return _of(numerator, denominator, v, float(drift.df), level, drift.of_difference, gate_z, 1, 1)


def _of(
    n: float,
    d: float,
    v: np.ndarray,
    df: float,
    level: float,
    between: float,
    gate_z: float,
    values: int,
    clusters: int,
) -> AnchoredRatio:
    t = float(stdtrit(df, (1 + level) / 2))
    a = d * d - t * t * v[1, 1]
    b = n * d - t * t * v[0, 1]
    c = n * n - t * t * v[0, 0]
    root = b * b - a * c
    bounded = a > 0 and root >= 0
    low, high = ((b - math.sqrt(root)) / a, (b + math.sqrt(root)) / a) if bounded else (-math.inf, math.inf)
    return AnchoredRatio(
        rho=n / d if d != 0 else math.nan,
        low=low,
        high=high,
        gate_z=gate_z,
        n_values=values,
        n_clusters=clusters,
        mean=(n, d),
        covariance=((float(v[0, 0]), float(v[0, 1])), (float(v[1, 0]), float(v[1, 1]))),
        drift=between,
        df=df,
    )
