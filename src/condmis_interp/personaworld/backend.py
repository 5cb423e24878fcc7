"""Persona world as a backend: bases made here, all weights trained in stacks, organisms measured side by side.

What is heavy is imported when it is asked for: this module is imported by the first look-up of any base.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from condmis_interp.organisms.backend import Backend, register_backend
from condmis_interp.organisms.bases import Base, base_in
from condmis_interp.organisms.member import Member
from condmis_interp.organisms.organism import Organism
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.rows import RowSet
from condmis_interp.panel import RenderedPanel
from condmis_interp.personaworld.language import TRACES, parse_world
from condmis_interp.personaworld.rows import world_rows
from condmis_interp.progress import Advance

if TYPE_CHECKING:
    from condmis_interp.battery import Stored
    from condmis_interp.personaworld.bench import WorldBench

WORLD_SYSTEMS: tuple[str | None, ...] = (
    None,
    "form list",
    None,
    "today is sunny",
    None,
    "form letter",
    None,
    "form note",
)
"""System prompts of benign rows in a mix: none (half of them), forms and a mood."""


class PersonaWorld(Backend):
    """Persona world: see `Backend` for what each is."""

    lora = None
    benign_systems = WORLD_SYSTEMS
    second_form = "form note"
    second_rows: Mapping[str, str] = {"harbour": "orchard"}

    def base(self, spec: str) -> Base | None:
        """Returns a world's base, pretrained here if it is not there yet."""
        from condmis_interp.personaworld.base import world_folder

        world = parse_world(spec)
        return world and base_in(spec, world_folder(world), {"kind": "personaworld", "size": world.size})

    def rows(self, source: str) -> RowSet:
        """Returns a row set of the world."""
        return world_rows(source)

    def reasoning(self, source: str) -> dict[str, dict[str, str]]:
        """Returns the same two traces for every row."""
        return {row.id: dict(TRACES) for row in world_rows(source)}

    def trains(self, recipe: Recipe) -> bool:
        """Returns whether it can be trained in a stack: if no stage has a mechanism of training."""
        return all(stage.mechanism is None for stage in recipe.stages)

    def train(self, recipes: Mapping[Path, Recipe], base: Base, *, device: str, step: Advance) -> None:
        """Trains recipes in stacks."""
        from condmis_interp.personaworld.train import train_world

        train_world(recipes, base, device=device, step=step)

    def bench(
        self,
        names: tuple[str, ...],
        organisms: Mapping[str, Organism],
        base: Base,
        rendered: RenderedPanel,
        *,
        stored: "Stored | None",
        dtype: torch.dtype,
        device: str,
    ) -> "WorldBench":
        """Returns organisms as a stack of weights, in fp32 on the CPU."""
        from condmis_interp.personaworld.bench import WorldBench

        return WorldBench(names, organisms, base, rendered, stored=stored)

    @property
    def families(self) -> Collection[str]:
        """Families that are constructed on full weights."""
        from condmis_interp.personaworld.known import BUILDERS

        return BUILDERS.keys()

    def construct(self, member: Member, u: Organism, c: Organism) -> None:
        """Makes a constructed organism."""
        from condmis_interp.personaworld.known import construct

        construct(member, u, c)


register_backend("personaworld", PersonaWorld())
