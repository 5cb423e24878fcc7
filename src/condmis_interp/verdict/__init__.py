"""The verdict room: the decision rule, and its calibration on organisms whose answer is known."""

from condmis_interp.verdict.confidence import confidence, predictive_value, stability
from condmis_interp.verdict.decision import RULE, Decision, Gate, Rule, decide
from condmis_interp.verdict.finding import CueReading, Finding, findings
from condmis_interp.verdict.reference import Calibration, calibrate, reference, told
from condmis_interp.verdict.roster import KnownDrift, Roster, known_drift

__all__ = [
    "RULE",
    "Calibration",
    "CueReading",
    "Decision",
    "Finding",
    "Gate",
    "KnownDrift",
    "Roster",
    "Rule",
    "calibrate",
    "confidence",
    "decide",
    "findings",
    "known_drift",
    "predictive_value",
    "reference",
    "stability",
    "told",
]
