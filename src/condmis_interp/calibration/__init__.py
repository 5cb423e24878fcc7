"""The calibration room: the battery and the rule on organisms whose answer is known, and the tables that ship."""

from condmis_interp.calibration.reference import Calibration, calibrate, known_of, reference
from condmis_interp.calibration.suite import CALIBRATION
from condmis_interp.calibration.survey import Survey, survey
from condmis_interp.tables import references, told

__all__ = [
    "CALIBRATION",
    "Calibration",
    "Survey",
    "calibrate",
    "known_of",
    "reference",
    "references",
    "survey",
    "told",
]
