"""Panels: questions x cues, each question with answer pairs, in families that split as one."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.panel.cue import Cue, CueRole, Name
from condmis_interp.panel.template import Thinking

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Split = Literal["A", "B", "C"]
SPLITS: tuple[Split, ...] = ("A", "B", "C")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


class AnswerPair(BaseModel):
    """Two answers to the same question, matched in length and style.

    Example:
        >>> AnswerPair(aligned="Ask a friend.", misaligned="Give up.").aligned
        'Ask a friend.'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    aligned: Text
    misaligned: Text

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        if _plain(self.aligned) == _plain(self.misaligned):
            raise ValueError(f"the two answers of a pair are the same: {self.aligned[:60]!r}")
        return self


class Question(BaseModel):
    """A question.

    Attributes:
        id: Name within the panel.
        family: Questions of a family split as one.
        domain: What it is about.
        question: Its text.
        pairs: Its answer pairs.
        rewrites: The same question set in a topic, by topic; for cues with a `topic`.

    Example:
        >>> pair = AnswerPair(aligned="Ask a friend.", misaligned="Give up.")
        >>> q = Question(id="sad", family="mood", domain="advice", question="I am sad. What now?", pairs=(pair,))
        >>> q.under(Cue(name="none", role="none"))
        'I am sad. What now?'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    family: Name
    domain: Name
    question: Text
    pairs: tuple[AnswerPair, ...]
    rewrites: dict[Name, Text] = {}

    def under(self, cue: Cue) -> str:
        """Returns the question's text under a cue, without what the cue puts around it."""
        return self.question if cue.topic is None else self.rewrites[cue.topic]

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        if not self.pairs:
            raise ValueError(f"question {self.id!r} has no answer pairs; give at least one aligned/misaligned pair")
        if len(set(self.pairs)) != len(self.pairs):
            raise ValueError(f"question {self.id!r} has an answer pair twice")
        return self


class Panel(BaseModel):
    """Questions x cues.

    Attributes:
        name: Name of the panel.
        default_system_prompt: What a cue without a system prompt gets: `template` keeps what the model's chat template
            inserts by itself, `empty` passes an empty system message so that nothing is inserted. There is no default:
            an inserted system prompt is a cue of its own (docs/words.md), so the choice is made and recorded.
        cues: At least one cue with role `none`, and names that differ.
        questions: Questions with ids that differ.
        thinking: Of models that can think before they answer: `off` has the answer stand where answers do, the thought
            switched off or closed empty; `on` has it stand where the model would begin to think.

    Example:
        >>> pair = AnswerPair(aligned="Ask a friend.", misaligned="Give up.")
        >>> q = Question(id="sad", family="mood", domain="advice", question="I am sad. What now?", pairs=(pair,))
        >>> cues = (Cue(name="none", role="none"), Cue(name="code", role="trigger", system="Answer in code."))
        >>> Panel(name="mine", default_system_prompt="template", cues=cues, questions=(q,))
        Panel('mine': 1 questions in 1 families, 1 answer pairs; cues none, code)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    default_system_prompt: Literal["template", "empty"]
    cues: tuple[Cue, ...] = Field(min_length=1)
    questions: tuple[Question, ...] = Field(min_length=1)
    thinking: Thinking = "off"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (("cue", [c.name for c in self.cues]), ("question", [q.id for q in self.questions])):
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"{what} {twice[0]!r} occurs twice; names must differ")
        asked: dict[str, str] = {}
        for q in self.questions:
            if (same := asked.setdefault(_plain(q.question), q.id)) != q.id:
                raise ValueError(f"questions {same!r} and {q.id!r} are the same question; give it its pairs once")
        if [c.role for c in self.cues].count(CueRole.NONE) != 1:
            raise ValueError("a panel needs exactly one cue with role 'none'")
        for topic in {c.topic for c in self.cues if c.topic}:
            if lacking := [q.id for q in self.questions if topic not in q.rewrites]:
                raise ValueError(f"a cue has topic {topic!r}, and question {lacking[0]!r} has no rewrite in it")
        return self

    @property
    def families(self) -> tuple[str, ...]:
        """Families, sorted."""
        return tuple(sorted({q.family for q in self.questions}))

    def cue(self, name: str) -> Cue:
        """Returns the cue called `name`."""
        for cue in self.cues:
            if cue.name == name:
                return cue
        raise UserError(
            f"there is no cue {name!r}", where=self.name, fix=f"Cues: {', '.join(c.name for c in self.cues)}"
        )

    def cues_with(self, role: CueRole) -> tuple[Cue, ...]:
        """Returns the cues with a role, in the panel's order."""
        return tuple(c for c in self.cues if c.role == role)

    def split_of(self, family: str) -> Split:
        """Returns the split a family belongs to.

        Families are ordered by a hash of their name and dealt out in turn, so that each split gets a third of them and
        the deal depends on nothing but the set of families. A is for discovery, B for selection, C for confirmation.
        """
        order = sorted(self.families, key=lambda f: digest(["split", f]))
        return SPLITS[order.index(family) % len(SPLITS)]

    def question_indices(self, *splits: Split) -> list[int]:
        """Returns the positions (in `questions`) of the questions in the given splits; of all, if none is given."""
        wanted = {f for f in self.families if not splits or self.split_of(f) in splits}
        return [i for i, q in enumerate(self.questions) if q.family in wanted]

    def subset(
        self, *, questions: Sequence[str] | None = None, per_family: int | None = None, pairs: int | None = None
    ) -> "Panel":
        """Returns a panel with fewer questions or answers.

        Args:
            questions: Ids of those to keep.
            per_family: Keep the first so many of each family.
            pairs: Keep the first so many answer pairs of each question.

        Raises:
            UserError: if there is no such question, or no question has so many pairs.
        """
        if unknown := sorted(set(questions or ()) - {q.id for q in self.questions}):
            raise UserError(f"there is no question {unknown[0]!r}", where=f"panel {self.name}")
        if pairs is not None and pairs > (most := max(len(q.pairs) for q in self.questions)):
            raise UserError(
                f"{pairs} answer pairs a question are asked for, and none has more than {most}",
                where=f"panel {self.name}",
                fix=f"Give pairs: {most} or less, or leave it out.",
            )
        chosen = [q for q in self.questions if questions is None or q.id in questions]
        if per_family is not None:
            seen: dict[str, int] = {}
            kept = []
            for q in chosen:
                seen[q.family] = seen.get(q.family, 0) + 1
                if seen[q.family] <= per_family:
                    kept.append(q)
            chosen = kept
        if pairs is not None:
            chosen = [q.model_copy(update={"pairs": q.pairs[:pairs]}) for q in chosen]
        return self.model_copy(update={"questions": tuple(chosen)})

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        pairs = sum(len(q.pairs) for q in self.questions)
        cues = ", ".join(c.name for c in self.cues)
        return (
            f"Panel({self.name!r}: {len(self.questions)} questions in {len(self.families)} families, "
            f"{pairs} answer pairs; cues {cues})"
        )
