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
from pydantic import AfterValidator, BaseModel, ValidationError

from condmis_interp.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
LARGEST_YAML = 1_000_000
"""Largest YAML file in bytes; one of this size parses in 0.4 to 3 s of processor time, by how short its parts are."""
_SURROGATE = re.compile("[\ud800-\udfff]")
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
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a file", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"this is not valid JSON ({e})", where=str(path)) from None


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """The safe loader (in C where it is there), but for a key given twice, of which it would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        given: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in given and key.tag != "tag:yaml.org,2002:merge":
                raise _GivenTwice(f"key {key.value!r} is given twice, in lines {given[name]} and {line}")
            given[name] = line
        return super().construct_mapping(node, deep)


class _GivenTwice(yaml.YAMLError):
    pass


def read_yaml(path: Path) -> Any:
    """Reads a YAML file with the safe loader.

    Raises:
        UserError: if it is missing, is a folder, is larger than `LARGEST_YAML`, does not parse, or gives a key twice.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_YAML:
            raise UserError(
                f"this file has {size / 1e6:.1f} MB, and a YAML file here has at most {LARGEST_YAML / 1e6:.0f}",
                where=str(path),
                fix="Is it the right file? Rows belong into a .jsonl file.",
            )
        value = _Loader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a file", where=str(path)) from None
    except _GivenTwice as e:
        raise UserError(str(e), where=str(path), fix="Keep one of them.") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as e:
        raise UserError(f"this is not valid YAML ({' '.join(str(e).split())})", where=str(path)) from None
    except RecursionError:
        raise UserError("this YAML file is nested too deeply", where=str(path)) from None
    check_encodable(value, where=str(path))
    return value


def check_encodable(value: Any, *, where: str) -> None:
    """Refuses a lone surrogate (half of a character, as cut JSON has them) anywhere in a value.

    Raises:
        UserError: if there is one.
    """
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if half := _SURROGATE.search(one):
                raise UserError(
                    f"a text holds half a character ({half.group()!a}, a lone surrogate)",
                    where=where,
                    fix="It was cut in mid-character: write the text whole.",
                )
        elif isinstance(one, dict | list) and id(one) not in seen:  # YAML's aliases may repeat and contain themselves
            seen.add(id(one))
            waiting += [*one, *one.values()] if isinstance(one, dict) else one


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


def _each_once(values: Any) -> Any:
    if isinstance(values, tuple) and (twice := [v for i, v in enumerate(values) if v in values[:i]]):
        raise ValueError(f"{twice[0]!r} is given twice")
    return values


Once = AfterValidator(_each_once)
"""For a setting whose values must differ: `Annotated[tuple[str, ...], Once]`."""


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
