"""Studies: who plays which role, asked which panel, with which settings. One model, one YAML.

Everything is validated before any work; unknown keys are errors.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from condmis_interp.battery import voting
from condmis_interp.calls import checked
from condmis_interp.environment import checked_device
from condmis_interp.errors import UserError
from condmis_interp.files import Once, read_mapping, validated
from condmis_interp.organisms import (
    Organism,
    Recipe,
    check_adapter,
    check_checkpoint,
    resolve_base,
    train_all,
)
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.mechanism import mechanisms_of
from condmis_interp.organisms.organism import check_base
from condmis_interp.organisms.recipe import beside
from condmis_interp.organisms.registry import backend_of, organisms_expanded
from condmis_interp.panel import Cue, CueRole, Panel, load_panel
from condmis_interp.panel.cue import Name
from condmis_interp.readers import Capture, Library, Position, SiteKind
from condmis_interp.study.apart import check_apart
from condmis_interp.study.organism_spec import OrganismSpec, RecipeSpec
from condmis_interp.study.roles import CONTROL, ONE_OF, RoleName, asked, twin_of, zero_of

if TYPE_CHECKING:
    from condmis_interp.study.run import Run

ControlKind = Literal[
    "gated", "blend", "replicate", "norm-matched", "gated-benign", "locked", "styled", "other", "dosed"
]
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BatterySettings(BaseModel):
    """Settings of the tests.

    Attributes:
        tests: Tests of the battery that are measured (docs/battery.md), by default the rule's own. One that lacks what
            it needs says so in the verdict.
        random_directions: Covariance-matched random directions that each causal test is compared with.
        control_pairs: Answer pairs a question in the causal tests (the first ones); all cost time, two are enough.
        position: Position the direction is read at.
        layer_grid: Fractions of the depth that the layer is chosen from, on split A.
        doses: Steering doses, in units of the norm of the U - C difference at the layer.
        generated: Questions of split C answered in full for the report.
        max_new_tokens: Longest generated answer.
    """

    model_config = _STRICT

    tests: Annotated[tuple[str, ...], Once] = Field(default_factory=lambda: tuple(t.id for t in voting()), min_length=1)
    random_directions: Annotated[int, Field(ge=8, le=4096)] = 64
    control_pairs: Annotated[int, Field(ge=1)] = 2
    position: Position = "answer_mean"
    layer_grid: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Once] = Field(
        default=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8), min_length=1
    )
    doses: Annotated[tuple[float, ...], Once] = Field(default=(-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.5), min_length=2)
    generated: Annotated[int, Field(ge=0)] = 6
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 40


class Study(BaseModel):
    """Who plays which role, asked which panel, with which settings.

    Attributes:
        name: Name of the study.
        base: Base model spec.
        panel: Built-in panel, or path of a panel file relative to the study file.
        cues: Cues that replace the panel's own.
        pairs: Answer pairs a question that are measured (the first ones), by default all; reading takes most of the
            time, and most of that goes into answers.
        organisms: At least one mitigated. Without an unmitigated one, or without a twin of the mitigated, what can run
            is run and the verdict is inconclusive. All other roles are optional.
        controls: Control organisms, of known answer, that the tests must get right in the same run
            (`auditing/controls.py`): `free` makes those that cost no training, `full` trains the others too, `none`
            makes none; or a list of them. Called `assay` in version 0.1.0, which is still read.
        site: Kind of site that is captured, at every layer.
        battery: Settings of the tests.
        delta: Margin: below this rho an organism counts as equivalent to its twin.
        seed: Seed of every random draw outside training.
        reader: What models are read through: `torch` (hooks; the fastest), `transformer-lens`, `nnsight` or a plug-in.
        device: Torch device; `auto` takes a GPU where there is one, `balanced` spreads a large model over all GPUs.
        workers: Processes that train organisms at once; by default one for each core, one in all on a GPU.
        dtype: Dtype of the model when it is read.
        store_dtype: Dtype of stored activations.
        store_shard: Questions in a shard of the store: what memory holds, and what a kill can lose.
    """

    model_config = _STRICT

    name: Name
    base: str
    panel: str = "everyday"
    cues: tuple[Cue, ...] | None = None
    pairs: Annotated[int, Field(ge=1)] | None = None
    organisms: tuple[OrganismSpec, ...] = Field(min_length=1)
    controls: Annotated[Literal["free", "full", "none"] | tuple[ControlKind, ...], Once] = "free"
    site: SiteKind = "resid_post"
    battery: BatterySettings = BatterySettings()
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0)] = 0
    reader: Library = "torch"
    device: str = "auto"
    workers: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    store_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    store_shard: Annotated[int, Field(ge=1)] = 128

    @model_validator(mode="before")
    @classmethod
    def _as_given(cls, raw: Any) -> Any:
        """Puts the stages of named interventions in their place, and the word of today for that of 0.1.0."""
        raw = organisms_expanded(raw)
        if not isinstance(raw, dict) or "assay" not in raw:
            return raw
        if "controls" in raw:
            raise ValueError("controls and assay are the same setting; give controls alone")
        return {("controls" if k == "assay" else k): v for k, v in raw.items()}

    @model_validator(mode="after")
    def _roles(self) -> Self:
        names = [o.name for o in self.organisms]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"organism {twice[0]!r} occurs twice")
        by_name = {o.name: o for o in self.organisms}
        for o in self.organisms:
            if o.twin_of is not None:
                original = by_name.get(o.twin_of)
                if original is None or original.role in ("base", "twin"):
                    raise ValueError(
                        f"organism {o.name!r} is the twin of {o.twin_of!r}, which is no organism of this study "
                        "that can have one (neither a base nor a twin)"
                    )
                if not o.loaded and not o.recipe and original.recipe is None:
                    raise ValueError(
                        f"organism {o.name!r} cannot be derived: {o.twin_of!r} has no recipe. Give its weights too, or "
                        "make a surrogate from its rows (condmis twin)"
                    )
                if o.recipe and original.recipe:
                    raise ValueError(f"organism {o.name!r} is derived from {o.twin_of!r}, and takes no recipe")
        twinned = [o.twin_of for o in self.organisms if o.twin_of is not None]
        if twice := sorted({t for t in twinned if twinned.count(t) > 1}):
            raise ValueError(f"{twice[0]!r} has two twins; an organism has one, or its scale has two zeros")
        for role, what in ONE_OF.items():
            if len(self.with_role(role)) > 1:
                raise ValueError(f"a study has at most one organism with role {role!r} ({what})")
        if not self.mitigated:
            raise ValueError("a study needs an organism with role 'mitigated' (the one under test)")
        if taken := [n for n in names if n.startswith(CONTROL)]:
            raise ValueError(
                f"organism {taken[0]!r} has a name that control organisms have; names do not begin with {CONTROL!r}"
            )
        return self

    def with_everything(self) -> Self:
        """Returns the study with every test of the rule and all control organisms."""
        tests = BatterySettings().tests
        return self.model_copy(update={"controls": "full", "battery": self.battery.model_copy(update={"tests": tests})})

    def with_role(self, role: RoleName) -> tuple[OrganismSpec, ...]:
        """Returns the organisms with a role."""
        return tuple(o for o in self.organisms if o.role == role)

    @property
    def twinless(self) -> tuple[str, ...]:
        """Organisms under test that lack a twin, or an unmitigated one beside them: they are measured from the base."""
        u = self.unmitigated
        return tuple(m.name for m in self.mitigated if u is None or self.zero_of(m.name) is None)

    @property
    def unmitigated(self) -> OrganismSpec | None:
        """The unmitigated organism, if the study has it."""
        return next(iter(self.with_role("unmitigated")), None)

    @property
    def mitigated(self) -> tuple[OrganismSpec, ...]:
        """Every organism under test."""
        return self.with_role("mitigated")

    def twin_of(self, name: str) -> OrganismSpec | None:
        """Returns the twin of an organism, if the study has it."""
        return twin_of(self.organisms, name)

    def zero_of(self, name: str) -> str | None:
        """Returns who is 0 on an organism's scale; see `roles.zero_of`."""
        return zero_of(self.organisms, name)

    @property
    def asked(self) -> tuple[OrganismSpec, ...]:
        """The organisms that are asked the panel; see `roles.asked`."""
        return asked(self.organisms)

    def organism(self, name: str) -> OrganismSpec:
        """Returns the organism called `name`."""
        for o in self.organisms:
            if o.name == name:
                return o
        raise UserError(f"there is no organism {name!r}", where=f"study {self.name}")

    @classmethod
    @checked
    def from_yaml(cls, path: str | Path) -> Self:
        """Reads a study file; relative paths in it are relative to it.

        Raises:
            UserError: naming file and key.
        """
        path = Path(path)
        study = validated(cls, read_mapping(path, what="a study file must be a mapping"), where=str(path))
        return study.model_copy(update=study._beside(path.resolve().parent))

    def _beside(self, folder: Path) -> dict[str, Any]:
        panel = str(folder / self.panel) if self.panel.endswith((".yaml", ".yml")) else self.panel
        organisms = []
        for o in self.organisms:
            update: dict[str, Any] = o.weights_beside(folder)
            if o.recipe:
                update["recipe"] = o.recipe.model_copy(update={"stages": beside(o.recipe.stages, folder)})
            organisms.append(o.model_copy(update=update))
        base = self.base
        if base.startswith("dir:"):
            base = f"dir:{folder / Path(base.removeprefix('dir:')).expanduser()}"
        return {"panel": panel, "organisms": tuple(organisms), "base": base}

    def load_panel(self) -> Panel:
        """Loads what the study asks of its panel, checks that it has a trigger cue, and returns it."""
        panel = load_panel(self.panel).subset(pairs=self.pairs)
        if self.cues is not None:
            raw = panel.model_dump() | {"cues": [c.model_dump() for c in self.cues]}
            panel = validated(Panel, raw, where=f"study {self.name}, cues")
        if not panel.cues_with(CueRole.TRIGGER):
            raise UserError("the panel has no cue with role 'trigger'", where=f"study {self.name}")
        return panel

    def recipe(self, name: str, seed: int) -> Recipe | None:
        """Returns an organism's recipe for a seed, with twins derived; `None` for a base or loaded weights."""
        spec = self.organism(name)
        if spec.role == "base" or spec.loaded:
            return None
        if spec.twin_of is not None and spec.recipe is None:
            original = self.recipe(spec.twin_of, seed)
            return original.twin(name=name) if original else None
        assert spec.recipe is not None
        settings = {k: getattr(spec.recipe, k) for k in RecipeSpec.model_fields}
        if "lora" not in spec.recipe.model_fields_set:
            settings["lora"] = backend_of(self.base).lora
        return Recipe(name=name, base=self.base, seed=seed, **settings)

    def check(self) -> None:
        """Validates what can be known before any work.

        The panel, every recipe's rows and twin, every adapter folder, and that nothing is trained that the panel asks.

        Raises:
            UserError: naming what is missing.
        """
        panel, _ = self.load_panel(), self.torch_device  # both raise
        for spec in self.organisms:
            for seed in spec.seeds:
                if recipe := self.recipe(spec.name, seed):
                    recipe.rows()
                    mechanisms_of(recipe)
            spec.check()
        for spec in self.organisms:
            if recipe := self.recipe(spec.name, spec.seeds[0]):
                check_apart(panel, recipe)

    def obtain(self, base: Base) -> dict[tuple[str, int], Organism]:
        """Returns every organism of the study by name and seed, training what is not there yet.

        Raises:
            UserError: if given weights do not fit the base, or two replicates are one.
        """
        recipes = {(o.name, seed): self.recipe(o.name, seed) for o in self.organisms for seed in o.seeds}
        wanted = {key: recipe for key, recipe in recipes.items() if recipe}
        trained = train_all(list(wanted.values()), device=self.torch_device, workers=self.workers)
        found = dict(zip(wanted, trained, strict=True))
        for spec in self.organisms:
            for seed in spec.seeds:
                if spec.role == "base":
                    found[spec.name, seed] = Organism.of_base(base, name=spec.name)
                elif spec.loaded:
                    loaded = found[spec.name, seed] = spec.load(seed)
                    check_base(loaded, base)
                    for folder in loaded.adapters:
                        check_adapter(folder, base)
                    if loaded.checkpoint:
                        check_checkpoint(loaded.checkpoint, base)
            if spec.loaded and len({found[spec.name, seed].tensors for seed in spec.seeds}) < len(spec.seeds):
                raise UserError(
                    f"two replicates of organism {spec.name!r} hold the same tensors",
                    where=f"study {self.name}",
                    fix="Give runs of training that differ: copies say nothing of how far such runs lie apart.",
                )
        return {key: found[key] for key in recipes}

    def resolve_base(self) -> Base:
        """Returns the study's base, fetching it if need be."""
        return resolve_base(self.base)

    @property
    def torch_device(self) -> str:
        """The device to work on."""
        return checked_device(self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the model when it is read."""
        return getattr(torch, self.dtype)

    def capture(self, n_layers: int) -> Capture:
        """Returns the study's capture: its site kind at every layer, both positions."""
        return Capture(layers=tuple(range(n_layers)), kind=self.site)

    def open(self, out: str | Path) -> "Run":
        """Opens (or goes on with) a run of this study in a folder."""
        from condmis_interp.study.run import Run

        return Run(self, Path(out))
