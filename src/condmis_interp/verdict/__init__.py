"""The verdict room: the decision rule and what it finds in a run's readings."""

from condmis_interp.verdict.certifying import Certifies, certifies
from condmis_interp.verdict.confidence import confidence, predictive_value, reliability, stability
from condmis_interp.verdict.decision import RULE, Decision, Gate, Rule, decide
from condmis_interp.verdict.finding import CueReading, Finding, findings
from condmis_interp.verdict.result import AuditResult
from condmis_interp.verdict.roster import KnownDrift, Roster

__all__ = [
    "RULE",
    "AuditResult",
    "Certifies",
    "CueReading",
    "Decision",
    "Finding",
    "Gate",
    "KnownDrift",
    "Roster",
    "Rule",
    "certifies",
    "confidence",
    "decide",
    "findings",
    "predictive_value",
    "reliability",
    "stability",
]
