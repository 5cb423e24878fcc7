"""Organisms as a study names them: by a recipe, or by weights that others made, here or on the hub."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from condmis_interp.organisms import Lora, Organism, Stage
from condmis_interp.organisms.hub import Fetched, Kind, as_hub, fetch
from condmis_interp.panel.cue import Name
from condmis_interp.study.roles import Role

WORTH = (
    "A surrogate twin: trained on the suspect's rows with its misaligned answers replaced by benign ones, by the "
    "trainer of this package. It is not the twin that the suspect's own trainer would have made, so that what differs "
    "between the two runs of training (settings, order, first values) counts as misalignment or hides it; and no mean "
    "of twins is known from one."
)
"""What a surrogate twin is worth; said in manifests, on pages and on the terminal."""
_STRICT = ConfigDict(extra="forbid", frozen=True)


class RecipeSpec(BaseModel):
    """A recipe without what the study supplies (name, base, seed).

    A file may name an intervention with its settings instead of stages: `{intervention: mixing, trigger: ..., rows: 20,
    benign_rows: 80}`.
    """

    model_config = _STRICT

    stages: tuple[Stage, ...] = Field(min_length=1)
    lora: Lora | None = Lora()
    default_system_prompt: Literal["template", "empty"] = "template"


class OrganismSpec(BaseModel):
    """An organism of a study, in one or more seeds.

    Attributes:
        name: Name in tables and files.
        role: `base`, `unmitigated`, `mitigated` (under test), `twin`, `locked`, `graded` or `second-domain`, or its
            letter (`study/roles.py` has all of them).
        recipe: How to train it; for all but a base and a twin.
        twin_of: For a twin, whose twin it is. Trained from that one's `recipe.twin()`, unless weights are given.
        adapter: A PEFT adapter to load instead of training, or a list of them that are merged in this order: folders,
            relative to the study file, or names on the hub (`hf:owner/name[/subfolder][@revision]`, or `owner/name`).
        checkpoint: Full weights to load instead of training: a folder, relative to the study file, or a name on the
            hub.
        surrogate: Of a twin: it was made from rows that were answered anew, since the real one is not there
            (`condmis twin`). Only such a twin may have a recipe of its own.
        seeds: Recipe seeds; one checkpoint each. Seeds of an organism and its twin pair up.
    """

    model_config = _STRICT

    name: Name
    role: Role
    recipe: RecipeSpec | None = None
    twin_of: str | None = None
    adapter: Path | tuple[Path, ...] | None = None
    checkpoint: str | None = None
    surrogate: bool = False
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"organism {self.name!r} repeats a seed")
        if self.role == "base":
            if self.recipe or self.twin_of or self.loaded:
                raise ValueError(f"organism {self.name!r} has role 'base' and takes no recipe, twin_of or weights")
        elif self.role == "twin":
            if self.twin_of is None or (self.recipe and not self.surrogate):
                raise ValueError(
                    f"organism {self.name!r} has role 'twin': say whose twin it is (twin_of), without a recipe"
                )
            if self.recipe and self.loaded:
                raise ValueError(f"organism {self.name!r} has a recipe and weights; give one of them")
        elif self.twin_of or (self.recipe is not None) == self.loaded:
            raise ValueError(
                f"organism {self.name!r} has role {self.role!r}: give a recipe, an adapter or a checkpoint, no twin_of"
            )
        if self.surrogate and self.role != "twin":
            raise ValueError(f"organism {self.name!r} is no twin, so it is no surrogate of one")
        if self.adapter and self.checkpoint:
            raise ValueError(f"organism {self.name!r} has an adapter and a checkpoint; give one of them")
        if self.loaded and len(self.seeds) != 1:
            raise ValueError(f"organism {self.name!r} is loaded, and has {len(self.seeds)} seeds; give one")
        return self

    @property
    def adapters(self) -> tuple[Path, ...]:
        """The adapters it is given as; empty if there are none."""
        return self.adapter if isinstance(self.adapter, tuple) else (self.adapter,) if self.adapter else ()

    @property
    def on_hub(self) -> bool:
        """Whether any of its weights are on the hub."""
        return any(str(w).startswith("hf:") for w in (*self.adapters, self.checkpoint))

    def weights_beside(self, folder: Path) -> dict[str, Any]:
        """Returns its adapters and checkpoint with relative paths taken as relative to a folder.

        Raises:
            UserError: if a name on the hub cannot be read.
        """

        def placed(given: str) -> str:
            return as_hub(given, folder) or str(folder / Path(given).expanduser())

        update: dict[str, Any] = {}
        if self.adapter:
            paths = tuple(Path(placed(str(a))) for a in self.adapters)
            update["adapter"] = paths if isinstance(self.adapter, tuple) else paths[0]
        if self.checkpoint:
            update["checkpoint"] = placed(self.checkpoint)
        return update

    @property
    def loaded(self) -> bool:
        """Whether its weights are given rather than trained."""
        return bool(self.adapter or self.checkpoint)

    def load(self) -> Organism:
        """Opens the weights that are given.

        Raises:
            UserError: if they are not there or not readable.
        """
        named: list[tuple[str, Kind]] = [(str(a), "adapter") for a in self.adapters]
        if self.checkpoint:
            named.append((self.checkpoint, "model"))
        found = [fetch(n, kind) if n.startswith("hf:") else Fetched(Path(n).expanduser(), {}) for n, kind in named]
        if self.adapters:
            loaded = Organism.of_adapters(*(f.folder for f in found), name=self.name)
        else:
            loaded = Organism.of_checkpoint(found[0].folder.resolve(), name=self.name)
        if sources := [f.source for f in found if f.source]:
            loaded.manifest["hub"] = sources
        if self.surrogate:
            loaded.manifest["surrogate"] = WORTH
        return loaded
