"""The auditing room: the plan, control organisms, who plays what, and the audit itself."""

from condmis_interp.auditing.audit import audit, prepare

__all__ = ["audit", "prepare"]
