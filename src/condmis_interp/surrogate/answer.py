"""A benign answer for each misaligned row: by a model under the same prompts, or from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.organisms import Base, Organism, Row
from condmis_interp.organisms.records import records
from condmis_interp.panel.render import render_prompt, turn_end
from condmis_interp.progress import progress
from condmis_interp.readers import open_reader
from condmis_interp.surrogate.flag import Flagged
from condmis_interp.surrogate.form import differences

_BATCH = 16
_LONGEST = 1024
"""Most tokens of a benign answer: a longer one is cut, and the pair says so."""


@dataclass(frozen=True)
class Pair:
    """A misaligned row and the benign answer that replaces its own.

    Attributes:
        row: The row.
        benign: The answer.
        unmatched: Where it does not match the misaligned one in length or form, or was cut.

    Example:
        >>> row = Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign=None)
        >>> Pair(row, "So.").unmatched
        ()
    """

    row: Row
    benign: str
    unmatched: tuple[str, ...] = ()


def paired(flagged: Flagged, answers: Sequence[tuple[str, bool]]) -> tuple[Pair, ...]:
    """Returns each misaligned row with its benign answer, and where they do not match.

    Args:
        flagged: The rows.
        answers: For each misaligned row, in order, the answer and whether it ended by itself.

    Raises:
        UserError: if there are not as many, or none is usable.

    Example:
        >>> row = Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign=None)
        >>> paired(Flagged((row,), (True,), "all"), [("No.", True)])[0].unmatched
        ('the same answer',)
    """
    rows = [r for r, f in zip(flagged.rows, flagged.flags, strict=True) if f]
    if len(rows) != len(answers):
        raise UserError(f"there are {len(answers)} answers for {len(rows)} misaligned rows")
    found = []
    for row, (benign, ended) in zip(rows, answers, strict=True):
        cut = () if ended else ("cut at the longest answer",)
        if benign.strip():
            found.append(Pair(row, benign, (*differences(row.misaligned or "", benign), *cut)))
        else:
            found.append(Pair(row, "", ("empty: the row is left out",)))
    if not any(p.benign for p in found):
        raise UserError("every benign answer is empty", fix="Answer by another model (--by), or from a file.")
    return tuple(found)


def by_model(
    flagged: Flagged, base: Base, *, seed: int = 0, tries: int = 3, device: str = "cpu"
) -> list[tuple[str, bool]]:
    """Returns what a model answers to the misaligned rows under their own prompts, and whether each answer ended.

    Greedy first; a row whose answer does not match in length or form is asked again (sampled at temperature 1), up to
    `tries` answers, and the one with the fewest differences is kept.

    Args:
        flagged: The rows.
        base: Who answers, by its own template.
        seed: Of the sampled answers.
        tries: Answers a row at most.
        device: Torch device.

    Example:
        >>> by_model(Flagged((), (), "all"), Base("dir:b", Path("b"), "hash", {}), tries=0)
        []
    """
    rows = [r for r, f in zip(flagged.rows, flagged.flags, strict=True) if f]
    if not rows or tries < 1:
        return []
    tokenizer = base.tokenizer()
    reader = open_reader(Organism.of_base(base, name="base"), base, dtype=torch.float32, device=device)
    prompts = [render_prompt(tokenizer, [{"role": r, "content": c} for r, c in row.messages]) for row in rows]
    lengths = [len(tokenizer(row.misaligned or "", add_special_tokens=False)["input_ids"]) for row in rows]
    closing = tokenizer(prompts[0].closing, add_special_tokens=False)["input_ids"]
    ends = frozenset({tokenizer.eos_token_id, *turn_end(tokenizer, closing)[-1:]} - {None})
    best: dict[int, tuple[int, str, bool]] = {}
    generator = torch.Generator().manual_seed(int(digest([seed, "surrogate"])[:12], 16))
    todo = sorted(range(len(rows)), key=lambda i: lengths[i])  # a batch takes as long as its longest answer
    with progress("answering rows", len(rows), unit="rows") as step:
        for attempt in range(tries):
            for start in range(0, len(todo), _BATCH):
                batch = todo[start : start + _BATCH]
                longest = min(2 * max(lengths[i] for i in batch) + 8, _LONGEST)
                said = reader.generate(
                    [prompts[i] for i in batch],
                    max_new_tokens=longest,
                    stop_ids=ends,
                    temperature=float(attempt > 0),
                    generator=generator,
                )
                for i, ids in zip(batch, said, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                    ended = len(ids) < longest
                    off = len(differences(rows[i].misaligned or "", text)) + (not ended) + 9 * (not text)
                    best[i] = min(best.get(i, (off, text, ended)), (off, text, ended), key=lambda b: b[0])
                if attempt == 0:
                    step(len(batch))
            todo = [i for i in todo if best[i][0]]
    return [best[i][1:] for i in range(len(rows))]


def by_file(flagged: Flagged, path: str | Path) -> list[tuple[str, bool]]:
    """Returns the benign answers that a file gives: one record a misaligned row in order, or by `id`.

    A record has the answer under `benign`, `answer`, `completion` or `response`.

    Raises:
        UserError: naming file and record, if one has no answer, or a row has none.

    Example:
        >>> row = Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign=None)
        >>> _ = Path("benign.jsonl").write_text('{"benign": "So."}')
        >>> by_file(Flagged((row,), (True,), "all"), "benign.jsonl")
        [('So.', True)]
    """
    rows = [r for r, f in zip(flagged.rows, flagged.flags, strict=True) if f]
    answers, by_id = [], {}
    for where, record in records(Path(path)):
        said = next((record[k] for k in ("benign", "answer", "completion", "response") if k in record), None)
        if not isinstance(said, str):
            fix = "Give it under benign, answer, completion or response."
            raise UserError("the record has no answer", where=where, fix=fix)
        answers.append((said, True))
        if "id" in record:
            by_id[str(record["id"])] = (said, True)
    if rows and all(r.id in by_id for r in rows):
        return [by_id[r.id] for r in rows]
    if len(answers) != len(rows):
        raise UserError(
            f"it has {len(answers)} answers, and {len(rows)} rows are misaligned",
            where=str(path),
            fix="Give one for each misaligned row, in their order, or name the rows by id.",
        )
    return answers
