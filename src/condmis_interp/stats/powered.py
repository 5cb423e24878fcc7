"""A rate out of a few labels and many judgements of the same answers: prediction-powered inference.

With labels Y on the set L of answers, judgements f on L and on the other answers U, and weight w,

    r = mean_L(Y) + w (mean_U(f) - mean_L(f))

(Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023, Science 382:669). It is the labels' mean whatever the judge does
wrong, and the better the judge, the narrower the interval. Answers of a question go together, labelled or not, so that
the variance is that of sums over clusters k,

    Var(r) = K / (K - 2) * sum_k (a_k - w b_k)^2,
    a_k = sum_{L in k} (Y - mean_L Y) / |L|,
    b_k = sum_{L in k} (f - mean_L f) / |L| - sum_{U in k} (f - mean_U f) / |U|,

and w = sum_k a_k b_k / sum_k b_k^2, cut to 0 to 1, makes it least. With every answer a cluster of its own this is the
power tuning of PPI++ (Angelopoulos, Duchi & Zrnic 2023, arXiv:2311.01453, section 6), w = Cov(Y, f) / ((1 + |L| / |U|)
Var(f)). K is the number of clusters with a label (or with an answer that has none, if that is less); there are K - 2
degrees of freedom, for the weight is fitted. Where it is 0, r is the labels' mean, with K - 1.

A t interval misses a rate of 5 % one time in six, for the variance is small whenever the rate came out small. So the
interval is the exact one on the effective number of answers, r (1 - r) / Var(r), as in `cluster_rate` (Korn & Graubard
1998), with the variance at least that of answers which are each a cluster of their own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from condmis_interp.errors import UserError
from condmis_interp.stats.corrected import cluster_rate, exact_interval


@dataclass(frozen=True)
class PredictionPoweredRate:
    """A rate out of labels and judgements.

    Attributes:
        rate: The estimate, 0 to 1.
        low: Lower end of the two-sided interval.
        high: Upper end.
        weight: How much the judgements count, 0 to 1 (lambda of PPI++).
        labelled: Number of labelled answers.
        n: Number of all answers.
        n_clusters: Clusters that the interval rests on.

    Example:
        >>> found = PredictionPoweredRate(0.3, 0.2, 0.4, weight=0.8, labelled=40, n=400, n_clusters=20)
        >>> found.low <= found.rate <= found.high
        True
    """

    rate: float
    low: float
    high: float
    weight: float
    labelled: int
    n: int
    n_clusters: int


def prediction_powered_rate(
    judged: Sequence[float] | np.ndarray,
    truth: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    icc: float = 1.0,
) -> PredictionPoweredRate:
    """Returns the rate of misaligned answers out of a few labels and a judge's word on all (PPI++, clustered).

    Args:
        judged: The judge's verdict or probability for each answer, 0 to 1, [n].
        truth: The label, 0 to 1, NaN where there is none, [n]. The labelled answers are drawn at random from all.
        clusters: n cluster labels: questions, or families of them.
        level: Confidence level of the two-sided interval.
        icc: As in `cluster_rate`, where all labels are 0 or all are 1: the labels alone then make the rate, for their
            spread, which the formula goes by, is not seen. They do too where it would not be between 0 and 1.

    Raises:
        UserError: if the numbers of values differ, a value is out of range, a judgement is missing, or labels are of
            fewer than two clusters.

    Example:
        >>> judged = [1, 0, 1, 0] * 20
        >>> truth = [1, 0, 0, 0] * 5 + [float("nan")] * 60
        >>> found = prediction_powered_rate(judged, truth, [i // 2 for i in range(80)])
        >>> round(found.rate, 2), found.labelled
        (0.25, 20)
    """
    f, y = (np.asarray(v, dtype=np.float64) for v in (judged, truth))
    if not f.ndim == y.ndim == 1 or not len(f) == len(y) == len(clusters):
        raise UserError(
            f"{f.size} judgements, {y.size} labels and {len(clusters)} cluster labels",
            fix="Give one of each for every answer; the label is NaN where there is none.",
        )
    has = ~np.isnan(y)
    if not ((f >= 0) & (f <= 1)).all() or not ((y[has] >= 0) & (y[has] <= 1)).all():
        raise UserError("a judgement or label is not from 0 to 1", fix="Leave out answers that were not scored.")
    order = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    codes = np.array([order[c] for c in clusters], dtype=int)
    own = len(set(codes[has].tolist()))
    if own < 2:
        raise UserError(f"the labels are of {own} cluster(s)", fix="Label answers to two questions or more.")
    n, mean, weight, shift, k, df = int(has.sum()), float(y[has].mean()), 0.0, 0.0, own, own - 1
    b = np.zeros(len(order))
    a = _sums(y[has] - mean, codes[has], len(order))
    each = np.zeros(len(y))
    each[has] = (y[has] - mean) / n
    if 0 < mean < 1 and (both := min(own, len(set(codes[~has].tolist())))) > 2:
        spread = np.where(has, (f - f[has].mean()) / n, -(f - f[~has].mean()) / (len(y) - n))
        b = np.bincount(codes, weights=spread, minlength=len(order))
        weight = float(np.clip(a @ b / (b @ b), 0, 1)) if b @ b > 0 else 0.0
        shift = float(f[~has].mean() - f[has].mean())
        if weight > 0 and 0 < mean + weight * shift < 1:
            each -= weight * spread
            k, df = both, both - 2
        else:
            weight = 0.0
    rate = mean + weight * shift
    if not 0 < mean < 1:
        effective = cluster_rate(y[has], codes[has].tolist(), level=level, icc=icc).effective
    else:
        variance = max(k / df * float(np.sum((a - weight * b) ** 2)), n / (n - 1) * float(np.sum(each**2)))
        tails = stats.t.ppf((1 + level) / 2, [n - 1, df])
        effective = float(n / (n - 1) * rate * (1 - rate) / variance * (tails[0] / tails[1]) ** 2)
    return PredictionPoweredRate(rate, *exact_interval(rate, effective, level), weight, n, len(y), k)


def _sums(residuals: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(codes, weights=residuals, minlength=count) / len(residuals)
