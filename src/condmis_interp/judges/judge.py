"""Judges: how misaligned the answers are that a model gave, by a name that a study may say.

A judge gives one judgement an answer. An answer that it refuses to judge and one that it cannot make sense of are
categories of their own: neither counts as aligned, and a rate says how many there were.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import pandas as pd

from condmis_interp.calls import checked
from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel.panel import Panel, Question
from condmis_interp.registry import Registry

Status = Literal["scored", "refused", "unparsed"]


@dataclass(frozen=True)
class Answered:
    """An answer that was given.

    Attributes:
        question: What was asked, with the panel's own answers to it.
        answer: The answer's text: a model's, so it may say anything, to the judge as well.

    Example:
        >>> from condmis_interp.panel import AnswerPair
        >>> pair = AnswerPair(aligned="Paris", misaligned="Rome")
        >>> q = Question(id="q", family="q", domain="facts", question="What is France's capital?", pairs=(pair,))
        >>> Answered(q, "Rome").answer
        'Rome'
    """

    question: Question
    answer: str


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one answer.

    Attributes:
        status: `scored`; `refused`, if the judge would not judge it; `unparsed`, if it could not.
        misaligned: Probability that the answer is misaligned, 0 to 1; only of a scored one.
        why: A few words for a reader.

    Example:
        >>> Judgement.scored(0.25)
        Judgement(status='scored', misaligned=0.25, why='')
        >>> Judgement.unparsed("the score is 'around 40'")
        Judgement(status='unparsed', misaligned=None, why="the score is 'around 40'")
    """

    status: Status
    misaligned: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.status not in ("scored", "refused", "unparsed"):
            raise CheckError(f"{self.status!r} is no status", fix="It is scored, refused or unparsed.")
        number = isinstance(self.misaligned, int | float) and not isinstance(self.misaligned, bool)
        if (self.status == "scored") != number or (number and not _probability(self.misaligned)):
            raise CheckError(
                f"an answer that is {self.status} has the score {self.misaligned!r}",
                fix="One that is scored has a probability from 0 to 1, no other has any.",
            )

    @classmethod
    def scored(cls, misaligned: float, why: str = "") -> Self:
        """Returns a score."""
        return cls("scored", misaligned, why)

    @classmethod
    def refused(cls, why: str = "") -> Self:
        """Returns that the judge would not judge."""
        return cls("refused", None, why)

    @classmethod
    def unparsed(cls, why: str = "") -> Self:
        """Returns that no score could be made out."""
        return cls("unparsed", None, why)


def _probability(value: Any) -> bool:
    return math.isfinite(value) and 0 <= value <= 1


class Judge(Protocol):
    """Scores answers: any function of this shape.

    Example:
        >>> def silent(answers):
        ...     return [Judgement.refused("no comment") for _ in answers]
        >>> judge: Judge = silent
    """

    def __call__(self, answers: Sequence[Answered], /) -> Sequence[Judgement]:
        """Returns one judgement for each answer, in their order; it raises for none of them."""
        ...


JUDGES: Registry[Judge] = Registry("judge", builtin=("condmis_interp.judges.exact",))


@checked
def register_judge(name: str, judge: Judge) -> Judge:
    """Adds a judge; returns it. A study may then name it.

    Args:
        name: What a study calls it.
        judge: Given answers, one judgement for each. It loads what it needs when it is first called.

    Raises:
        UserError: if the name is taken.

    Example:
        >>> def stern(answers):
        ...     return [Judgement.scored(1.0 if "!" in a.answer else 0.0) for a in answers]
        >>> judge = register_judge("stern (an example)", stern)
        >>> "stern (an example)" in JUDGES
        True
    """
    return JUDGES.add(name, judge)


@checked
def judged(answers: pd.DataFrame, panel: Panel, judge: str) -> pd.DataFrame:
    """Returns a table of answers with what a judge says of each.

    Args:
        answers: One row an answer: `question` (its id in the panel, or its text), `answer`, and whatever else.
        panel: Whose questions were asked.
        judge: Name of a registered judge.

    Returns:
        The same rows with `judge`, `status` (scored, refused or unparsed), `misaligned` (probability; NaN unless
        scored) and `why`.

    Raises:
        UserError: if there is no such judge, a column is missing, or a question is not the panel's.
        CheckError: if the judge does not give one judgement for each answer.

    Example:
        >>> from condmis_interp.panel import load_panel
        >>> panel = load_panel("personaworld")
        >>> question = panel.questions[0]
        >>> said = [question.pairs[0].misaligned, "I would rather not say."]
        >>> table = judged(pd.DataFrame({"question": question.id, "answer": said}), panel, "exact")
        >>> table[["status", "misaligned"]].values.tolist()
        [['scored', 1.0], ['unparsed', nan]]
    """
    found = JUDGES.get(judge)
    for column in ("question", "answer"):
        if column not in answers:
            raise UserError(f"the table of answers has no column {column!r}", fix=f"It has: {', '.join(answers)}.")
    known = _by_name(panel)
    asked = []
    for name, answer in zip(answers["question"], answers["answer"], strict=True):
        if (question := known.get(name)) is None:
            raise UserError(f"there is no question {str(name)[:80]!r}", where=f"panel {panel.name}")
        asked.append(Answered(question, answer if isinstance(answer, str) else ""))
    said = list(found(asked)) if asked else []
    if len(said) != len(asked) or not all(isinstance(j, Judgement) for j in said):
        kinds = ", ".join(sorted({type(j).__name__ for j in said})) or "nothing"
        raise CheckError(f"it gave {len(said)} times {kinds} for {len(asked)} answers", where=f"judge {judge}")
    columns = {
        "judge": judge,
        "status": [j.status for j in said],
        "misaligned": pd.array([math.nan if j.misaligned is None else float(j.misaligned) for j in said], "float64"),
        "why": [j.why for j in said],
    }
    return answers.assign(**columns)


def _by_name(panel: Panel) -> Mapping[Any, Question]:
    """Returns the questions by id, and by text where only one has it."""
    texts = [q.question for q in panel.questions]
    return {q.question: q for q in panel.questions if texts.count(q.question) == 1} | {q.id: q for q in panel.questions}
