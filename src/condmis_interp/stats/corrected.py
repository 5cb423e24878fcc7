"""Rates that a judge gave: their clustered interval, the judge's error on labelled answers, and both in one rate.

**Clustered.** With p the share of n answers in K clusters and V its cluster-robust variance (`stats.clusters`), the
design effect is D = max(1, V / (p (1 - p) / (n - 1))), and the answers count as

    n* = n / D * (t_{n-1} / t_{K-1})^2

independent ones, whose exact interval (Clopper & Pearson) is taken: Korn & Graubard 1998, Survey Methodology 24:193.
It keeps within 0 and 1 and has a width at small rates. Where no answer is flagged, or every one, nothing shows how
alike the answers of a cluster are; then D = 1 + (n / K - 1) * icc (Kish 1965), and with the default icc = 1 each
cluster counts once: n* = K, which holds however alike they are.

**Corrected.** A judge of sensitivity Se and specificity Sp flags p = r Se + (1 - r)(1 - Sp), so that

    r = (p + Sp - 1) / (Se + Sp - 1)

(Rogan & Gladen 1978, American Journal of Epidemiology 107:71). Its interval counts the error of all three (Lang &
Reiczigel 2014, Preventive Veterinary Medicine 113:13): with Se' = (n_Se Se + 1) / (n_Se + 2), Sp' likewise,
p' = (n* p + z^2 / 2) / (n* + z^2) and r' the rate of these,

    r' + d +- z sqrt((p'(1 - p') / (n* + z^2) + r'^2 Se'(1 - Se') / (n_Se + 2) + (1 - r')^2 Sp'(1 - Sp') / (n_Sp + 2))
                     / (Se' + Sp' - 1)^2),
    d = 2 z^2 (r' Se'(1 - Se') / (n_Se + 2) - (1 - r') Sp'(1 - Sp') / (n_Sp + 2)).

It was chosen over a bootstrap of clusters with draws of Se and Sp because it needs no draws, and because resampling
clusters of which none has a flagged answer gives an interval without a width. The clusters come in by n*. It takes the
labelled answers as drawn apart from those that the rate is of, and the judge as erring on both alike.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import ndtri

from condmis_interp.errors import UserError
from condmis_interp.stats.clusters import cluster_covariance


@dataclass(frozen=True)
class ClusterRate:
    """A share of answers with its clustered interval.

    Attributes:
        rate: Share of the answers that are flagged, 0 to 1.
        low: Lower end of the two-sided interval.
        high: Upper end.
        n: Number of answers.
        n_clusters: Number of clusters.
        effective: Independent answers that they count as, n*.

    Example:
        >>> found = ClusterRate(rate=0.5, low=0.1, high=0.9, n=8, n_clusters=4, effective=4.0)
        >>> found.low <= found.rate <= found.high
        True
    """

    rate: float
    low: float
    high: float
    n: int
    n_clusters: int
    effective: float


def cluster_rate(
    flagged: Sequence[bool] | np.ndarray, clusters: Sequence[Hashable], *, level: float = 0.95, icc: float = 1.0
) -> ClusterRate:
    """Returns the share of flagged answers with an exact interval on their effective number (Korn & Graubard 1998).

    Args:
        flagged: True or 1 for each answer that counts, [n].
        clusters: n cluster labels: questions, or families of them.
        level: Confidence level of the two-sided interval.
        icc: Intra-class correlation that is taken where none or all are flagged, 0 to 1; 1 counts each cluster once.

    Raises:
        UserError: if a value is neither 0 nor 1, there are fewer than two clusters, labels and values differ in
            number, or `level` or `icc` is out of range.

    Example:
        >>> found = cluster_rate([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"])
        >>> found.rate, round(found.low, 2), round(found.high, 2)
        (0.5, 0.0, 1.0)
        >>> none = cluster_rate([0] * 60, [i % 20 for i in range(60)])
        >>> none.effective, round(none.high, 3)
        (20.0, 0.168)
    """
    x = _binary(flagged, "flagged")
    _check_level(level)
    if not 0 <= icc <= 1:
        raise UserError(f"an intra-class correlation of {icc} is not from 0 to 1")
    variance = float(cluster_covariance(x[:, None], clusters)[0, 0])
    n, k, p = len(x), len(set(clusters)), float(x.mean())
    if 0 < p < 1:
        design = max(1.0, variance / (p * (1 - p) / (n - 1)))
        tails = stats.t.ppf((1 + level) / 2, [n - 1, k - 1])
        effective = float(n / design * (tails[0] / tails[1]) ** 2)
    else:
        effective = n / (1 + (n / k - 1) * icc)
    return ClusterRate(p, *exact_interval(p, effective, level), n, k, effective)


def exact_interval(share: float, effective: float, level: float) -> tuple[float, float]:
    """Returns Clopper and Pearson's interval of a share of `effective` independent cases, which may be a fraction."""
    tail = (1 - level) / 2
    hits, misses = share * effective, (1 - share) * effective
    low = float(stats.beta.ppf(tail, hits, misses + 1)) if share > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, misses)) if share < 1 else 1.0
    return low, high


@dataclass(frozen=True)
class Accuracy:
    """How often a judge is right, from labelled answers.

    Attributes:
        sensitivity: Share of the misaligned answers that it flags.
        specificity: Share of the aligned ones that it does not flag.
        youden: Sensitivity + specificity - 1: 0 for a judge that does not tell, 1 for one that is never wrong.
        low: Lower end of the interval of `youden`.
        high: Upper end.

    Example:
        >>> found = accuracy([1, 1, 1, 0] * 10, [1, 1, 0, 0] * 10)
        >>> found.sensitivity.rate, found.specificity.rate, found.youden
        (1.0, 0.5, 0.5)
    """

    sensitivity: ClusterRate
    specificity: ClusterRate
    youden: float
    low: float
    high: float


def accuracy(
    flagged: Sequence[bool] | np.ndarray,
    truth: Sequence[bool] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    icc: float = 1.0,
) -> Accuracy:
    """Returns a judge's sensitivity and specificity on labelled answers.

    The interval of Youden's index is that of a difference of two independent shares, Se and 1 - Sp, out of the
    intervals of each (Newcombe 1998, Statistics in Medicine 17:873, method 10, with the intervals of `cluster_rate`).

    Args:
        flagged: What the judge said, 1 for misaligned, [n].
        truth: What the labels say, [n].
        clusters: n cluster labels, if answers of one question are judged right or wrong together; without them every
            answer counts as one and the errors are binomial.
        level: Confidence level of the intervals.
        icc: As in `cluster_rate`; without `clusters` it makes no difference.

    Raises:
        UserError: if one of the two classes has no label, or labels from one cluster only, or as in `cluster_rate`.

    Example:
        >>> judge = accuracy([1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1])
        >>> round(judge.sensitivity.rate, 3), round(judge.specificity.rate, 3)
        (0.667, 0.667)
    """
    x, y = _binary(flagged, "flagged"), _binary(truth, "truth")
    if len(x) != len(y):
        raise UserError(f"{len(x)} judgements but {len(y)} labels", fix="Give one label for each judgement.")
    if clusters is not None and len(clusters) != len(x):
        raise UserError(f"{len(x)} judgements but {len(clusters)} cluster labels")
    units = list(clusters) if clusters is not None else list(range(len(x)))
    found = []
    for value, name in ((1.0, "misaligned"), (0.0, "aligned")):
        rows = np.flatnonzero(y == value)
        own = [units[i] for i in rows]
        if len(set(own)) < 2:
            what = "answer" if clusters is None else "question"
            raise UserError(
                f"{len(rows)} labelled answers are {name}, of {len(set(own))} {what}",
                fix=f"Label {name} answers to two {what}s or more: how the judge errs on them is not known otherwise."
                if clusters is not None
                else f"Label two {name} answers or more: how the judge errs on them is not known otherwise.",
            )
        found.append(cluster_rate(x[rows] == value, own, level=level, icc=icc))
    se, sp = found
    youden = se.rate + sp.rate - 1
    low = youden - math.hypot(se.rate - se.low, sp.rate - sp.low)
    high = youden + math.hypot(se.high - se.rate, sp.high - sp.rate)
    return Accuracy(se, sp, youden, max(-1.0, low), min(1.0, high))


@dataclass(frozen=True)
class CorrectedRate:
    """A rate without the judge's error.

    Attributes:
        rate: The estimate, cut to 0 to 1.
        low: Lower end of the two-sided interval.
        high: Upper end.
        uncut: The estimate as the formula gives it: below 0 where a judge flags fewer than it errs on.
        plain: The rate as the judge gave it.

    Example:
        >>> plain = ClusterRate(rate=0.3, low=0.2, high=0.4, n=100, n_clusters=20, effective=80.0)
        >>> CorrectedRate(rate=0.25, low=0.1, high=0.4, uncut=0.25, plain=plain).plain.rate
        0.3
    """

    rate: float
    low: float
    high: float
    uncut: float
    plain: ClusterRate


def corrected_rate(
    flagged: Sequence[bool] | np.ndarray,
    clusters: Sequence[Hashable],
    judge: Accuracy,
    *,
    level: float = 0.95,
    icc: float = 1.0,
) -> CorrectedRate:
    """Returns the rate without the judge's error (Rogan & Gladen 1978; interval by Lang & Reiczigel 2014, clustered).

    Args:
        flagged: What the judge said of each answer, 1 for misaligned, [n].
        clusters: n cluster labels: questions, or families of them.
        judge: How often it is right, from labelled answers of the same kind (`accuracy`).
        level: Confidence level of the two-sided interval.
        icc: As in `cluster_rate`.

    Raises:
        UserError: if the judge does not tell (the interval of sensitivity + specificity - 1 holds 0), or what it
            flagged cannot be with such a sensitivity and specificity, or as in `cluster_rate`.

    Example:
        >>> judge = accuracy([1] * 45 + [0] * 5 + [1] * 5 + [0] * 45, [1] * 50 + [0] * 50)
        >>> found = corrected_rate([1, 0] * 40, [i // 4 for i in range(80)], judge)
        >>> round(found.rate, 3), round(found.plain.rate, 3), found.low < 0.5 < found.high
        (0.5, 0.5, True)
    """
    plain = cluster_rate(flagged, clusters, level=level, icc=icc)
    if judge.youden <= 0 or judge.low <= 0:
        raise UserError(
            f"the judge does not tell misaligned answers from aligned ones: sensitivity + specificity - 1 is "
            f"{judge.youden:.2f} [{judge.low:.2f}, {judge.high:.2f}]",
            fix="Label more answers, or take another judge.",
        )
    se, sp = judge.sensitivity, judge.specificity
    z = float(ndtri((1 + level) / 2))
    n_p, n_se, n_sp = plain.effective + z * z, se.effective + 2, sp.effective + 2
    p1 = (plain.effective * plain.rate + z * z / 2) / n_p
    se1, sp1 = (se.effective * se.rate + 1) / n_se, (sp.effective * sp.rate + 1) / n_sp
    r1 = (p1 + sp1 - 1) / (se1 + sp1 - 1)
    v_se, v_sp = se1 * (1 - se1) / n_se, sp1 * (1 - sp1) / n_sp
    shift = 2 * z * z * (r1 * v_se - (1 - r1) * v_sp)
    half = z * math.sqrt(p1 * (1 - p1) / n_p + r1**2 * v_se + (1 - r1) ** 2 * v_sp) / (se1 + sp1 - 1)
    low, high = r1 + shift - half, r1 + shift + half
    if high <= 0 or low >= 1:
        raise UserError(
            f"the judge flags {plain.rate:.3f} of the answers, which a sensitivity of {se.rate:.3f} and a specificity "
            f"of {sp.rate:.3f} cannot give",
            fix="The labelled answers are of another kind than these: label some of these.",
        )
    uncut = (plain.rate + sp.rate - 1) / judge.youden
    rate = min(1.0, max(0.0, uncut))
    return CorrectedRate(rate, max(0.0, min(low, rate)), min(1.0, max(high, rate)), uncut, plain)


def _binary(values: Sequence[bool] | np.ndarray, what: str) -> np.ndarray:
    try:
        x = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"`{what}` takes 0 or 1 for each answer") from None
    if x.ndim != 1 or not np.isin(x, (0.0, 1.0)).all():
        raise UserError(f"`{what}` takes 0 or 1 for each answer", fix="Leave out answers that were not scored.")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"an interval cannot hold at level {level}", fix="Give a level between 0 and 1, such as 0.95.")
