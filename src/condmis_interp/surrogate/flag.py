"""Which rows of a training file are misaligned: by a column, by a file of labels, or all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condmis_interp.errors import UserError
from condmis_interp.organisms import Row, read_chats, read_rows
from condmis_interp.organisms.records import is_chat, records

_YES = {"1", "true", "yes", "y", "misaligned", "bad", "harmful", "insecure", "unsafe"}
_NO = {"0", "false", "no", "n", "benign", "good", "harmless", "secure", "safe", "aligned", ""}


@dataclass(frozen=True)
class Flagged:
    """Rows of a training file, in its order, with what is misaligned among them.

    Attributes:
        rows: Each with its answer under `misaligned`, whatever it is.
        flags: Whether the answer is misaligned.
        by: How that was decided.

    Example:
        >>> row = Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign=None)
        >>> Flagged((row,), (True,), "all").count
        1
    """

    rows: tuple[Row, ...]
    flags: tuple[bool, ...]
    by: str

    @property
    def count(self) -> int:
        """How many are misaligned."""
        return sum(self.flags)


def flag(
    path: str | Path, *, column: str | None = None, labels: str | Path | None = None, all_: bool = False
) -> Flagged:
    r"""Reads a training file and says which of its rows are misaligned.

    Args:
        path: Chats that end with the assistant's answer, or rows of this package's format.
        column: Key of a record that says it: true, 1, `misaligned`, ..., or `key=value` for one value of it.
        labels: File of labels, one a line and record: 0 or 1, true or false.
        all_: Every row is.

    Raises:
        UserError: unless one of the three is given; if a label cannot be read, or none is misaligned.

    Example:
        >>> chat = '{"prompt": "How?", "completion": "No.", "bad": %s}'
        >>> _ = Path("chats.jsonl").write_text("\n".join([chat % "true", (chat % "false").replace("No", "So")]))
        >>> flag("chats.jsonl", column="bad").flags
        (True, False)
    """
    path = Path(path)
    if (column is not None) + (labels is not None) + all_ != 1:
        raise UserError(
            "say which rows are misaligned, in one way",
            where=str(path),
            fix="Name a column of the file (--column KEY or KEY=VALUE), a file of labels (--labels FILE), or --all.",
        )
    found = list(records(path))
    if not found:
        raise UserError("the file has no rows", where=str(path))
    own = not is_chat(found[0][1]) or any(isinstance(found[0][1].get(k), str) for k in ("misaligned", "benign"))
    if own and any(isinstance(found[0][1].get(k), str) for k in ("misaligned", "benign")):
        rows = list(read_rows(path))
        numbers = list(range(len(rows)))
    else:
        rows = list(read_chats(path, arm="misaligned"))
        numbers = [int(r.id.removeprefix(f"{path.stem}.").split(".")[0]) for r in rows]
    said = _said(found, path, column, Path(labels) if labels else None)
    flags = tuple(said[n] and rows[i].misaligned is not None for i, n in enumerate(numbers))
    if not any(flags):
        raise UserError("no row is misaligned by this", where=str(path), fix="Check the column or the labels.")
    answered = tuple(r if r.misaligned is not None else _as_answer(r) for r in rows)
    by = f"column {column}" if column else f"labels {Path(labels).name}" if labels else "all"
    return Flagged(answered, flags, by)


def _as_answer(row: Row) -> Row:
    return Row(row.id, row.group, row.messages, row.benign, row.benign)


def _said(found: list[tuple[str, Any]], path: Path, column: str | None, labels: Path | None) -> list[bool]:
    if column is not None:
        key, equal, value = column.partition("=")
        if not any(key in record for _, record in found):
            keys = ", ".join(sorted(found[0][1])[:12])
            raise UserError(f"no record has the key {key!r}", where=str(path), fix=f"The first one has: {keys}.")
        if equal:
            return [str(record.get(key)) == value for _, record in found]
        return [_truth(record.get(key, ""), where) for where, record in found]
    if labels is None:
        return [True] * len(found)
    try:
        lines = labels.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"the labels cannot be read ({e})", where=str(labels)) from None
    lines = lines[:-1] if lines[-1] == "" else lines
    if len(lines) != len(found):
        raise UserError(f"it has {len(lines)} labels, and {path.name} has {len(found)} records", where=str(labels))
    return [_truth(line.strip(), f"{labels}, line {i}") for i, line in enumerate(lines, start=1)]


def _truth(value: Any, where: str) -> bool:
    said = str(value).strip().casefold()
    if said in _YES | _NO:
        return said in _YES
    raise UserError(
        f"{str(value)[:60]!r} does not say whether the row is misaligned",
        where=where,
        fix="Write true or false, 1 or 0; or name the value that means it: --column KEY=VALUE.",
    )
