"""The judges room: what scores answers that were sampled, and the one judge that is never wrong where it speaks."""

from condmis_interp.judges.exact import exact
from condmis_interp.judges.judge import JUDGES, Answered, Judge, Judgement, judged, register_judge

__all__ = ["JUDGES", "Answered", "Judge", "Judgement", "exact", "judged", "register_judge"]
