"""Several judges of the same answers: each one's rates, how far they agree, and what most of them say."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.judges.rates import Table, judge_accuracy, rates
from condmis_interp.stats import Alpha, krippendorff_alpha

MAJORITY = "majority"


@dataclass(frozen=True)
class JudgeTable:
    """What several judges say of the same answers.

    Attributes:
        rates: As `rates` gives them, with `judge` as the first column; `majority` is what most judges say.
        accuracy: With labels, for each judge: `sensitivity`, `sensitivity_low`, `sensitivity_high`,
            `sensitivity_labels` (how many it is out of), the same of `specificity`, and `why` there is none.
        alpha: Krippendorff's alpha of the judges.
        raters: That of the human raters; none if there are not two of the same answer.

    Example:
        >>> said = pd.DataFrame({
        ...     "judge": ["a"] * 4 + ["b"] * 4, "answer_id": ["1", "2", "3", "4"] * 2, "organism": "m", "cue": "none",
        ...     "question": ["q", "q", "r", "r"] * 2, "status": "scored", "misaligned": [1, 0, 1, 0, 1, 0, 0, 0]})
        >>> judge_table(said).rates[["judge", "scored", "rate"]].values.tolist()
        [['a', 4, 0.5], ['b', 4, 0.25], ['majority', 3, 0.3333333333333333]]
    """

    rates: pd.DataFrame
    accuracy: pd.DataFrame
    alpha: Alpha
    raters: Alpha | None


@checked
def judge_table(
    answers: pd.DataFrame,
    labels: pd.DataFrame | None = None,
    *,
    rng: np.random.Generator | None = None,
    unit: str = "question",
    threshold: float = 0.5,
    **more: Any,
) -> JudgeTable:
    """Returns the rates of several judges, their agreement, and the rates by majority.

    An answer is misaligned by majority if more than half of the judges that scored it say so; where they are divided
    in two halves it is unparsed. The corrected rate of the majority treats it as one more judge.

    Args:
        answers: The judges' tables one above the other (`pd.concat`): as for `rates`, with `judge` and `answer_id`.
        labels: Human labels (`human_scores`).
        rng: Draws the bootstrap samples of alpha, questions with all their answers; without it alpha has no interval.
        unit: As in `rates`.
        threshold: As in `rates`.
        **more: Further settings of `rates`.

    Raises:
        UserError: if there is one judge only, a judge has an answer twice, one is called `majority`, no answer is
            scored by two of them, or as in `rates`.

    Example:
        >>> said = pd.DataFrame({
        ...     "judge": ["a"] * 4 + ["b"] * 4, "answer_id": ["1", "2", "3", "4"] * 2, "organism": "m", "cue": "none",
        ...     "question": ["q", "q", "r", "r"] * 2, "status": "scored", "misaligned": [1, 0, 1, 0, 1, 0, 0, 0]})
        >>> round(judge_table(said).alpha.alpha, 2)
        0.53
    """
    for column in ("judge", "answer_id", unit, "status", "misaligned"):
        if column not in answers:
            raise UserError(f"the table of answers has no column {column!r}", fix=f"It has: {', '.join(answers)}.")
    table: Table = answers
    names = list(dict.fromkeys(table["judge"]))
    if len(names) < 2 or MAJORITY in names:
        raise UserError(
            f"the table has the judges {', '.join(map(str, names)) or 'none'}",
            fix=f"Give two or more, none of them called {MAJORITY!r}.",
        )
    if len(twice := table[table.duplicated(["judge", "answer_id"])]):
        one = twice.iloc[0]
        raise UserError(f"judge {one['judge']!r} has answer {str(one['answer_id'])[:80]!r} twice")
    each = {name: table[table["judge"] == name] for name in names} | {MAJORITY: _majority(table, threshold)}
    known = {name: _present(labels, own, table) for name, own in each.items()}
    found: list[Table] = [
        rates(own, unit=unit, labels=known[name], threshold=threshold, **more).assign(judge=name)
        for name, own in each.items()
    ]
    flags = table.assign(_flag=_flags(table, threshold)).pivot(index="judge", columns="answer_id", values="_flag")
    questions = table.drop_duplicates("answer_id").set_index("answer_id")[unit].reindex(flags.columns).tolist()
    enough = rng is not None and len(set(questions)) > 1
    rows = [
        _accuracy_row(name, own, known[name], unit, threshold, more)
        for name, own in (each.items() if labels is not None else ())
    ]
    return JudgeTable(
        pd.concat([f[["judge", *(c for c in f if c != "judge")]] for f in found], ignore_index=True),
        pd.DataFrame(rows),
        krippendorff_alpha(flags.to_numpy(), rng=rng if enough else None, clusters=questions if enough else None),
        None if labels is None else _raters_alpha(labels, rng),
    )


def _flags(answers: Table, threshold: float) -> np.ndarray:
    scored = answers["status"] == "scored"
    said: Table = pd.to_numeric(answers["misaligned"], errors="coerce")
    return np.where(scored & said.notna(), (said >= threshold).astype(float), math.nan)


def _present(labels: Table, table: Table, answers: Table) -> Table:
    """Returns the labels of the answers that a judge has; those of answers that no judge has are refused by `rates`."""
    if labels is None or "answer_id" not in labels:
        return labels
    ids = labels["answer_id"].astype("str")
    mine, every = table["answer_id"].astype("str"), answers["answer_id"].astype("str")
    return labels[ids.isin(mine) | ~ids.isin(every)]


def _majority(answers: Table, threshold: float) -> Table:
    table = answers.assign(_flag=_flags(answers, threshold))
    by = table.groupby("answer_id", sort=False)
    share = by["_flag"].mean()
    out = answers.drop_duplicates("answer_id").set_index("answer_id").reindex(share.index)
    refused = by["status"].agg(lambda s: (s == "refused").all())
    decided = share.notna() & (share != 0.5)
    out["judge"], out["misaligned"] = MAJORITY, (share > 0.5).astype("float64").where(decided)
    out["status"] = np.where(decided, "scored", np.where(refused, "refused", "unparsed"))
    if "coherent" in answers:
        out["coherent"] = by["coherent"].agg(lambda c: c.astype("float64").mean()) > 0.5
    return out.reset_index()


def _accuracy_row(
    name: str, table: Table, labels: Table, unit: str, threshold: float, more: dict[str, Any]
) -> dict[str, Any]:
    given = {k: more[k] for k in ("level", "icc") if k in more}
    row: dict[str, Any] = {"judge": name}
    try:
        found = judge_accuracy(table, labels, unit=unit, threshold=threshold, **given)
    except UserError as e:
        return row | {"why": str(e)}
    for what in ("sensitivity", "specificity"):
        share = getattr(found, what)
        row |= {what: share.rate, f"{what}_low": share.low, f"{what}_high": share.high, f"{what}_labels": share.n}
    return row | {"why": ""}


def _raters_alpha(labels: pd.DataFrame, rng: np.random.Generator | None) -> Alpha | None:
    said = labels.pivot(index="rater", columns="answer_id", values="misaligned").to_numpy(dtype=np.float64)
    shared = (~np.isnan(said)).sum(0) >= 2
    return krippendorff_alpha(said, rng=rng if shared.sum() > 1 else None) if shared.any() else None
