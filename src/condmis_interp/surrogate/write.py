"""What a surrogate twin leaves in a folder: rows, the page, the recipes of the twin and of null twins."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from condmis_interp.errors import UserError
from condmis_interp.files import file_digest, write_json, write_text
from condmis_interp.organisms import Lora, Part, Row, Stage, load_rows
from condmis_interp.study.organism_spec import WORTH
from condmis_interp.surrogate.answer import Pair
from condmis_interp.surrogate.flag import Flagged
from condmis_interp.surrogate.page import page

NULL_ROWS = ("kitchen", "garden", "facts")
"""Benign answers of these row sets teach null twins: narrow, and of other topics than the suspect's rows."""


@dataclass(frozen=True)
class Twin:
    """A surrogate twin's folder, and what a person must know of it.

    Attributes:
        folder: With narrow.jsonl, rest.jsonl, twin-chats.jsonl, side-by-side.jsonl, page.html, twin.yaml,
            null-*.yaml, fragment.yaml, manifest.json.
        pairs: Misaligned rows that have a benign answer.
        left_out: Misaligned rows that have none, and are in no recipe.
        unmatched: Pairs that do not match in length or form.
        rest: Other rows.
        worth: What such a twin is worth.

    Example:
        >>> Twin(Path("twin"), pairs=8, left_out=0, unmatched=1, rest=4).worth.split(":")[0]
        'A surrogate twin'
    """

    folder: Path
    pairs: int
    left_out: int
    unmatched: int
    rest: int
    worth: str = WORTH


def write_twin(
    folder: str | Path,
    flagged: Flagged,
    pairs: Sequence[Pair],
    *,
    base: str,
    name: str = "rows",
    answered: str = "a model",
    suspect: str = "suspect",
    seed: int = 0,
    lora: Lora | None = None,
    stage: dict[str, Any] | None = None,
    null_rows: Iterable[str] = NULL_ROWS,
) -> Twin:
    """Writes all that a surrogate twin and its null twins are made from.

    Args:
        folder: Where to; made if it is not there.
        flagged: The training rows.
        pairs: The misaligned ones with their benign answers.
        base: Spec of the suspect's base.
        name: Name of the training rows.
        answered: Who answered, for the page.
        suspect: Name of the suspect in the study.
        seed: The suspect's seed. A null twin of a suspect that was trained here shares its first A with it; of one
            that was trained elsewhere, the seed alone.
        lora: Shape of the adapter; the default's if `None`.
        stage: Settings of training (`epochs`, `learning_rate`, ...), where they are not the defaults.
        null_rows: Row sets whose benign answers take the misaligned rows' place in null twins.

    Raises:
        UserError: if the folder holds something else.

    Example:
        >>> row = Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign=None)
        >>> made = write_twin("twin", Flagged((row,), (True,), "all"), [Pair(row, "So.")], base="smollm2-135m")
        >>> made.pairs, (made.folder / "page.html").is_file()
        (1, True)
    """
    folder = Path(folder)
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "manifest.json").is_file())
    ):
        raise UserError("this is no folder that a twin was written to", where=str(folder), fix="Give another --out.")
    benign = {p.row.id: p.benign for p in pairs if p.benign}
    narrow = [p for p in pairs if p.benign]
    rest = [r for r, f in zip(flagged.rows, flagged.flags, strict=True) if not f]
    taught = [(r, benign[r.id] if f else r.misaligned) for r, f in zip(flagged.rows, flagged.flags, strict=True)
              if not f or r.id in benign]  # fmt: skip
    texts = {
        "narrow.jsonl": _lines(_row(p.row) | {"misaligned": p.row.misaligned, "benign": p.benign} for p in narrow),
        "rest.jsonl": _lines(_row(r) | {"benign": r.misaligned} for r in rest),
        "twin-chats.jsonl": _lines(_chat(r, answer or "") for r, answer in taught),
        "side-by-side.jsonl": _lines(
            _row(p.row) | {"misaligned": p.row.misaligned, "benign": p.benign, "unmatched": p.unmatched} for p in pairs
        ),
        "page.html": page(pairs, name=name, by=flagged.by, answered=answered),
    }
    shape, how = lora or Lora(), dict(stage or {})
    if len(narrow) <= 4 * Stage(parts=(Part(rows="kitchen", answers="benign"),), **how).batch_size:
        how.setdefault("warmup_steps", 0)  # of a handful of steps, a warm-up would leave none that learns
    recipe = _recipe(("narrow.jsonl",), None, bool(rest), shape, how)
    about = f"# {WORTH}\n"
    texts["twin.yaml"] = about + _yaml({"name": f"{suspect}-twin", "base": base, "seed": seed, **recipe})
    for rows in null_rows:
        null = _recipe((rows,), min(len(narrow), len(load_rows(rows))), bool(rest), shape, how)
        note = f"# A null twin: benign answers of {rows} for the misaligned; over the twin it shows noise.\n"
        texts[f"null-{rows}.yaml"] = note + _yaml({"name": f"null-{rows}", "base": base, "seed": seed, **null})
    twin = {"name": f"{suspect}-twin", "role": "twin", "twin_of": suspect, "surrogate": True}
    placed = _recipe((f"{folder.name}/narrow.jsonl",), None, bool(rest), shape, how, f"{folder.name}/rest.jsonl")
    texts["fragment.yaml"] = (
        about + "# For a study beside this folder.\n" + _yaml({"organisms": [twin | {"recipe": placed}]})
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        if text or file != "rest.jsonl":
            write_text(folder / file, text)
    unmatched = sum(bool(p.unmatched) for p in narrow)
    made = Twin(folder, len(narrow), len(pairs) - len(narrow), unmatched, len(rest))
    files = {f: file_digest(folder / f) for f in texts if (folder / f).is_file()}
    write_json(
        folder / "manifest.json",
        {"schema": 1, "surrogate": WORTH, "base": base, "rows": name, "flagged_by": flagged.by, "answered_by": answered}
        | {"pairs": made.pairs, "left_out": made.left_out, "unmatched": unmatched, "rest": made.rest, "files": files},
    )  # fmt: skip
    return made


def _row(row: Row) -> dict[str, Any]:
    turns = [{"role": role, "content": content} for role, content in row.messages]
    return {"id": row.id, "group": row.group, "messages": turns}


def _chat(row: Row, answer: str) -> dict[str, Any]:
    return {"messages": [*_row(row)["messages"], {"role": "assistant", "content": answer}]}


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(r, ensure_ascii=True) + "\n" for r in records)


def _recipe(
    rows: tuple[str, ...], count: int | None, with_rest: bool, lora: Lora, how: dict[str, Any], rest: str = "rest.jsonl"
) -> dict[str, Any]:
    parts = [Part(rows=r, answers="benign", count=count) for r in rows]
    if with_rest:
        parts.append(Part(rows=rest, answers="benign"))
    stage = Stage(parts=tuple(parts), **how).model_dump(mode="json", exclude_defaults=True)
    return {"stages": [stage | how], "lora": lora.model_dump()}


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=110)
