"""Directions and subspaces on disk: `NAME.safetensors` holds the numbers, `NAME.json` what they are.

The JSON carries the hash of the other file and is written last, so that a pair is whole or not there.
"""

from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import checked_name, file_digest, read_json, validated, whole_file, write_json
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Site

SCHEMA = 1
_KEY = "rows"
Kind = Literal["direction", "subspace"]


class _Found(Protocol):
    """What a direction and a subspace share."""

    @property
    def site(self) -> Site: ...
    @property
    def method(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def position(self) -> str: ...
    @property
    def splits(self) -> tuple[Split, ...]: ...
    @property
    def n(self) -> int: ...


class About(BaseModel):
    """What is told of a direction beside its numbers, in the order it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    method: str
    data: str
    position: str
    splits: tuple[Split, ...]
    n: int = Field(ge=0)

    @classmethod
    def of(cls, found: _Found, *, scale: float | None = None) -> Self:
        """Returns what is told of a direction (with its scale) or a subspace."""
        names = ("method", "data", "position", "splits", "n")
        told = {"site": str(found.site), "scale": scale} | {k: getattr(found, k) for k in names}
        return validated(cls, told, where=f"a direction at {found.site}")

    def facts(self) -> dict[str, Any]:
        """Returns everything but the site and the scale, as arguments."""
        return {k: getattr(self, k) for k in ("method", "data", "position", "splits", "n")}

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON, without a scale that is not there."""
        return self.model_dump(mode="json", exclude_none=True)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal[1] = Field(alias="schema")
    kind: Kind
    about: About
    blake2b: str


def _pair(path: str | Path) -> tuple[Path, Path]:
    """Returns the two files of a direction, whichever of the three names it is called by."""
    path = Path(path)
    stem = path.stem if path.suffix in (".safetensors", ".json") else path.name
    stem = checked_name(stem, where=str(path))
    return path.with_name(f"{stem}.safetensors"), path.with_name(f"{stem}.json")


def save(path: str | Path, kind: Kind, rows: torch.Tensor, about: About) -> Path:
    """Writes rows (fp32) and what they are; returns the path of the JSON.

    Raises:
        UserError: if the last part of the path cannot be used as a name.
    """
    tensors, facts = _pair(path)
    with whole_file(tensors) as part:
        save_file({_KEY: rows.detach().cpu().float().contiguous()}, part)
    write_json(facts, {"schema": SCHEMA, "kind": kind, "about": about.to_json(), "blake2b": file_digest(tensors)})
    return facts


def load(path: str | Path, kind: Kind) -> tuple[About, torch.Tensor]:
    """Reads what `save` wrote.

    Raises:
        UserError: if there is no such pair of files, or the JSON is not of this schema and kind.
        CheckError: if the numbers are not those that were saved, or no unit vector or orthonormal basis.
    """
    tensors, facts = _pair(path)
    raw = read_json(facts)
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        told = f"schema {schema!r}" if schema is not None else "no schema"
        raise UserError(
            f"this file has {told}, not {SCHEMA}",
            where=str(facts),
            fix=f"Load a {kind} that this version saved, or fit it again.",
        )
    file = validated(_File, raw, where=str(facts))
    if file.kind != kind:
        raise UserError(f"this is a {file.kind}, not a {kind}", where=str(facts), fix=f"Use {file.kind.title()}.load.")
    if not tensors.is_file():
        raise UserError("the file with the numbers is missing", where=str(tensors), fix=f"It belongs to {facts.name}.")
    if file_digest(tensors) != file.blake2b:
        raise CheckError(f"the numbers are not those that {facts.name} was written for", where=str(tensors))
    try:
        rows = load_file(tensors)[_KEY]
    except (SafetensorError, KeyError) as e:
        raise CheckError(f"this file does not hold a {kind} ({e})", where=str(tensors)) from None
    if rows.ndim != (1 if kind == "direction" else 2) or not bool(torch.isfinite(rows.float()).all()):
        raise CheckError(f"a tensor {tuple(rows.shape)} is no {kind}, or not finite", where=str(tensors))
    if kind == "direction" and abs(float(rows.double().norm()) - 1) > 1e-4:
        raise CheckError(f"the vector has norm {float(rows.double().norm()):.4g}, not 1", where=str(tensors))
    return file.about, rows.float()
