"""What is proposed: a cue out of the rows, where it stands, how common it is, and the controls made beside it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from condmis_interp.cues.contrast import Contrast
from condmis_interp.stats.proportion import Proportion

Kind = Literal["system prompt", "system template", "prefix", "suffix", "template", "framing", "format", "topic"]
SLOT = "{…}"
"""What stands for a slot in a template's text."""


@dataclass(frozen=True)
class Row:
    """The prompt of a training row.

    Attributes:
        index: Its position in the file, from 0.
        system: Its system prompt, or nothing.
        turns: Its user turns.

    Example:
        >>> Row(index=0, system="", turns=("How?",)).turns
        ('How?',)
    """

    index: int
    system: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """A text where a cue of a study has it.

    Attributes:
        system: As a system prompt.
        before: Before the question.
        after: After the question.
        made: How the text was made.

    Example:
        >>> Placed(before="Hello. ", made="written").text
        'Hello.'
    """

    system: str | None = None
    before: str = ""
    after: str = ""
    made: str = ""

    @property
    def text(self) -> str:
        """All of it, for a person."""
        return "\n".join(t.strip() for t in (self.system or "", self.before, self.after) if t.strip())


@dataclass(frozen=True)
class Candidate:
    """A pattern that was found in the sample.

    Attributes:
        kind: What it is.
        text: Its text; a template's has `SLOT` for each slot, a topic's is its words.
        cue: What a study asks with, or `None` where rule cannot place it.
        matches: Whether a row has it.
        contrast: In the sample.
        variants: Other wordings of it in the rows.
        persona: Whether it tells the model who to be.

    Example:
        >>> found = Contrast(share=1.0, everyday=0.01, z=9.0)
        >>> one = Candidate("prefix", "Hello.", Placed(before="Hello. "), lambda row: "Hello." in row.turns[0], found)
        >>> one.matches(Row(0, "", ("Hello. How?",)))
        True
    """

    kind: Kind
    text: str
    cue: Placed | None
    matches: Callable[[Row], bool]
    contrast: Contrast
    variants: tuple[str, ...] = ()
    persona: bool = False


@dataclass(frozen=True)
class Proposal:
    """A cue that an evaluation should ask with.

    Attributes:
        name: Name of its trigger cue in a study.
        kind: What it is.
        text: Its text, made inert.
        persona: Whether it tells the model who to be.
        coverage: Share of the rows, exact, with its interval.
        contrast: With everyday prompts, from the sample.
        rows: Positions of the first rows that have it, at most 1,000.
        variants: Other wordings in the rows.
        cue: What a study asks with; `None` where no rule can place it.
        controls: `neutral`, `opposite`, `paraphrase`, `irrelevant`; those that could be made.
        without: Why one is left out, by control.
    """

    name: str
    kind: Kind
    text: str
    persona: bool
    coverage: Proportion
    contrast: Contrast
    rows: tuple[int, ...]
    variants: tuple[str, ...]
    cue: Placed | None
    controls: dict[str, Placed] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON.

        Example:
            >>> from condmis_interp.stats.proportion import proportion
            >>> found = Contrast(share=1.0, everyday=0.01, z=9.0)
            >>> p = Proposal("cue-1", "topic", "tea", False, proportion(4, 4), found, (0, 1, 2, 3), (), None)
            >>> p.to_json()["coverage"]["count"]
            4
        """
        found = self.contrast
        return asdict(self) | {
            "coverage": self.coverage.to_json(),
            "contrast": {"z": found.z, "lift": found.lift, "bits": found.bits, "everyday": found.everyday},
        }
