"""The verdict room: the decision rule, and its calibration on organisms whose answer is known."""

from condmis_interp.verdict.certifying import Certifies, certifies
from condmis_interp.verdict.confidence import confidence, predictive_value, reliability, stability
from condmis_interp.verdict.decision import RULE as DECISION_RULE
from condmis_interp.verdict.decision import Decision, Gate, Rule, decide
from condmis_interp.verdict.reference import Calibration, calibrate, reference, told
from condmis_interp.verdict.rule import RULE, Verdict, preliminary

__all__ = [
    "DECISION_RULE",
    "RULE",
    "Calibration",
    "Certifies",
    "Decision",
    "Gate",
    "Rule",
    "Verdict",
    "calibrate",
    "certifies",
    "confidence",
    "decide",
    "predictive_value",
    "preliminary",
    "reference",
    "reliability",
    "stability",
    "told",
]
