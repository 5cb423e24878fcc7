"""The verdict room: the decision rule."""

from condmis_interp.verdict.rule import RULE, Verdict, preliminary

__all__ = ["RULE", "Verdict", "preliminary"]
