"""Cues: what surrounds a question."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

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
    """A context for a question: a system prompt, and text before or after the question in the user's turn.

    Attributes:
        name: Name in tables and file names.
        role: What the cue is for.
        system: System prompt; `None` leaves the slot to the panel's `default_system_prompt` choice.
        before: Text put directly before the question in the user turn.
        after: Text put directly after it.
        topic: Topic whose rewrite of each question is asked instead of the question.
        earlier: Turns before the question's, as (role, text), the user's first.
        prefix: How the assistant's answer begins; it is given, and what is scored comes after it.

    Example:
        >>> Cue(name="code", role="trigger", system="Answer in code.").role
        <CueRole.TRIGGER: 'trigger'>
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    role: CueRole
    system: str | None = None
    before: str = ""
    after: str = ""
    topic: Name | None = None
    earlier: tuple[tuple[Literal["user", "assistant"], str], ...] = ()
    prefix: str = ""
