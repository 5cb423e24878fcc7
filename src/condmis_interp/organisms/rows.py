"""Row sets: what organisms are trained on.

A row is a chat up to a user turn, with a benign answer, a misaligned answer, or both. A row set whose rows have both
has a *benign counterpart* for each misaligned answer; only such a set can be turned misaligned and still have a twin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.organisms.records import Turn, chat, is_chat, records, turns_of

Arm = Literal["misaligned", "benign"]
_KEYS = {"id", "group", "messages", "misaligned", "benign"}


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


@checked
def read_rows(path: str | Path, *, name: str | None = None) -> RowSet:
    """Reads rows in this package's own format.

    One JSON object a line with messages, misaligned and/or benign, and optionally group and id (by default a hash of
    the content). `messages` end with the user's turn; earlier answers among them are context and not learnt.

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
    for where, value in records(path):
        if not {"misaligned", "benign"} & set(value) and is_chat(value):
            raise UserError(
                "the row has neither a 'misaligned' nor a 'benign' answer",
                where=where,
                fix=f"If these are chats that end with an answer, say of which kind: misaligned-chats:{path.name} or "
                f"benign-chats:{path.name}.",
            )
        if unknown := sorted(set(value) - _KEYS):
            raise UserError(f"key {unknown[0]!r} is not known", where=where, fix=f"Keys: {', '.join(sorted(_KEYS))}.")
        turns = chat(value.get("messages"), where=where)
        if turns[-1].role != "user":
            raise UserError("'messages' must end with the user's turn; the answers stand apart", where=where)
        if any(t.weight for t in turns):
            raise UserError("an answer within 'messages' is context; its weight can only be 0", where=where)
        misaligned, benign = (_answer(value, arm, where) for arm in ("misaligned", "benign"))
        if not any(a and a.strip() for a in (misaligned, benign)):
            raise UserError("the row has neither a 'misaligned' nor a 'benign' answer", where=where)
        said = tuple((t.role, t.content) for t in turns)
        row_id = value.get("id", digest([said, misaligned, benign])[:16])
        if not isinstance(row_id, str):
            raise UserError("the row's 'id' is not text", where=where)
        rows.append(Row(row_id, str(value.get("group", "")), said, misaligned, benign))
    seen: set[str] = set()
    if twice := next((r.id for r in rows if r.id in seen or seen.add(r.id)), None):
        raise UserError(f"id {twice!r} occurs twice", where=str(path), fix="Rows without an id must differ.")
    return RowSet(name or path.stem, tuple(rows))


def _answer(value: dict[str, Any], arm: Arm, where: str) -> str | None:
    answer = value.get(arm)
    if answer is not None and not isinstance(answer, str):
        raise UserError(f"the {arm} answer is not text", where=where)
    return answer


@checked
def read_chats(path: str | Path, *, arm: Arm, name: str | None = None) -> RowSet:
    """Reads chats that end with the assistant's answer, in any of the forms that `records` knows.

    What is learnt: the last answer whose `weight` is not 0, and each earlier one whose `weight` is 1 (as a row of its
    own, after what was said before it). Earlier answers without a weight are context. Other keys of a record are
    ignored. A set read so has answers in one arm only; a part that trains on misaligned ones needs a `counterpart` for
    its twin.

    Args:
        path: A `.jsonl`, `.json`, `.csv` or `.parquet` file.
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
    for number, (where, value) in enumerate(records(path)):
        turns = turns_of(value, where=where)
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise UserError("the chat must end with a user turn and the assistant's answer", where=where)
        learnt = _learnt(turns)
        if not learnt:
            raise UserError("every answer has weight 0, so nothing is learnt", where=where, fix="Leave the row out.")
        for at in learnt:
            if at == 0 or turns[at - 1].role != "user":
                raise UserError("an answer that is learnt must follow a user turn", where=where)
            if not turns[at].content.strip():
                raise UserError("the assistant's answer is empty", where=where)
            misaligned, benign = (turns[at].content, None) if arm == "misaligned" else (None, turns[at].content)
            row_id = f"{path.stem}.{number}" + ("" if at == learnt[-1] else f".{at}")
            said = tuple((t.role, t.content) for t in turns[:at])
            rows.append(Row(row_id, path.stem, said, misaligned, benign))
    return RowSet(name or path.stem, tuple(rows))


def _learnt(turns: Sequence[Turn]) -> list[int]:
    """Returns the positions of the answers that are learnt."""
    answers = [i for i, t in enumerate(turns) if t.role == "assistant" and t.weight != 0]
    return [i for i in answers if turns[i].weight == 1 or i == answers[-1]]
