"""A store opened for reading: LD and activations by organism, cue, layer, position and split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from condmis_interp.calls import checked
from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Base
from condmis_interp.panel.panel import Split
from condmis_interp.readers import SiteKind
from condmis_interp.store.manifest import read_manifest
from condmis_interp.store.shards import Shards
from condmis_interp.store.slices import FACTS, Slice


@dataclass(frozen=True)
class Activations:
    """What every organism of a study said and thought, under every cue; read from disk when it is asked for.

    Attributes:
        shards: The shards on disk.

    Example:
        >>> Activations.open("no store here")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: no store here: this folder holds no store: it has no store.json...
    """

    shards: Shards

    @classmethod
    @checked
    def open(cls, folder: str | Path, *, base: Base | None = None, verify: Literal["all", "used"] = "all") -> Self:
        """Opens a store; neither a model nor a tokenizer is needed.

        Args:
            folder: Folder of the store: `activations` in a run's folder.
            base: If given, the base that the activations must be of.
            verify: Whether all files are checked against their hashes now, or each before its first use.

        Raises:
            UserError: if there is no store, or it is from another model or tokenizer.
            CheckError: if it is unfinished or damaged.
        """
        folder = Path(folder)
        shards = Shards(folder, read_manifest(folder))
        if base is not None:
            shards.manifest.check_made_from(base=base.content, tokenizer=base.tokenizer_hash(), where=str(folder))
        if missing := shards.missing():
            raise CheckError(
                f"the store is unfinished: {len(missing)} of {len(shards.manifest.shards)} shards are missing, the "
                f"first is {missing[0].stem}",
                where=str(folder),
                fix="Run the capture again; it goes on.",
            )
        if verify == "all":
            shards.verify()
        return cls(shards)

    @property
    def seeds(self) -> Mapping[str, tuple[int, ...]]:
        """Seeds by organism."""
        return self.shards.manifest.seeds

    @property
    def cues(self) -> tuple[str, ...]:
        """Cue names, in the panel's order."""
        return self.shards.manifest.cues

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers captured, 0-based."""
        return self.shards.manifest.layers

    @property
    def kind(self) -> SiteKind:
        """Kind of site captured."""
        return self.shards.manifest.kind

    @cached_property
    def _questions(self) -> pa.Table:
        """Question, family and split, in the panel's order; the same in every cell."""
        cell, shards = next(iter(self.shards.manifest.cells.items()))
        everything = tuple(range(sum(s.count for s in shards)))
        return Slice(self.shards, (cell,), everything, (), ()).index("question", "family", "split")

    def rows(self, *splits: Split) -> np.ndarray:
        """Returns the positions of the questions in the given splits (of all, if none is given), [n]."""
        return np.array([i for i, s in enumerate(self._questions["split"].to_pylist()) if not splits or s in splits])

    def families(self, *splits: Split) -> list[str]:
        """Returns the family of each question in the given splits."""
        return self._questions["family"].take(self.rows(*splits)).to_pylist()

    def select(
        self,
        *,
        organism: str | Sequence[str] | None = None,
        cue: str | Sequence[str] | None = None,
        layer: int | Sequence[int] | None = None,
        position: str | Sequence[str] | None = None,
        split: Split | Sequence[Split] | None = None,
        seed: int | None = None,
    ) -> Slice:
        """Returns a lazy slice; what is not named is all there is.

        Args:
            organism: Organism or organisms.
            cue: Cue or cues.
            layer: 0-based layer, or layers; the axis of a single one is left out.
            position: Position, or positions; the axis of a single one is left out.
            split: Split or splits of the questions.
            seed: One seed of the organisms.

        Raises:
            UserError: if there is no such organism, cue, seed, layer or position.
        """
        manifest = self.shards.manifest
        organisms = _chosen("organism", organism, manifest.seeds)
        cues = _chosen("cue", cue, manifest.cues)
        layers = _chosen("layer", layer, manifest.layers)
        positions = _chosen("position", position, manifest.positions)
        cells = tuple(
            (o, s, c)
            for o in organisms
            for s in (manifest.seeds[o] if seed is None else _chosen(f"seed of {o}", seed, manifest.seeds[o]))
            for c in cues
        )
        splits = _chosen("split", split, ("A", "B", "C"))
        return Slice(
            self.shards,
            cells,
            tuple(self.rows(*splits).tolist()),
            layers[0] if _one(layer) else layers,
            positions[0] if _one(position) else positions,
        )

    def ld(self, organism: str, cue: str, *splits: Split, seed: int | None = None) -> np.ndarray:
        """Returns LD [n] in nats over the questions of the splits, mean over seeds unless one is named."""
        chosen = self.select(organism=organism, cue=cue, split=splits or None, seed=seed)
        return chosen.index("ld")["ld"].to_numpy().reshape(len(chosen.cells), -1).mean(0)

    def at(
        self, organism: str, cue: str, *splits: Split, layer: int, position: str, seed: int | None = None
    ) -> torch.Tensor:
        """Returns activations [n, width] (fp32) at one layer, mean over seeds unless one is named.

        Raises:
            UserError: if the layer or position was not captured.
        """
        chosen = self.select(
            organism=organism, cue=cue, layer=layer, position=position, split=splits or None, seed=seed
        )
        return chosen.torch().unflatten(0, (len(chosen.cells), -1)).mean(0)

    def to_pandas(self) -> pd.DataFrame:
        """Returns LD as a table: one row for each organism, seed, cue and question."""
        return self.select().index(*FACTS).to_pandas()

    def __repr__(self) -> str:
        organisms = ", ".join(f"{o} x{len(s)}" for o, s in self.seeds.items())
        return (
            f"Activations({organisms}; cues {', '.join(self.cues)}; {len(self._questions)} questions; "
            f"layers {self.layers[0]}-{self.layers[-1]}; {self.shards.folder})"
        )


def _chosen(what: str, given: Any, there: Iterable[Any]) -> tuple[Any, ...]:
    """Returns the given values (all, if none is), once it is sure that they are there."""
    there = tuple(there)
    if given is None:
        return there
    chosen = (given,) if _one(given) else tuple(given)
    for value in chosen:
        if value not in there:
            known = ", ".join(map(str, there))
            raise UserError(f"there is no {what} {value!r} in this store", fix=f"It has: {known}.")
    return chosen


def _one(given: Any) -> bool:
    return given is not None and (isinstance(given, str) or not isinstance(given, Iterable))
