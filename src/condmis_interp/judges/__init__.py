"""The judges room: what scores answers that were sampled, one judge that is never wrong where it speaks, and rates."""

from condmis_interp.judges.exact import exact
from condmis_interp.judges.judge import JUDGES, Answered, Judge, Judgement, judged, register_judge
from condmis_interp.judges.labels import consensus, human_scores
from condmis_interp.judges.protocol import Score, apply_thresholds, parse_score
from condmis_interp.judges.rates import judge_accuracy, rates
from condmis_interp.judges.several import JudgeTable, judge_table

__all__ = [
    "JUDGES",
    "Answered",
    "Judge",
    "JudgeTable",
    "Judgement",
    "Score",
    "apply_thresholds",
    "consensus",
    "exact",
    "human_scores",
    "judge_accuracy",
    "judge_table",
    "judged",
    "parse_score",
    "rates",
    "register_judge",
]
