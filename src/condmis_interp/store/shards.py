"""Shards on disk: what one organism said and thought of some questions under one cue.

A shard is a few files with one stem:

* `.parquet`: a row for each question (what was asked, token ids and spans, log-probs);
* `.l00-15.safetensors`, ...: one file for each layer group, with a tensor [rows, width] for each layer and position;
* `.json`: their sizes and hashes and the shard's key, written last. A shard without it is not there.

What the bytes are depends on nothing but what was measured.
"""

import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, file_digest, validated, whole_file
from condmis_interp.panel import Answer, Prompt
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Measurement, Position
from condmis_interp.store.manifest import Manifest, Planned, read_sealed, write_sealed

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_SPANS = ("cue", "question", "tail")
_IDS = pa.list_(pa.int32())
_COLUMNS = pa.schema(
    [
        ("organism", pa.string()),
        ("seed", pa.int64()),
        ("cue", pa.string()),
        ("question", pa.string()),
        ("family", pa.string()),
        ("split", pa.string()),
        ("ld", pa.float64()),
        ("logprobs", pa.list_(pa.float64())),
        ("token_logprobs", pa.list_(pa.list_(pa.float32()))),
        ("prompt_ids", _IDS),
        *((f"{name}_span", _IDS) for name in _SPANS),
        ("last_template", pa.int32()),
        ("answer_ids", pa.list_(_IDS)),
        ("closing_ids", pa.list_(_IDS)),
    ]
)


@dataclass(frozen=True)
class Asked:
    """A question as it was asked: a row of a shard.

    Attributes:
        question: Id of the question.
        family: Its family.
        split: Its split.
        prompt: Its prompt, under the shard's cue.
        answers: Its answers; misaligned and aligned alternate.

    Example:
        >>> prompt = Prompt((0, 4, 9, 1), {"cue": (0, 1), "question": (1, 3), "tail": (3, 4)}, "...")
        >>> Asked("q1", "mood", "A", prompt, (Answer((7,), (1,)), Answer((8,), (1,)))).family
        'mood'
    """

    question: str
    family: str
    split: Split
    prompt: Prompt
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Shard:
    """What was measured.

    Attributes:
        planned: Which shard.
        rows: What was asked.
        measurement: Log-probs of the answers and activations, in the order of the rows.

    Example:
        >>> from condmis_interp.store import Activations
        >>> planned = Activations.open("runs/mine/activations").shards.manifest.shards[0]
        >>> Shard(planned, rows=(), measurement=Measurement(logprobs=[])).planned.cue
        'none'
    """

    planned: Planned
    rows: tuple[Asked, ...]
    measurement: Measurement


class _File(BaseModel):
    """Size in bytes and SHA-256 of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class _Facts(BaseModel):
    """The JSON of a shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    files: dict[str, _File]


def asked_hash(rows: Sequence[Asked]) -> str:
    """Returns the hash of what is asked: questions, token ids and spans.

    Example:
        >>> prompt = Prompt((0, 4, 9, 1), {"cue": (0, 1), "question": (1, 3), "tail": (3, 4)}, "...")
        >>> row = Asked("q1", "mood", "A", prompt, ())
        >>> asked_hash([row]) == asked_hash([row]), asked_hash([row]) == asked_hash([row, row])
        (True, False)
    """
    return digest(
        [
            [r.question, r.family, r.split, r.prompt.ids, r.prompt.spans, [(a.ids, a.closing) for a in r.answers]]
            for r in rows
        ]
    )


def _table(shard: Shard) -> pa.Table:
    planned, rows = shard.planned, shard.rows
    logprobs = [lp.double().tolist() for lp in shard.measurement.logprobs]
    tokens = getattr(shard.measurement, "token_logprobs", None)
    columns = {
        "organism": [planned.organism] * len(rows),
        "seed": [planned.seed] * len(rows),
        "cue": [planned.cue] * len(rows),
        "question": [r.question for r in rows],
        "family": [r.family for r in rows],
        "split": [r.split for r in rows],
        "ld": [float(np.mean(np.subtract(lp[0::2], lp[1::2]))) if lp else math.nan for lp in logprobs],
        "logprobs": logprobs,
        "token_logprobs": [[t.tolist() for t in row] for row in tokens] if tokens else [None] * len(rows),
        "prompt_ids": [r.prompt.ids for r in rows],
        **{f"{name}_span": [r.prompt.spans[name] for r in rows] for name in _SPANS},
        "last_template": [r.prompt.last_template for r in rows],
        "answer_ids": [[a.ids for a in r.answers] for r in rows],
        "closing_ids": [[a.closing for a in r.answers] for r in rows],
    }
    return pa.table(columns, schema=_COLUMNS)


def _tensor_name(manifest: Manifest, layer: int, position: str) -> str:
    return f"{manifest.kind}[{layer}].{position}"


def _group_file(planned: Planned, group: Sequence[int]) -> str:
    return f"{planned.stem}.l{group[0]:02d}-{group[-1]:02d}.safetensors"


def _facts_file(planned: Planned) -> str:
    return f"{planned.stem}.json"


def _files(planned: Planned, manifest: Manifest) -> list[str]:
    """Returns the names of a shard's files but its JSON."""
    return [f"{planned.stem}.parquet", *(_group_file(planned, g) for g in manifest.layer_groups)]


def write_shard(folder: Path, manifest: Manifest, shard: Shard) -> None:
    """Writes a shard, whole or not at all.

    Args:
        folder: Folder of the store.
        manifest: What the store is.
        shard: What was measured.

    Raises:
        CheckError: if the measurement does not have the shape that the manifest names.
    """
    planned, kept = shard.planned, shard.measurement.activations
    shape = (planned.count, len(manifest.layers), manifest.width)
    for position in manifest.positions:
        found = tuple(kept[position].shape) if position in kept else None
        if found != shape or len(shard.rows) != planned.count:
            raise CheckError(
                f"{len(shard.rows)} rows with activations of shape {found} at {position} do not fit the store, which "
                f"takes {shape} (rows, layers, width)",
                where=planned.stem,
            )
    facts = folder / _facts_file(planned)
    facts.unlink(missing_ok=True)  # before the files it speaks of are replaced
    sink = io.BytesIO()
    pq.write_table(_table(shard), sink, compression="zstd")
    files = {f"{planned.stem}.parquet": _write(folder / f"{planned.stem}.parquet", sink.getvalue())}
    stored = {p: kept[p].to(DTYPES[manifest.dtype]) for p in manifest.positions}
    for group in manifest.layer_groups:
        tensors = {
            _tensor_name(manifest, layer, p): a[:, manifest.layers.index(layer)].clone(
                memory_format=torch.contiguous_format
            )
            for layer in group
            for p, a in stored.items()
        }
        name = _group_file(planned, group)
        files[name] = _write(folder / name, save(tensors))
    write_sealed(facts, _Facts(key=planned.key, files=files).model_dump())


def _write(path: Path, content: bytes) -> _File:
    with whole_file(path) as part:
        part.write_bytes(content)
    return _File(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Shards:
    """The shards of a store, read and verified: each file once, before anything in it is used.

    Attributes:
        folder: Folder of the store.
        manifest: What the store is.

    Example:
        >>> from condmis_interp.store import Activations
        >>> shards = Activations.open("runs/mine/activations").shards
        >>> shards.verify()
        >>> len(shards.manifest.cells), shards.missing()  # 3 organisms x 5 cues
        (15, [])
    """

    folder: Path
    manifest: Manifest
    _facts: dict[str, _Facts] = field(default_factory=dict, repr=False, compare=False)
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)

    def finished(self, planned: Planned) -> bool:
        """Returns whether a shard is there, and was determined by what the manifest names.

        Raises:
            CheckError: if the shard's JSON is damaged.
        """
        if not (self.folder / _facts_file(planned)).is_file():
            return False
        return self._read_facts(planned).key == planned.key and all(
            (self.folder / name).is_file() for name in _files(planned, self.manifest)
        )

    def missing(self) -> list[Planned]:
        """Returns the shards that are not there yet."""
        return [planned for planned in self.manifest.shards if not self.finished(planned)]

    def verify(self) -> None:
        """Verifies the content of every file of the shards that are there, streaming.

        Raises:
            CheckError: naming the file that is missing or damaged.
        """
        for planned in filter(self.finished, self.manifest.shards):
            for name in _files(planned, self.manifest):
                self._whole(planned, name)

    def table(self, planned: Planned, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns a shard's rows; see `Slice.index` for the columns.

        Raises:
            UserError: if there is no such column.
        """
        if unknown := set(columns or ()) - set(_COLUMNS.names):
            raise UserError(f"rows have no column {min(unknown)!r}", fix=f"Columns: {', '.join(_COLUMNS.names)}.")
        path = self._whole(planned, f"{planned.stem}.parquet")
        with pq.ParquetFile(path) as f:
            return f.read(columns=None if columns is None else list(columns), use_threads=False)

    def tensors(
        self, planned: Planned, layers: Sequence[int], positions: Sequence[Position]
    ) -> Iterator[tuple[int, Position, torch.Tensor]]:
        """Yields layer, position and the tensor [rows, width], mapped from its file; other layers are not read."""
        for group in self.manifest.layer_groups:
            wanted = [layer for layer in layers if layer in group]
            if not wanted:
                continue
            with safe_open(self._whole(planned, _group_file(planned, group)), framework="pt") as f:
                for layer in wanted:
                    for position in positions:
                        yield layer, position, f.get_tensor(_tensor_name(self.manifest, layer, position))

    def _read_facts(self, planned: Planned) -> _Facts:
        if planned.stem not in self._facts:
            path = self.folder / _facts_file(planned)
            raw = read_sealed(path, fix=_fix(path))
            self._facts[planned.stem] = validated(_Facts, raw, where=str(path))
        return self._facts[planned.stem]

    def _whole(self, planned: Planned, name: str) -> Path:
        """Returns the path of a file whose content has been verified."""
        path = self.folder / name
        if name in self._verified:
            return path
        if wrong := _damage(path, self._read_facts(planned).files.get(name)):
            raise CheckError(wrong, where=str(path), fix=_fix(self.folder / _facts_file(planned)))
        self._verified.add(name)
        return path


def _damage(path: Path, recorded: _File | None) -> str | None:
    """Returns what is wrong with a file, if anything is."""
    if recorded is None or not path.is_file():
        return "a file of this shard is missing"
    if (size := path.stat().st_size) != recorded.bytes:
        return f"the file is cut off or overlong: it has {size} bytes, and {recorded.bytes} were written"
    if file_digest(path, algorithm="sha256") != recorded.sha256:
        return "the file is damaged: its content does not have the recorded hash"
    return None


def _fix(facts: Path) -> str:
    return f"Delete {facts.name} and run the capture again: only this shard is measured anew."
