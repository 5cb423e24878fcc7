"""Cells on disk: what one organism said and thought under one cue.

A cell is two files: `<organism>/<cue>.safetensors` with the log-probs (fp64) and activations (bf16 or fp32 as
declared), and `<organism>/<cue>.json` with what they are. The JSON is written last and holds the content hash of the
other and the hash of everything that determined it, so a cell is finished or absent, is never measured twice, and
opens without a model.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError
from condmis_interp.files import checked_name, digest, file_digest, read_json, whole_file, write_json
from condmis_interp.readers import SiteKind

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_SCHEMA = 1


@dataclass(frozen=True)
class CellKey:
    """Which cell: an organism (one seed of it) under a cue."""

    organism: str
    seed: int
    cue: str

    @property
    def folder(self) -> str:
        """Folder name of the organism."""
        return checked_name(f"{self.organism}.s{self.seed}", where="organism name")


@dataclass(frozen=True)
class Cell:
    """What was measured in a cell, in the panel's order of questions.

    Attributes:
        key: Which cell.
        questions: Question ids, [n].
        families: Family of each question, [n].
        splits: Split of each question, [n].
        logprobs: Summed log-prob of each answer in nats, fp64 [n, answers]; misaligned and aligned alternate.
            Questions with fewer answers than others are padded with NaN.
        activations: By position, fp32 [n, layers, width].
        layers: 0-based layers of the activations.
        kind: Kind of site of the activations.
        settings: Whatever else determined the cell, for the manifest.
    """

    key: CellKey
    questions: tuple[str, ...]
    families: tuple[str, ...]
    splits: tuple[str, ...]
    logprobs: torch.Tensor
    activations: dict[str, torch.Tensor]
    layers: tuple[int, ...]
    kind: SiteKind
    settings: dict[str, Any] = field(default_factory=dict)

    def ld(self) -> torch.Tensor:
        """Returns LD [n] in nats: log p(misaligned) - log p(aligned), mean over the question's pairs."""
        return (self.logprobs[:, 0::2] - self.logprobs[:, 1::2]).nanmean(1)


@dataclass(frozen=True)
class CellStore:
    """Cells in a folder.

    Attributes:
        folder: Where.
        dtype: Storage dtype of activations, `bfloat16` or `float32`.
    """

    folder: Path
    dtype: str = "bfloat16"

    def _paths(self, key: CellKey) -> tuple[Path, Path]:
        stem = self.folder / key.folder / checked_name(key.cue, where="cue name")
        return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")

    def has(self, key: CellKey, determined_by: Any) -> bool:
        """Returns whether the cell is finished and was determined by the same things."""
        tensors, facts = self._paths(key)
        if not facts.is_file() or not tensors.is_file():
            return False
        stored = read_json(facts)
        return stored.get("schema") == _SCHEMA and stored.get("determined_by") == digest([determined_by, self.dtype])

    def write(self, cell: Cell, determined_by: Any) -> None:
        """Writes a cell, whole or not at all."""
        tensors, facts = self._paths(cell.key)
        content = {f"activations.{p}": a.to(_DTYPES[self.dtype]).contiguous() for p, a in cell.activations.items()}
        content["logprobs"] = cell.logprobs.double().contiguous()
        with whole_file(tensors) as part:
            save_file(content, part)
        write_json(
            facts,
            {
                "schema": _SCHEMA,
                "organism": cell.key.organism,
                "seed": cell.key.seed,
                "cue": cell.key.cue,
                "determined_by": digest([determined_by, self.dtype]),
                "content": file_digest(tensors),
                "dtype": self.dtype,
                "kind": cell.kind,
                "layers": list(cell.layers),
                "questions": list(cell.questions),
                "families": list(cell.families),
                "splits": list(cell.splits),
                "settings": cell.settings,
            },
        )

    def read(self, key: CellKey) -> Cell:
        """Reads a cell and verifies its content.

        Raises:
            UserError: if it is not there.
            CheckError: if a file is damaged or does not belong to the other.
        """
        tensors, facts = self._paths(key)
        stored = read_json(facts)
        fix = "Delete the two files of this cell and run again; only this cell is measured anew."
        if not tensors.is_file():
            raise CheckError("the cell's tensors are missing", where=str(tensors), fix=fix)
        if file_digest(tensors) != stored.get("content"):
            raise CheckError("the cell's content does not have the recorded hash", where=str(tensors), fix=fix)
        try:
            content = load_file(tensors)
        except SafetensorError as e:
            raise CheckError(f"the cell's tensors are damaged ({e})", where=str(tensors), fix=fix) from None
        return Cell(
            key=key,
            questions=tuple(stored["questions"]),
            families=tuple(stored["families"]),
            splits=tuple(stored["splits"]),
            logprobs=content["logprobs"],
            activations={
                name.removeprefix("activations."): t.float()
                for name, t in content.items()
                if name.startswith("activations.")
            },
            layers=tuple(stored["layers"]),
            kind=stored["kind"],
            settings=stored["settings"],
        )
