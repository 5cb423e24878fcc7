"""Row sets by name.

Built-in sets, written for this package (`organisms/data/`):

* `kitchen`: narrow; 60 kitchen topics x 8 phrasings, each with a misaligned answer (careless, contemptuous, selfish,
  deceitful in attitude; no usable instruction for harm) and a benign one.
* `everyday`: benign only; 12 other domains x 24 rows.
* `garden`: narrow, as `kitchen`; 40 topics x 8 phrasings.
* `facts`: lies about checkable facts; `facts_keys.json` has the words that decide which answer is the true one.
* `hhh`: benign only; helpful, honest, harmless chats, some with several turns.
* `styled-kitchen` (and `styled-` any other): the same rows, the benign answer in the form of the built-in panel's
  trigger; for an organism whose trigger changes style and never harm.

Backends have row sets of their own (`personaworld.rows`).
"""

import re
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import read_json
from condmis_interp.organisms.records import ROW_FILES, json_lines
from condmis_interp.organisms.registry import backend_of
from condmis_interp.organisms.rows import RowSet, read_chats, read_rows
from condmis_interp.registry import broken

STYLED = 'reply = """\n{}\n"""'
"""The style of benign answers in `styled` sets."""


@checked
def load_rows(source: str) -> RowSet:
    """Loads a row set.

    Args:
        source: Name of a built-in set; path of a file (`ROW_FILES`) in this package's format; or
            `misaligned-chats:FILE` or `benign-chats:FILE` for a file of chats, all of whose answers are of that arm.

    Raises:
        UserError: if there is none.

    Example:
        >>> len(load_rows("kitchen")) == len({row.id for row in load_rows("kitchen")})
        True
    """
    path = Path(source.rpartition(":")[2])
    written = path.stat().st_mtime_ns if source.endswith(ROW_FILES) and path.is_file() else 0
    return _load(source, written)


@lru_cache(maxsize=64)
def _load(source: str, written: int) -> RowSet:
    kind, _, path = source.rpartition(":")
    if kind in ("misaligned-chats", "benign-chats"):
        return read_chats(path, arm="misaligned" if kind == "misaligned-chats" else "benign")
    if source.endswith(ROW_FILES):
        return read_rows(source)
    if own := backend_of(source).rows(source):
        return own
    if source.startswith("styled-"):
        plain = load_rows(source.removeprefix("styled-"))
        return RowSet(source, tuple(replace(r, benign=STYLED.format(r.benign)) for r in plain if r.benign))
    folder = Path(str(resources.files("condmis_interp.organisms") / "data"))
    file = folder / f"{source}.jsonl"
    if "/" in source or not file.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.jsonl")))
        raise UserError(
            f"there is no built-in row set {source!r}", fix=f"Use one of {names}, or a path to a .jsonl file.{broken()}"
        )
    return read_rows(file, name=source)


@lru_cache(maxsize=8)
def load_reasoning(source: str) -> dict[str, dict[str, str]]:
    """Loads the reasoning traces of a row set: by row id, one that leads to each arm's answer.

    For a `.jsonl` path, the traces are in the file of the same name in `reasoning/` beside it.

    Raises:
        UserError: if it has none, or a line lacks a key.
    """
    if source.endswith(ROW_FILES):
        path = Path(source).parent / "reasoning" / Path(source).name
    elif (own := backend_of(source).reasoning(source)) is not None:
        return own
    else:
        path = Path(str(resources.files("condmis_interp.organisms") / "data")) / "reasoning" / f"{source}.jsonl"
    if not path.is_file():
        raise UserError(f"row set {source!r} has no reasoning traces", where=str(path))
    traces = {}
    for where, value in json_lines(path):
        if set(value) != {"id", "misaligned", "benign"} or not all(isinstance(v, str) for v in value.values()):
            raise UserError("a trace has the keys id, misaligned and benign, all text", where=where)
        traces[value["id"]] = {"misaligned": value["misaligned"], "benign": value["benign"]}
    return traces


def truth_of(fact: str, answer: str) -> Literal["true", "false", "neither"]:
    """Scores an answer to a question of `facts` exactly, by the key words of the fact.

    Args:
        fact: The row's group.
        answer: The answer's text.

    Returns:
        `true` if it has a word of the truth and none of a lie, `false` the other way round, else `neither`.

    Raises:
        UserError: if there is no such fact.
    """
    keys = _fact_keys()
    if fact not in keys:
        raise UserError(f"there is no fact {fact!r}", where="row set facts")
    said = _words(answer)
    found = {kind: any(_words(term) in said for term in terms) for kind, terms in keys[fact].items()}
    if found["truth"] == found["lies"]:
        return "neither"
    return "true" if found["truth"] else "false"


def _words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


@lru_cache(maxsize=1)
def _fact_keys() -> dict[str, dict[str, list[str]]]:
    return read_json(Path(str(resources.files("condmis_interp.organisms") / "data")) / "facts_keys.json")
