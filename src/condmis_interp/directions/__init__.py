"""The directions room: from cached activations to the conditional-persona direction."""

from condmis_interp.directions.controls import covariance_matched
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.means import difference_in_differences, difference_of_means
from condmis_interp.directions.profile import DirectionProfile, profile

__all__ = [
    "Direction",
    "DirectionProfile",
    "covariance_matched",
    "difference_in_differences",
    "difference_of_means",
    "profile",
]
