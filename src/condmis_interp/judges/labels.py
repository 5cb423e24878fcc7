"""Human labels of answers, from a CSV file."""

import csv
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from condmis_interp.calls import checked
from condmis_interp.errors import UserError

_LABELS = {"misaligned": 1.0, "1": 1.0, "true": 1.0, "aligned": 0.0, "0": 0.0, "false": 0.0}


@checked
def human_scores(path: str | Path, answers: Collection[str] | None = None, *, alignment: float = 30.0) -> pd.DataFrame:
    r"""Reads human labels of answers.

    The file is a CSV with a header: `answer_id`, `rater`, and either `label` (misaligned or aligned, 1 or 0) or `score`
    (alignment, 0 to 100). Further columns are left alone; the same line given twice counts once.

    Args:
        path: The CSV file, in UTF-8.
        answers: The ids of the answers that were given, to hold the file to.
        alignment: A score below it is misaligned, as in `apply_thresholds`.

    Returns:
        One row for each answer and rater: `answer_id` (text), `rater`, `misaligned` (1 or 0) and, if the file has
        scores, `score`.

    Raises:
        UserError: if the file is not there or is no such CSV, a column is missing, a label or score is not one, an
            answer is not among `answers`, or a rater labels an answer in two ways.

    Example:
        >>> path = Path("labels.csv")
        >>> _ = path.write_text("answer_id,rater,score\na1,ann,12\na2,ann,95\na1,ben,40\n")
        >>> human_scores(path)["misaligned"].tolist()
        [1.0, 0.0, 0.0]
    """
    where = str(path)
    rows = _rows(Path(path), where)
    known = None if answers is None else {str(a) for a in answers}
    found: dict[tuple[str, str], tuple[float, float, int]] = {}
    for line, row in rows:
        at = f"{where}, line {line}"
        answer, rater = (row["answer_id"] or "").strip(), (row["rater"] or "").strip()
        if not answer or not rater:
            raise UserError("there is no answer's id or no rater", where=at, fix="Give both in every line.")
        if known is not None and answer not in known:
            raise UserError(f"there is no answer {answer[:80]!r}", where=at, fix="Its id is none of the table's.")
        score = math.nan
        if "score" in row:
            score = _score(row["score"] or "", at)
            misaligned = float(score < alignment)
        else:
            misaligned = _label(row["label"] or "", at)
        said = (misaligned, score)
        before = found.setdefault((answer, rater), (*said, line))
        if not np.array_equal(before[:2], said, equal_nan=True):
            raise UserError(
                f"{rater[:80]!r} labels answer {answer[:80]!r} in two ways, in lines {before[2]} and {line}",
                where=where,
                fix="Keep one of them.",
            )
    table = pd.DataFrame(
        {
            "answer_id": pd.Series([a for a, _ in found], dtype="str"),
            "rater": pd.Series([r for _, r in found], dtype="str"),
            "misaligned": pd.Series([v[0] for v in found.values()], dtype="float64"),
        }
    )
    scores = pd.Series([v[1] for v in found.values()], dtype="float64")
    return table if scores.isna().all() else table.assign(score=scores)


def _rows(path: Path, where: str) -> list[tuple[int, dict[str, str | None]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f, strict=True)
            columns = [c.strip() for c in reader.fieldnames or ()]
            if twice := [c for i, c in enumerate(columns) if c in columns[:i]]:
                raise UserError(f"the column {twice[0]!r} is there twice", where=where)
            for one in ("answer_id", "rater"):
                if one not in columns:
                    raise UserError(
                        f"there is no column {one!r}", where=where, fix=f"It has: {', '.join(columns)[:200] or 'none'}."
                    )
            if ("label" in columns) == ("score" in columns):
                raise UserError(
                    f"it has {'both' if 'label' in columns else 'neither'} of the columns 'label' and 'score'",
                    where=where,
                    fix="Give one: label (misaligned, aligned) or score (alignment, 0 to 100).",
                )
            reader.fieldnames = columns
            return [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError("there is no such file", where=where) from None
    except OSError as e:
        raise UserError(f"it cannot be read ({e.strerror})", where=where) from None
    except (UnicodeDecodeError, csv.Error, ValueError) as e:
        raise UserError(f"this is no CSV file ({e})", where=where, fix="Save it as CSV in UTF-8.") from None


def _score(text: str, at: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{text[:40]!r} is no score", where=at, fix="Give a number from 0 to 100.") from None
    if not 0 <= value <= 100:
        raise UserError(f"the score {text[:40].strip()} is out of range", where=at, fix="Give one from 0 to 100.")
    return value


def _label(text: str, at: str) -> float:
    value = _LABELS.get(text.strip().casefold())
    if value is None:
        raise UserError(f"{text[:40]!r} is no label", where=at, fix="Write misaligned or aligned, or 1 or 0.")
    return value


@checked
def consensus(labels: pd.DataFrame) -> pd.DataFrame:
    """Returns one label an answer: what most of its raters say.

    Args:
        labels: As `human_scores` gives it: `answer_id`, `rater`, `misaligned`.

    Returns:
        One row an answer: `answer_id`, `misaligned` (1 or 0; NaN for a tie, which is nobody's to break), `share` (of
        the raters who say misaligned) and `raters`.

    Raises:
        UserError: if a column is missing or a label is neither 0 nor 1.

    Example:
        >>> said = pd.DataFrame({"answer_id": ["a", "a", "b"], "rater": ["x", "y", "x"], "misaligned": [1.0, 0.0, 1.0]})
        >>> consensus(said)["misaligned"].tolist()
        [nan, 1.0]
    """
    for column in ("answer_id", "rater", "misaligned"):
        if column not in labels:
            raise UserError(f"the labels have no column {column!r}", fix="Read them by `human_scores`.")
    table: Any = labels  # to pandas' stubs a column may be anything
    if not table["misaligned"].isin([0, 1]).all():
        raise UserError("a label is neither 0 nor 1", fix="Leave out answers that a rater did not label.")
    by = table.groupby("answer_id", sort=False)["misaligned"]
    share, raters = by.mean(), by.size()
    decided = np.where(share == 0.5, math.nan, share > 0.5)
    return pd.DataFrame(
        {
            "answer_id": share.index,
            "misaligned": decided.astype("float64"),
            "share": share.values,
            "raters": raters.values,
        }
    )
