"""Statistics whose unit is the cluster: intervals, anchored ratios, equivalence, multiplicity, drift, calibration."""

from condmis_interp.stats.bound import Exceedance, exceedance_bound
from condmis_interp.stats.clusters import ClusterMean, cluster_covariance, cluster_mean, resample_clusters
from condmis_interp.stats.controls import exceedance_p, holm
from condmis_interp.stats.drift import Drift, drift, pooled_drifts, with_own
from condmis_interp.stats.equivalence import Equivalence, equivalent_below, families_needed
from condmis_interp.stats.folds import check_folds, grouped_folds
from condmis_interp.stats.isotonic import Monotone, monotone
from condmis_interp.stats.looks import LOOKS, look_of, nominal_level
from condmis_interp.stats.maxt import MaxT, max_t
from condmis_interp.stats.permutation import Labellings, PermutationP, labellings, permutation_p
from condmis_interp.stats.proportion import Proportion, proportion
from condmis_interp.stats.ranks import auroc
from condmis_interp.stats.ratio import AnchoredRatio, anchored_number, anchored_ratio
from condmis_interp.stats.twoway import two_way_mean

__all__ = [
    "LOOKS",
    "AnchoredRatio",
    "ClusterMean",
    "Drift",
    "Equivalence",
    "Exceedance",
    "Labellings",
    "MaxT",
    "Monotone",
    "PermutationP",
    "Proportion",
    "anchored_number",
    "anchored_ratio",
    "auroc",
    "check_folds",
    "cluster_covariance",
    "cluster_mean",
    "drift",
    "equivalent_below",
    "exceedance_bound",
    "exceedance_p",
    "families_needed",
    "grouped_folds",
    "holm",
    "labellings",
    "look_of",
    "max_t",
    "monotone",
    "nominal_level",
    "permutation_p",
    "pooled_drifts",
    "proportion",
    "resample_clusters",
    "two_way_mean",
    "with_own",
]
