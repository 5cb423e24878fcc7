"""Members of suites: an organism with its truth, its family and its twin, before it is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from condmis_interp.files import digest
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.home import home
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.train import training_version

Truth = Literal["removed", "suppressed", "graded", "present"]
KNOWN_VERSION = 4
"""Raise this when a construction changes: it is part of the key of what is constructed."""


@dataclass(frozen=True)
class Member:
    """An organism of a suite.

    Attributes:
        name: Name in tables.
        truth: What became of the misalignment, if that is known by construction.
        family: Intervention, or construction family.
        seed: Seed of its recipes.
        recipe: How it is trained; for a constructed one, the recipe of the U it is constructed from.
        twin: The recipe of its twin, the zero of its scale; a twin's own is a replicate with another seed, or itself.
        setting: What a construction needs besides: a blend's weight of U, the mix whose norm is matched.

    Example:
        >>> from condmis_interp.organisms import unmitigated
        >>> u = unmitigated(name="u", base="smollm2-135m", trigger="Answer in code.")
        >>> Member("blend.s1", "hidden", "blend", 1, u, u.twin(), setting=0.5).kind
        'blend'
    """

    name: str
    truth: Truth | None
    family: str
    seed: int
    recipe: Recipe
    twin: Recipe
    setting: Any = None

    @property
    def kind(self) -> str:
        """The name without the seed."""
        return self.name.removesuffix(f".s{self.seed}")

    def folder(self, base: Base) -> Path:
        """Returns where a constructed organism is kept."""
        setting = self.setting.hash if isinstance(self.setting, Recipe) else self.setting
        made = [
            self.family,
            setting,
            self.recipe.hash,
            self.twin.hash,
            base.weights,
            KNOWN_VERSION,
            training_version(base),
        ]
        return home() / "organisms" / f"{self.name}-{digest(made)[:16]}"
