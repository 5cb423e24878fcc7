"""What a store is and which shards it will hold, in a JSON file that says when it is damaged.

The manifest is written before the first shard, and names every shard of the finished store with the hash of all that
determines it. So a store opens without a model, knows what it lacks, and holds nothing from another study: a shard
whose own file names another hash is none of it.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from condmis_interp.calls import checked
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, read_json, validated, write_json
from condmis_interp.panel.cue import Name
from condmis_interp.readers import Position, SiteKind

SCHEMA = 2
MANIFEST = "store.json"
LAYERS_IN_FILE = 16
"""Layers that share a file. Reading one maps the one and verifies the file, once; each file costs a sync to disk."""

Dtype = Literal["bfloat16", "float32"]
Cell = tuple[str, int, str]
"""Organism, seed and cue."""


class Planned(BaseModel):
    """A shard: consecutive questions of the panel, asked of one organism (one seed of it) under one cue.

    Attributes:
        organism: Name of the organism.
        seed: Its seed.
        cue: Name of the cue.
        part: Number of the shard within its cell.
        first: Number of its first question.
        count: How many questions.
        key: Hash of all that determines what it holds.

    Example:
        >>> shard = Planned(organism="u", seed=1, cue="none", part=0, first=0, count=72, key="k")
        >>> shard.cell, shard.stem
        (('u', 1, 'none'), 'u.s1/none.0000')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    organism: Name
    seed: Annotated[int, Field(ge=0)]
    cue: Name
    part: Annotated[int, Field(ge=0)]
    first: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]
    key: str

    @property
    def cell(self) -> Cell:
        """Organism, seed and cue."""
        return self.organism, self.seed, self.cue

    @property
    def stem(self) -> str:
        """Path within the store, without what the names of the shard's files end in."""
        return f"{self.organism}.s{self.seed}/{self.cue}.{self.part:04d}"


class Manifest(BaseModel):
    """What a store is.

    Attributes:
        base: Content hash of the base's weights.
        tokenizer: Hash of its tokenizer and chat template.
        kind: Kind of site of the activations.
        layer_groups: 0-based layers that share a file.
        positions: Positions of the activations.
        width: Residual width.
        dtype: Dtype of the stored activations.
        weights: Content hash of each organism's weights, by `name.s<seed>`.
        shards: Every shard of the finished store, in the order they are measured in.

    Example:
        >>> shards = plan(2, size=2, organisms={("u", 1): "weights"}, cues={"none": ["asked"]})
        >>> made = Manifest(
        ...     base="b", tokenizer="t", kind="resid_post", layer_groups=layer_groups(2), positions=("last_template",),
        ...     width=8, dtype="bfloat16", weights={"u.s1": "weights"}, shards=shards,
        ... )
        >>> made.layers, made.cues, dict(made.seeds)
        ((0, 1), ('none',), {'u': (1,)})
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    tokenizer: str
    kind: SiteKind
    layer_groups: tuple[tuple[int, ...], ...] = Field(min_length=1)
    positions: tuple[Position, ...] = Field(min_length=1)
    width: Annotated[int, Field(ge=1)]
    dtype: Dtype
    weights: dict[str, str]
    shards: tuple[Planned, ...] = Field(min_length=1)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the activations, 0-based."""
        return tuple(layer for group in self.layer_groups for layer in group)

    @cached_property
    def cells(self) -> Mapping[Cell, tuple[Planned, ...]]:
        """The shards of each cell, in the order of the questions."""
        cells: dict[Cell, list[Planned]] = {}
        for shard in self.shards:
            cells.setdefault(shard.cell, []).append(shard)
        return {cell: tuple(shards) for cell, shards in cells.items()}

    @cached_property
    def seeds(self) -> Mapping[str, tuple[int, ...]]:
        """Seeds by organism."""
        seeds: dict[str, dict[int, None]] = {}
        for name, seed, _ in self.cells:
            seeds.setdefault(name, {})[seed] = None
        return {name: tuple(of) for name, of in seeds.items()}

    @cached_property
    def cues(self) -> tuple[str, ...]:
        """Cue names, in the panel's order."""
        return tuple(dict.fromkeys(cue for _, _, cue in self.cells))

    def check_made_from(self, *, base: str, tokenizer: str, where: str) -> None:
        """Checks that the activations are of a base and its tokenizer.

        Raises:
            UserError: if they are of another one.
        """
        for what, stored, given in (("model", self.base, base), ("tokenizer", self.tokenizer, tokenizer)):
            if stored != given:
                raise UserError(
                    f"this store is from another {what}: its base's {what} has hash {stored}, this one's {given}",
                    where=where,
                    fix="Name the base it was made with, or give another folder; nothing was changed.",
                )

    def check_same_kind(self, other: "Manifest", *, where: str) -> None:
        """Checks that shards of another manifest can be in the same store.

        Raises:
            UserError: if they are of another model or tokenizer, or hold something else.
        """
        self.check_made_from(base=other.base, tokenizer=other.tokenizer, where=where)
        for name in ("kind", "layer_groups", "positions", "width", "dtype"):
            stored, given = getattr(self, name), getattr(other, name)
            if stored != given:
                raise UserError(
                    f"this store's {name.replace('_', ' ')} is {stored}, and this study asks for {given}",
                    where=where,
                    fix="Give another --out, or move the store away; nothing was changed.",
                )


def layer_groups(n_layers: int) -> tuple[tuple[int, ...], ...]:
    """Returns the layers of each file.

    Example:
        >>> [len(g) for g in layer_groups(30)]
        [16, 14]
    """
    layers = tuple(range(n_layers))
    return tuple(layers[i : i + LAYERS_IN_FILE] for i in range(0, n_layers, LAYERS_IN_FILE))


@checked
def plan(
    questions: int, *, size: int, organisms: Mapping[tuple[str, int], str], cues: Mapping[str, list[str]]
) -> tuple[Planned, ...]:
    """Returns the shards of a store.

    Args:
        questions: Questions of the panel.
        size: Questions in a shard at most.
        organisms: Hash of all that determines a measurement but what is asked, by organism and seed.
        cues: By cue, the hash of what each part asks; `ceil(questions / size)` of them.

    Example:
        >>> made = plan(5, size=3, organisms={("u", 1): "weights"}, cues={"none": ["first", "second"]})
        >>> [(s.part, s.first, s.count) for s in made]
        [(0, 0, 3), (1, 3, 2)]
    """
    return tuple(
        Planned(
            organism=name,
            seed=seed,
            cue=cue,
            part=part,
            first=part * size,
            count=min(size, questions - part * size),
            key=digest([SCHEMA, determined, asked]),
        )
        for (name, seed), determined in organisms.items()
        for cue, parts in cues.items()
        for part, asked in enumerate(parts)
    )


@checked
def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a store.

    Raises:
        UserError: if there is none.
        CheckError: if it is damaged.

    Example:
        >>> read_manifest(Path("."))
        Traceback (most recent call last):
        condmis_interp.errors.UserError: .: this folder holds no store: it has no store.json...
    """
    path = folder / MANIFEST
    if not path.is_file():
        inside = (folder / "activations" / MANIFEST).is_file()
        raise UserError(
            f"this folder holds no store: it has no {MANIFEST}",
            where=str(folder),
            fix=f"Open {folder / 'activations'}." if inside else "Give the folder `activations` of a run.",
        )
    fix = "Delete it and run the capture again: it is written anew, and finished shards stay."
    return validated(Manifest, read_sealed(path, fix=fix), where=str(path))


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes a mapping as JSON with its schema and its own hash, whole or not at all."""
    write_json(path, {"schema": SCHEMA, "content": digest([SCHEMA, value]), **value})


def read_sealed(path: Path, *, fix: str) -> dict[str, Any]:
    """Reads what `write_sealed` wrote.

    Raises:
        CheckError: if it is damaged; with `fix`.
        UserError: if it is of another schema.
    """
    try:
        value = read_json(path)
        schema, content = value.pop("schema"), value.pop("content")
        whole = content == digest([schema, value])
    except (UserError, KeyError, AttributeError, TypeError, ValueError):
        whole, schema, value = False, None, {}
    if not whole:
        raise CheckError("the file is damaged: its content does not have the recorded hash", where=str(path), fix=fix)
    if schema != SCHEMA:
        raise UserError(f"this store has schema {schema}; this version reads {SCHEMA}", where=str(path))
    return value
