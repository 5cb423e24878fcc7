"""Means over questions and training seeds at once.

Questions of a family vary together over all seeds, and all questions vary together within a seed. With one-way
cluster-robust variances V_f (families), V_s (seeds) and V_fs (family x seed cells), the variance of the mean is

    Var(m) = V_f + V_s - V_fs

(Cameron, Gelbach & Miller 2011, Journal of Business & Economic Statistics 29:238), floored at the largest of V_f and
V_s, since with few seeds the sum can fall below either. The interval has min(families, seeds) - 1 degrees of freedom:
with 2 seeds it is 12.7 standard errors wide, which is what two seeds know.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from condmis_interp.errors import UserError
from condmis_interp.stats.clusters import ClusterMean, cluster_covariance


def two_way_mean(values: np.ndarray, families: Sequence[Hashable], *, level: float = 0.95) -> ClusterMean:
    """Returns the mean of `values` [seed, question] with an interval over question families and seeds.

    Args:
        values: One row a seed, in the unit of the result.
        families: Family of each question.
        level: Confidence level of the two-sided interval.

    Raises:
        UserError: if there are fewer than two seeds or families, or a value is not finite.

    Example:
        >>> found = two_way_mean(np.array([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]), ["f", "g", "h"])
        >>> found.mean, found.n_clusters
        (2.25, 2)
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise UserError(
            f"values of shape {x.shape} have no second seed", fix="Give [seed, question] with at least 2 seeds."
        )
    seeds, questions = x.shape
    flat = x.reshape(-1, 1)
    by_family = list(families) * seeds
    by_seed = [s for s in range(seeds) for _ in range(questions)]
    v_f, v_s, v_fs = (
        float(cluster_covariance(flat, c)[0, 0])
        for c in (by_family, by_seed, list(zip(by_seed, by_family, strict=True)))
    )
    se = float(np.sqrt(max(v_f + v_s - v_fs, v_f, v_s)))
    clusters = min(len(set(families)), seeds)
    half = float(stats.t.ppf((1 + level) / 2, clusters - 1)) * se
    mean = float(x.mean())
    return ClusterMean(mean, se, mean - half, mean + half, x.size, clusters)
