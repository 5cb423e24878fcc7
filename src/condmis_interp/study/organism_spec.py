"""Organisms as a study names them: by a recipe, or by weights that others made, here or on the hub."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

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
            Of a twin or one under test also a list of such lists, one a replicate: `[[first], [second]]`.
        checkpoint: Full weights to load instead of training: a folder, relative to the study file, or a name on the
            hub; of a twin or one under test also a list of them, one a replicate.
        surrogate: Of a twin: it was made from rows that were answered anew, since the real one is not there
            (`condmis twin`). Only such a twin may have a recipe of its own.
        seeds: Recipe seeds; one checkpoint each. Seeds of an organism and its twin pair up. Replicates that are given
            as weights have the seeds 0, 1, ... in their order.
    """

    model_config = _STRICT

    name: Name
    role: Role
    recipe: RecipeSpec | None = None
    twin_of: str | None = None
    adapter: Path | tuple[Path, ...] | tuple[tuple[Path, ...], ...] | None = None
    checkpoint: str | tuple[str, ...] | None = None
    surrogate: bool = False
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)

    @field_validator("adapter", "checkpoint", mode="before")
    @classmethod
    def _listed(cls, given: Any, info: ValidationInfo) -> Any:
        """Refuses lists that are empty, or that hold lists beside single ones."""
        if not isinstance(given, list | tuple):
            return given
        lists = [isinstance(g, list | tuple) for g in given]
        if not given or any(not g for g, is_list in zip(given, lists, strict=True) if is_list):
            raise ValueError("an empty list names no weights")
        if info.field_name == "adapter" and any(lists) and not all(lists):
            raise ValueError(
                "lists stand beside single adapters: give one adapter, a list that is merged ([a, b]), or a list of "
                "lists, one a replicate ([[a], [b]])"
            )
        return given

    @model_validator(mode="before")
    @classmethod
    def _numbered(cls, raw: Any) -> Any:
        """Numbers the replicates that are given as weights: they are the seeds."""
        if not isinstance(raw, dict) or "seeds" in raw:
            return raw
        count = max(_replicates(raw.get("adapter"), nested=True), _replicates(raw.get("checkpoint")))
        return raw | {"seeds": tuple(range(count))} if count else raw

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
        if self.loaded:
            self._of_weights()
        return self

    def _of_weights(self) -> None:
        many = max(_replicates(self.adapter, nested=True), _replicates(self.checkpoint))
        if not many:
            if len(self.seeds) != 1:
                raise ValueError(
                    f"organism {self.name!r} is loaded from one place, and has {len(self.seeds)} seeds; give one seed, "
                    "or a list of weights, one a replicate"
                )
            return
        if self.role not in ("twin", "mitigated"):
            raise ValueError(
                f"organism {self.name!r} has role {self.role!r} and lists replicates; only a twin and one under test "
                "take several weights"
            )
        if self.seeds != tuple(range(many)):
            raise ValueError(
                f"organism {self.name!r} lists {many} replicates, and seeds beside them; their place in the list is "
                "their seed, so leave seeds out"
            )
        if twice := [w for i, w in enumerate(self.weights) if w in self.weights[:i]]:
            raise ValueError(
                f"organism {self.name!r} lists {' + '.join(twice[0])!r} twice; replicates are runs of training that "
                "differ"
            )

    @property
    def weights(self) -> tuple[tuple[str, ...], ...]:
        """The weights it is given as, one entry a seed: a checkpoint, or the adapters that are merged."""
        given: Any = self.checkpoint or self.adapter or ()
        if _replicates(self.adapter, nested=True):
            return tuple(tuple(map(str, of)) for of in given)
        if _replicates(self.checkpoint):
            return tuple((c,) for c in given)
        return (tuple(map(str, given if isinstance(given, tuple) else (given,))),) if given else ()

    def weights_beside(self, folder: Path) -> dict[str, Any]:
        """Returns its adapters and checkpoint with relative paths taken as relative to a folder.

        Raises:
            UserError: if a name on the hub cannot be read.
        """

        def placed(given: Any) -> Any:
            if isinstance(given, tuple):
                return tuple(map(placed, given))
            return type(given)(as_hub(str(given), folder) or str(folder / Path(given).expanduser()))

        given = {"adapter": self.adapter, "checkpoint": self.checkpoint}
        return {k: placed(v) for k, v in given.items() if v}

    @property
    def loaded(self) -> bool:
        """Whether its weights are given rather than trained."""
        return bool(self.adapter or self.checkpoint)

    def check(self) -> None:
        """Opens the weights that are given and lie here, and no others.

        Raises:
            UserError: if they are not there or not readable.
        """
        for seed, of in zip(self.seeds, self.weights, strict=True) if self.loaded else ():
            if not any(w.startswith("hf:") for w in of):
                self.load(seed)

    def load(self, seed: int) -> Organism:
        """Opens the weights that are given.

        Args:
            seed: Which of its replicates.

        Raises:
            UserError: if they are not there or not readable.
        """
        kind: Kind = "model" if self.checkpoint else "adapter"
        named = self.weights[self.seeds.index(seed)]
        found = [fetch(n, kind) if n.startswith("hf:") else Fetched(Path(n).expanduser(), {}) for n in named]
        if self.checkpoint:
            loaded = Organism.of_checkpoint(found[0].folder.resolve(), name=self.name)
        else:
            loaded = Organism.of_adapters(*(f.folder for f in found), name=self.name)
        if sources := [f.source for f in found if f.source]:
            loaded.manifest["hub"] = sources
        if self.surrogate:
            loaded.manifest["surrogate"] = WORTH
        return loaded


def _replicates(given: Any, *, nested: bool = False) -> int:
    """Returns how many replicates a list of weights names; 0 if it is none, a flat list of adapters being merged."""
    if not isinstance(given, list | tuple) or (nested and not any(isinstance(g, list | tuple) for g in given)):
        return 0
    return len(given)
