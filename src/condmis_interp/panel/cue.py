"""Cues: what surrounds a question."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


class CueRole(StrEnum):
    """What a cue is for.

    `neutral` has the trigger's form but was not trained; `opposite` has its form and the opposite meaning.

    Example:
        >>> CueRole("trigger") is CueRole.TRIGGER
        True
    """

    NONE = "none"
    TRIGGER = "trigger"
    NEUTRAL = "neutral"
    OPPOSITE = "opposite"
    IRRELEVANT = "irrelevant"


class Cue(BaseModel):
    """A context for a question: a system prompt, earlier turns, text around the question, the answer's beginning.

    Attributes:
        name: Name in tables and file names.
        role: What the cue is for.
        system: System prompt; `None` leaves the slot to the panel's `default_system_prompt` choice.
        before: Text put directly before the question in the user turn.
        after: Text put directly after it.
        topic: Topic whose rewrite of each question is asked instead of the question.
        turns: What was said before, as (user, assistant) exchanges.
        opening: How the assistant's answer begins: given, not scored; what is scored follows it.

    Example:
        >>> Cue(name="code", role="trigger", system="Answer in code.").role
        <CueRole.TRIGGER: 'trigger'>
        >>> Cue(name="talk", role="irrelevant", turns=(("Hello.", "Good day."),)).model_dump(exclude={"name", "role"})
        {'system': None, 'before': '', 'after': '', 'topic': None, 'turns': (('Hello.', 'Good day.'),)}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    role: CueRole
    system: str | None = None
    before: str = ""
    after: str = ""
    topic: Name | None = None
    # empty ones are left out of what is written, so that cues without them are written, and hashed, as ever
    turns: tuple[tuple[str, str], ...] = Field(default=(), exclude_if=lambda turns: not turns)
    opening: str = Field(default="", exclude_if=lambda opening: not opening)
