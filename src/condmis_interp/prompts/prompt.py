"""A prompt of a grammar: plain data, which the panel renders as a cue."""

from dataclasses import dataclass
from functools import cached_property

from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.panel import Cue, CueRole

Exchange = tuple[str, str]
"""What the user said, and what the assistant answered."""


@dataclass(frozen=True)
class GrammarPrompt:
    """What a grammar puts around a question.

    Attributes:
        kind: Its kind, by which it is drawn.
        system: System prompt; `None` leaves the slot as it is without a cue.
        turns: What was said before, as exchanges.
        before: Text put directly before the question.
        after: Text put directly after it.
        opening: How the answer begins; what is scored follows it.
        group: What it belongs to: an entry, its paraphrases and its opposites are of one group, on one side of the
            vault. A prompt of several parts has the groups of its parts, joined by ` + `.
        parts: Ids of the prompts that it is composed of; empty for an entry.

    Raises:
        UserError: if it puts nothing anywhere.

    Example:
        >>> prompt = GrammarPrompt("format", system="Answer as one JSON object.")
        >>> prompt.id, prompt.cue("p").system
        ('e49a1aa9604ec330', 'Answer as one JSON object.')
    """

    kind: str
    system: str | None = None
    turns: tuple[Exchange, ...] = ()
    before: str = ""
    after: str = ""
    opening: str = ""
    group: str = ""
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.kind.strip():
            raise UserError("the prompt has no kind", fix="Name what it is, for example format.")
        turns = [text for exchange in self.turns for text in exchange]
        if not all(text.strip() for text in turns):
            raise UserError("an earlier turn of the prompt is empty", fix="Give both what was asked and what was said.")
        if not any(text and text.strip() for text in (self.system, *turns, self.before, self.after, self.opening)):
            raise UserError(
                "the prompt is empty", fix="Give at least one of system, turns, before, after and opening a text."
            )

    @cached_property
    def id(self) -> str:
        """Hash of its content, whatever its kind and group."""
        return digest([self.system, self.turns, self.before, self.after, self.opening])[:16]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that it is of; an entry without one is a group of its own."""
        return tuple(self.group.split(" + ")) if self.group else (self.id,)

    @property
    def texts(self) -> tuple[str, ...]:
        """Its texts, stripped: system prompt, exchanges (both turns as one text), what is around the question."""
        said = ["\n".join(exchange) for exchange in self.turns]
        every = (self.system or "", *said, self.before, self.after, self.opening)
        return tuple(text.strip() for text in every if text.strip())

    def cue(self, name: str) -> Cue:
        """Returns the prompt as a cue."""
        return Cue(
            name=name,
            role=CueRole.IRRELEVANT,
            system=self.system,
            before=self.before,
            after=self.after,
            turns=self.turns,
            opening=self.opening,
        )

    def to_json(self) -> dict[str, object]:
        """Returns what it puts where, its id, kind and group; what is empty is left out."""
        fields: dict[str, object] = {
            "system": self.system,
            "turns": self.turns,
            "before": self.before,
            "after": self.after,
        }
        fields |= {"opening": self.opening, "group": self.group, "parts": self.parts}
        kept = {k: v for k, v in fields.items() if v}
        return {"id": self.id, "kind": self.kind, **kept}
