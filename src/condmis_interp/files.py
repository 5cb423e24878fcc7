"""Files that are whole or absent, names that cannot escape a folder, and hashes that decide what is already done."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from condmis_interp.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def checked_name(name: str, *, where: str) -> str:
    """Returns `name` if it is safe as a file or folder name.

    Raises:
        UserError: if it is empty, longer than 80 characters, or has anything but letters, digits, `.`, `_`, `-`.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be used as a name",
            where=where,
            fix="Use 1-80 letters, digits, '.', '_' or '-', starting with a letter or digit.",
        )
    return name


def digest(value: Any) -> str:
    """Returns the blake2b-128 hex digest of `value` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path, *, algorithm: str = "blake2b") -> str:
    """Returns the hex digest of a file's bytes (`blake2b` with 128 bits, or any `hashlib` name)."""
    h = hashlib.blake2b(digest_size=16) if algorithm == "blake2b" else hashlib.new(algorithm)
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed onto `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(fd)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"this is not valid JSON ({e})", where=str(path)) from None


def read_yaml(path: Path) -> Any:
    """Reads a YAML file with the safe loader.

    Raises:
        UserError: if it is missing, is a folder, or does not parse.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a file", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"this is not valid YAML ({e})", where=str(path)) from None


def read_mapping(path: Path, *, what: str) -> dict[str, Any]:
    """Reads a YAML file that must be a mapping; its key `x` is a place for YAML anchors and is left out.

    Args:
        path: The file.
        what: The error, if it is none: what it must be.

    Raises:
        UserError: if it is missing, does not parse, or is no mapping.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(what, where=str(path))
    raw.pop("x", None)
    return raw


def validated(model: type[Model], raw: Any, *, where: str) -> Model:
    """Returns `raw` as a pydantic model.

    Raises:
        UserError: with the first problem as `key.path: what is wrong`.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(first_problem(error), where=where) from None


def first_problem(error: ValidationError) -> str:
    """Returns what pydantic found wrong first, as `key.path: what is wrong`."""
    first = error.errors()[0]
    path = ".".join(str(p) for p in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message = "this key is not known here"
    elif first["type"] == "missing_keyword_only_argument":
        message = "this key is missing"
    return f"{path}: {message}" if path else message
