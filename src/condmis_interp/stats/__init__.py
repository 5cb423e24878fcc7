"""Statistics whose unit is the cluster: intervals, anchored ratios, multiplicity, controls."""

from condmis_interp.stats.clusters import ClusterMean, cluster_covariance, cluster_mean, resample_clusters
from condmis_interp.stats.controls import exceedance_p, holm
from condmis_interp.stats.ratio import AnchoredRatio, anchored_ratio

__all__ = [
    "AnchoredRatio",
    "ClusterMean",
    "anchored_ratio",
    "cluster_covariance",
    "cluster_mean",
    "exceedance_p",
    "holm",
    "resample_clusters",
]
