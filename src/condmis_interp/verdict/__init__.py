"""The verdict room: the decision rule and what it finds in a run's readings."""

from condmis_interp.verdict.confidence import confidence, predictive_value, reliability, stability
from condmis_interp.verdict.decision import RULE, Decision, Gate, Rule, decide
from condmis_interp.verdict.finding import CueReading, Finding, findings
from condmis_interp.verdict.result import AuditResult
from condmis_interp.verdict.roster import Known, Roster

__all__ = [
    "RULE",
    "AuditResult",
    "CueReading",
    "Decision",
    "Finding",
    "Gate",
    "Known",
    "Roster",
    "Rule",
    "confidence",
    "decide",
    "findings",
    "predictive_value",
    "reliability",
    "stability",
]
