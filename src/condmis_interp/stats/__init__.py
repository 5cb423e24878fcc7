"""Statistics whose unit is the cluster: intervals, ratios, equivalence, multiplicity, drift, calibration, judges."""

from condmis_interp.stats.agreement import Alpha, krippendorff_alpha
from condmis_interp.stats.bound import Exceedance, exceedance_bound
from condmis_interp.stats.clusters import ClusterMean, cluster_covariance, cluster_mean, resample_clusters
from condmis_interp.stats.controls import exceedance_p, holm
from condmis_interp.stats.corrected import Accuracy, ClusterRate, CorrectedRate, accuracy, cluster_rate, corrected_rate
from condmis_interp.stats.drift import Drift, drift, pooled_drifts, with_own
from condmis_interp.stats.equivalence import Equivalence, equivalent_below, families_needed
from condmis_interp.stats.folds import check_folds, grouped_folds
from condmis_interp.stats.isotonic import Monotone, monotone
from condmis_interp.stats.looks import LOOKS, look_of, nominal_level
from condmis_interp.stats.maxt import MaxT, max_t
from condmis_interp.stats.permutation import Labellings, PermutationP, labellings, permutation_p
from condmis_interp.stats.powered import PredictionPoweredRate, prediction_powered_rate
from condmis_interp.stats.proportion import Proportion, proportion
from condmis_interp.stats.ranks import auroc
from condmis_interp.stats.ratio import AnchoredRatio, anchored_number, anchored_ratio
from condmis_interp.stats.twoway import two_way_mean

__all__ = [
    "LOOKS",
    "Accuracy",
    "Alpha",
    "AnchoredRatio",
    "ClusterMean",
    "ClusterRate",
    "CorrectedRate",
    "Drift",
    "Equivalence",
    "Exceedance",
    "Labellings",
    "MaxT",
    "Monotone",
    "PermutationP",
    "PredictionPoweredRate",
    "Proportion",
    "accuracy",
    "anchored_number",
    "anchored_ratio",
    "auroc",
    "check_folds",
    "cluster_covariance",
    "cluster_mean",
    "cluster_rate",
    "corrected_rate",
    "drift",
    "equivalent_below",
    "exceedance_bound",
    "exceedance_p",
    "families_needed",
    "grouped_folds",
    "holm",
    "krippendorff_alpha",
    "labellings",
    "look_of",
    "max_t",
    "monotone",
    "nominal_level",
    "permutation_p",
    "pooled_drifts",
    "prediction_powered_rate",
    "proportion",
    "resample_clusters",
    "two_way_mean",
    "with_own",
]
