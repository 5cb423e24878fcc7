"""Statistics whose unit is the cluster: intervals, anchored ratios, multiplicity, controls."""

from condmis_interp.stats.clusters import ClusterMean, cluster_covariance, cluster_mean, resample_clusters
from condmis_interp.stats.controls import exceedance_p, holm
from condmis_interp.stats.folds import check_folds, grouped_folds
from condmis_interp.stats.permutation import Labellings, PermutationP, labellings, permutation_p
from condmis_interp.stats.ranks import auroc
from condmis_interp.stats.ratio import AnchoredRatio, anchored_ratio

__all__ = [
    "AnchoredRatio",
    "ClusterMean",
    "Labellings",
    "PermutationP",
    "anchored_ratio",
    "auroc",
    "check_folds",
    "cluster_covariance",
    "cluster_mean",
    "exceedance_p",
    "grouped_folds",
    "holm",
    "labellings",
    "permutation_p",
    "resample_clusters",
]
