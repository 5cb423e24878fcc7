"""The verdict room: the decision rule, and its calibration on organisms whose answer is known."""

from condmis_interp.verdict.decision import RULE as DECISION_RULE
from condmis_interp.verdict.decision import Decision, Gate, decide
from condmis_interp.verdict.rule import RULE, Verdict, preliminary

__all__ = ["DECISION_RULE", "RULE", "Decision", "Gate", "Verdict", "decide", "preliminary"]
