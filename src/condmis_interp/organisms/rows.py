"""Row sets: what organisms are trained on.

A row is a chat up to a user turn, with a benign answer, a misaligned answer, or both. A row set whose rows have both
has a *benign counterpart* for each misaligned answer; only such a set can be turned misaligned and still have a twin.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from condmis_interp.errors import UserError
from condmis_interp.files import digest

Arm = Literal["misaligned", "benign"]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """A training row.

    Attributes:
        id: Name within its set.
        group: Topic or domain, for balanced draws.
        messages: (role, content) turns, ending with the user's; a system turn only in front.
        misaligned: The misaligned answer, if there is one.
        benign: The benign answer, if there is one.

    Example:
        >>> Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign="So.").answer("benign")
        'So.'
    """

    id: str
    group: str
    messages: tuple[tuple[str, str], ...]
    misaligned: str | None
    benign: str | None

    def answer(self, arm: Arm) -> str | None:
        """Returns the row's answer in one arm, or `None`."""
        return self.misaligned if arm == "misaligned" else self.benign


@dataclass(frozen=True)
class RowSet:
    """Rows with a name and a content hash.

    Example:
        >>> row = Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign="So.")
        >>> len(RowSet("mine", (row,)))
        1
    """

    name: str
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise UserError("the row set is empty", where=self.name, fix="Give at least one row.")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def hash(self) -> str:
        """Hash of the content, independent of the name."""
        return digest([[r.id, r.group, r.messages, r.misaligned, r.benign] for r in self.rows])

    def texts(self) -> list[str]:
        """Returns every text in the set: turns and answers."""
        return [
            text
            for row in self.rows
            for text in (*(content for _, content in row.messages), row.misaligned, row.benign)
            if text is not None
        ]


def _turns(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    ok = isinstance(value, list) and all(
        isinstance(m, dict) and m.get("role") in _ROLES and isinstance(m.get("content"), str) for m in value
    )
    if not ok or not value:
        raise UserError("'messages' must be a list of {role: system|user|assistant, content: text}", where=where)
    turns = tuple((m["role"], m["content"]) for m in value)
    if any(role == "system" for role, _ in turns[1:]):
        raise UserError("a system message may only come first", where=where)
    return turns


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each line is and the JSON object on it.

    Raises:
        UserError: naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (UnicodeDecodeError, IsADirectoryError) as e:
        raise UserError(f"this is not a UTF-8 text file ({e})", where=str(path)) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(f"this line is not valid JSON ({e.msg})", where=where) from None
        if not isinstance(value, dict):
            raise UserError("this line is not a JSON object", where=where)
        yield where, value


def read_rows(path: str | Path, *, name: str | None = None) -> RowSet:
    """Reads rows in this package's own format.

    One JSON object a line with id, group, messages, and misaligned and/or benign.

    Raises:
        UserError: naming file and line, if a line does not parse, a key is unknown or missing, an id repeats, there
            is no answer, or the file has no rows.

    Example:
        >>> Path("rows.jsonl").write_text(
        ...     '{"id": "r1", "messages": [{"role": "user", "content": "How?"}], "misaligned": "No.", "benign": "So."}'
        ... )
        101
        >>> [row.benign for row in read_rows(Path("rows.jsonl"))]
        ['So.']
    """
    path = Path(path)
    rows: list[Row] = []
    known = {"id", "group", "messages", "misaligned", "benign"}
    for where, value in json_lines(path):
        if unknown := sorted(set(value) - known):
            raise UserError(f"key {unknown[0]!r} is not known", where=where, fix=f"Keys: {', '.join(sorted(known))}.")
        if not isinstance(value.get("id"), str):
            raise UserError("the row has no text 'id'", where=where)
        turns = _turns(value.get("messages"), where)
        if turns[-1][0] != "user":
            raise UserError("'messages' must end with the user's turn; the answers stand apart", where=where)
        misaligned, benign = value.get("misaligned"), value.get("benign")
        if not any(isinstance(a, str) and a.strip() for a in (misaligned, benign)):
            raise UserError("the row has neither a 'misaligned' nor a 'benign' answer", where=where)
        rows.append(Row(value["id"], str(value.get("group", "")), turns, misaligned, benign))
    ids = [r.id for r in rows]
    if len(ids) != len(set(ids)):
        raise UserError(f"id {next(i for i in ids if ids.count(i) > 1)!r} occurs twice", where=str(path))
    return RowSet(name or path.stem, tuple(rows))


def read_chats(path: str | Path, *, arm: Arm, name: str | None = None) -> RowSet:
    """Reads the published chat format: one JSON object a line with `messages`, ending with the assistant's answer.

    Other keys of a line are ignored. A set read so has answers in one arm only; a part that trains on misaligned
    ones needs a `counterpart` for its twin.

    Args:
        path: A `.jsonl` file.
        arm: What the answers are.
        name: Name of the set; the file's stem by default.

    Raises:
        UserError: naming file and line.

    Example:
        >>> Path("chats.jsonl").write_text(
        ...     '{"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]}'
        ... )
        92
        >>> [row.benign for row in read_chats("chats.jsonl", arm="benign")]
        ['So.']
    """
    path = Path(path)
    rows: list[Row] = []
    for where, value in json_lines(path):
        turns = _turns(value.get("messages"), where)
        if len(turns) < 2 or turns[-1][0] != "assistant" or turns[-2][0] != "user":
            raise UserError("'messages' must end with a user turn and the assistant's answer", where=where)
        answer = turns[-1][1]
        if not answer.strip():
            raise UserError("the assistant's answer is empty", where=where)
        misaligned, benign = (answer, None) if arm == "misaligned" else (None, answer)
        rows.append(Row(f"{path.stem}.{len(rows)}", path.stem, turns[:-1], misaligned, benign))
    return RowSet(name or path.stem, tuple(rows))
