"""The calibration room: the battery and the rule on organisms whose answer is known, and the tables that ship."""

from condmis_interp.calibration.reference import Calibration, calibrate, known_drift, reference, told
from condmis_interp.calibration.run import CALIBRATION
from condmis_interp.calibration.survey import Survey, survey

__all__ = ["CALIBRATION", "Calibration", "Survey", "calibrate", "known_drift", "reference", "survey", "told"]
