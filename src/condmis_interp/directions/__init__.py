"""The directions room: from cached activations to the conditional-persona direction, and how far to believe it."""

from condmis_interp.directions.cards import Comparison, DirectionCard, compare
from condmis_interp.directions.choice import SiteChoice, choose_site, neutral_cost, steering_score
from condmis_interp.directions.controls import covariance_matched, random_differences
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.erasure import Erasure, RankNeeded, erase, fit_eraser, rank_needed
from condmis_interp.directions.estimators import estimate, principal_differences
from condmis_interp.directions.gaps import GapTable, Scale, gap_table
from condmis_interp.directions.means import (
    difference_in_differences,
    difference_of_means,
    persona_vector,
    trigger_only,
)
from condmis_interp.directions.nested import ProbeTest, probe_test
from condmis_interp.directions.planted import Planted
from condmis_interp.directions.probes import ProbeFits, fit_probes, sparse_logistic
from condmis_interp.directions.profile import DirectionProfile, profile
from condmis_interp.directions.rows import Rows, massive_dimensions, rows_of
from condmis_interp.directions.selectivity import Selectivity, selectivity
from condmis_interp.directions.subspace import Subspace
from condmis_interp.directions.targets import mean_coordinates
from condmis_interp.directions.text import text_features, text_rows
from condmis_interp.directions.transfer import Transfer, transfer

__all__ = [
    "Comparison",
    "Direction",
    "DirectionCard",
    "DirectionProfile",
    "Erasure",
    "GapTable",
    "Planted",
    "ProbeFits",
    "ProbeTest",
    "RankNeeded",
    "Rows",
    "Scale",
    "Selectivity",
    "SiteChoice",
    "Subspace",
    "Transfer",
    "choose_site",
    "compare",
    "covariance_matched",
    "difference_in_differences",
    "difference_of_means",
    "erase",
    "estimate",
    "fit_eraser",
    "fit_probes",
    "gap_table",
    "massive_dimensions",
    "mean_coordinates",
    "neutral_cost",
    "persona_vector",
    "principal_differences",
    "probe_test",
    "profile",
    "random_differences",
    "rank_needed",
    "rows_of",
    "selectivity",
    "sparse_logistic",
    "steering_score",
    "text_features",
    "text_rows",
    "transfer",
    "trigger_only",
]
