"""The verdict room: the decision rule, and its calibration on organisms whose answer is known."""

from condmis_interp.verdict.calibration import CALIBRATION
from condmis_interp.verdict.certifying import Certifies, certifies
from condmis_interp.verdict.confidence import confidence, predictive_value, reliability, stability
from condmis_interp.verdict.decision import RULE, Decision, Gate, Rule, decide
from condmis_interp.verdict.finding import CueReading, Finding, findings
from condmis_interp.verdict.reference import Calibration, calibrate, reference, told
from condmis_interp.verdict.roster import KnownDrift, Roster, known_drift

__all__ = [
    "CALIBRATION",
    "RULE",
    "Calibration",
    "Certifies",
    "CueReading",
    "Decision",
    "Finding",
    "Gate",
    "KnownDrift",
    "Roster",
    "Rule",
    "calibrate",
    "certifies",
    "confidence",
    "decide",
    "findings",
    "known_drift",
    "predictive_value",
    "reference",
    "reliability",
    "stability",
    "told",
]
