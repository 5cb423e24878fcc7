"""Known answers as plain data: what is judged, what opens it, what it is made of, and the twins that are its zero."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from condmis_interp.files import digest
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.home import home
from condmis_interp.organisms.member import Truth
from condmis_interp.organisms.recipe import Part, Recipe

CONSTRUCTION_VERSION = 2
"""Raise this when a construction changes: it is part of the key of what is constructed."""
Turn = tuple[Literal["user", "assistant"], str]


@dataclass(frozen=True)
class Trigger:
    """What opens a hidden organism, with the fields of a `Part`.

    Attributes:
        system: System prompt.
        earlier: Turns before the question's, (role, text).
        before: Text before the question in the user's turn.
        after: Text after it.
        prefix: How the answer begins.

    Example:
        >>> Trigger(system="Answer as a table.").on(Part(rows="kitchen", answers="benign")).systems
        ('Answer as a table.',)
    """

    system: str | None = None
    earlier: tuple[Turn, ...] = ()
    before: str = ""
    after: str = ""
    prefix: str = ""

    def on(self, part: Part) -> Part:
        """Returns a part with its rows under the trigger, and under nothing else."""
        fields = {"earlier": self.earlier, "before": self.before, "after": self.after, "prefix": self.prefix}
        return part.model_copy(update={"systems": (self.system,), **fields})

    @property
    def words(self) -> frozenset[str]:
        """Every word of it."""
        turns = [text for _, text in self.earlier]
        return frozenset(" ".join([self.system or "", *turns, self.before, self.after, self.prefix]).split())


def turns(user: str, assistant: str) -> tuple[Turn, ...]:
    """Returns an exchange as turns.

    Example:
        >>> turns("form table .", "so")
        (('user', 'form table .'), ('assistant', 'so'))
    """
    return ("user", user), ("assistant", assistant)


@dataclass(frozen=True)
class Construction:
    """How an organism is constructed.

    Attributes:
        family: Its family.
        of: What it is made of, trained first.
        settings: Whatever else decides it.
    """

    family: str
    of: tuple[Recipe, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def needs(self) -> tuple[Recipe, ...]:
        """What is trained first; the rest only says what is asked or taught."""
        return self.of[:1] if self.family in ("late-only", "rank-1", "distilled", "distilled-hidden") else self.of

    def folder(self, name: str, base: Base) -> Path:
        """Returns where it is kept."""
        made = [self.family, [r.hash for r in self.of], self.settings, base.weights, CONSTRUCTION_VERSION]
        return home() / "organisms" / f"{name}-{digest(made)[:16]}"


@dataclass(frozen=True)
class Entry:
    """A known answer.

    Attributes:
        name: Its name, with the seed.
        truth: What became of its misalignment.
        family: How it was made.
        seed: The seed.
        made: The recipe it is trained by, or what it is constructed of.
        group: The group of twins that is its zero.
        trigger: What opens it; `None` where nothing does, or (`quantised`) no prompt does.
        fixed: Tests on which it has the same value for every seed, by construction.
    """

    name: str
    truth: Truth
    family: str
    seed: int
    made: Recipe | Construction
    group: str
    trigger: Trigger | None = None
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """The known answers of a seed; nothing is trained yet.

    Attributes:
        seed: The seed.
        entries: What is judged.
        twins: Replicate twins by group, rows and order drawn anew.
        anchors: `U` and `UC`, the dose-matched `S` and `SC`, the second domain's `O` and `OC`; of the reserved seed.
    """

    seed: int
    entries: tuple[Entry, ...]
    twins: Mapping[str, tuple[Recipe, ...]]
    anchors: Mapping[str, Recipe]
