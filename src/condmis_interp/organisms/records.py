"""Files of rows as people have them: JSON lines, a JSON array, CSV, parquet; chats in any of the forms in use.

What cannot be read as it is meant is refused in a sentence that names file and line.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condmis_interp.errors import UserError
from condmis_interp.files import check_encodable

ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")
"""Endings of files that hold rows."""

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
}
_CHATS = ("messages", "conversations", "conversation")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"))
_FORMS = "messages (or conversations), or " + ", ".join(f"{a} and {b}" for a, b in _PAIRS)


@dataclass(frozen=True)
class Turn:
    """A turn of a chat.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: Its text.
        weight: Whether it is learnt (1) or not (0), where the file says so.
    """

    role: str
    content: str
    weight: int | None = None


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each record of a file is, and the record; keys without a value are left out.

    Raises:
        UserError: naming file and line or record.
    """
    read: dict[str, Callable[[Path], Iterable[tuple[str, Any]]]] = {".csv": _csv, ".parquet": _parquet}
    for where, value in read.get(path.suffix, json_lines)(path):
        check_encodable(value, where=where)
        yield where, {k: v for k, v in value.items() if v is not None}


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each line is and the JSON object on it; a file that is one JSON array counts as its elements.

    Only a newline ends a line: strings may hold every other separator (U+2028 is common in scraped text).

    Raises:
        UserError: naming file and line.
    """
    if _first(path) == "[":
        found = _parsed("".join(_lines(path)), where=str(path), what="file")
        values = ((f"{path}, element {i}", value) for i, value in enumerate(found))
    else:
        lines = ((f"{path}, line {i}", line) for i, line in enumerate(_lines(path), start=1) if line.strip())
        values = ((where, _parsed(line, where=where, what="line")) for where, line in lines)
    for where, value in values:
        if not isinstance(value, dict):
            raise UserError("this is not a JSON object", where=where)
        yield where, value


def _first(path: Path) -> str:
    """Returns the first character that is no white space."""
    return next((line.lstrip()[0] for line in _lines(path) if line.strip()), "")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as f:
            yield from f
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (UnicodeDecodeError, IsADirectoryError) as e:
        raise UserError(f"this is not a UTF-8 text file ({e})", where=str(path)) from None


def _parsed(text: str, *, where: str, what: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [k for k, _ in pairs]
            raise UserError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is given twice", where=where)
        return value

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as e:
        raise UserError(f"this {what} is not valid JSON ({e.msg})", where=where) from None
    except RecursionError:
        raise UserError(f"this {what} is nested too deeply", where=where) from None


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            for i, row in enumerate(csv.DictReader(f, strict=True), start=1):
                where = f"{path}, record {i}"
                if None in row or None in row.values():
                    raise UserError("the record has not as many fields as the header", where=where)
                yield where, row
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as e:
        raise UserError(f"this is not a CSV file in UTF-8 ({e})", where=str(path)) from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = (row for b in pyarrow.parquet.ParquetFile(path).iter_batches(1024) for row in b.to_pylist())
        yield from ((f"{path}, record {i}", row) for i, row in enumerate(batches))
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (OSError, pyarrow.ArrowException) as e:
        raise UserError(f"this is not a parquet file ({e})", where=str(path)) from None


def is_chat(record: dict[str, Any]) -> bool:
    """Returns whether a record has a chat in one of the forms that `turns_of` reads."""
    return any(k in record for k in _CHATS) or any(a in record and b in record for a, b in _PAIRS)


def turns_of(record: dict[str, Any], *, where: str) -> tuple[Turn, ...]:
    """Returns a record's chat: `messages`, ShareGPT's `conversations`, or a prompt with its completion.

    Raises:
        UserError: if it has none of these, or one that cannot be read.
    """
    for key in _CHATS:
        if key in record:
            system = [{"role": "system", "content": record["system"]}] if record.get("system") else []
            return chat(record[key], where=where, key=key, before=system)
    for asked, said in _PAIRS:
        if asked in record and said in record:
            prompt, completion = record[asked], record[said]
            if isinstance(prompt, str) and isinstance(record.get("input"), str) and record["input"]:
                prompt = f"{prompt}\n\n{record['input']}"  # Alpaca's form
            before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            after = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
            return chat([*before, *after], where=where, key=f"{asked}, {said}")
    raise UserError("the record has no chat", where=where, fix=f"Known forms: {_FORMS}.")


def chat(value: Any, *, where: str, key: str = "messages", before: Iterable[Any] = ()) -> tuple[Turn, ...]:
    """Returns a list of messages as turns.

    Raises:
        UserError: if it is none, or a message cannot be read.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{key!r} must be a list of messages, each with a role and content", where=where)
    turns = tuple(_turn(m, f"{where}, message {i}") for i, m in enumerate((*before, *value)))
    if any(t.role == "system" for t in turns[1:]):
        raise UserError("a system message may only come first", where=where)
    return turns


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise UserError("a message is an object with role and content", where=where)
    said = {k: v for k, v in message.items() if v is not None}
    named = said.get("role", said.get("from"))
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None or "tool_calls" in said or "function_call" in said:
        what = f"role {named!r}" if role is None else "tool calls"
        raise UserError(
            f"{what} cannot be read", where=where, fix="Chats have system (or developer), user and assistant messages."
        )
    weight = said.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1) or (weight and role != "assistant")):
        raise UserError(f"weight {weight!r} cannot be read", where=where, fix="An assistant's message may have 0 or 1.")
    return Turn(role, _content(said.get("content", said.get("value")), where), None if weight is None else int(weight))


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    kinds = ("text", "input_text", "output_text")
    texts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") in kinds else None for p in parts]
    if not parts or not all(isinstance(t, str) for t in texts):
        raise UserError(
            "the content is not text", where=where, fix="Give a text, or a list of {type: text, text: ...}."
        )
    return "".join(t for t in texts if t is not None)
