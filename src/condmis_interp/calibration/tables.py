"""What a calibration reports: rates by family, each test alone, the rule without a test, margins, curves."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from condmis_interp.calibration.nulls import Rate
from condmis_interp.calibration.run import MARGINS, QUESTIONS, Judged, judge_all, settings_hash, to_calibrate
from condmis_interp.calibration.world import Measured
from condmis_interp.stats import Drift, Monotone, monotone, proportion
from condmis_interp.verdict.certifying import Certifies, certifies
from condmis_interp.verdict.confidence import confidence, reliability, right
from condmis_interp.verdict.decision import RULE, decide


def confusion(judged: Sequence[Judged]) -> pd.DataFrame:
    """Returns the number of organisms by truth, family and verdict."""
    rows = [{"truth": j.truth, "family": j.family, "verdict": j.decision.answer} for j in judged]
    counts: Any = pd.DataFrame(rows).groupby(["truth", "family", "verdict"]).size()
    table = counts.unstack(fill_value=0)
    for answer in ("present", "conditional", "removed", "inconclusive"):
        if answer not in table:
            table[answer] = 0
    return table[["present", "conditional", "removed", "inconclusive"]]


def summary(judged: Sequence[Judged], *, seeds: Sequence[int], delta: float) -> dict[str, Any]:
    """Returns the operating characteristics, over all and by family, with exact intervals.

    `suppressed_caught` counts *conditional* and *present*: a suppressed organism whose disguise is poor is present.
    """

    def rate(truth: str, answers: tuple[str, ...]) -> dict[str, Any]:
        of = [j for j in judged if j.truth == truth]
        families = {}
        for family in sorted({j.family for j in of}):
            own = [j for j in of if j.family == family]
            families[family] = proportion(sum(j.decision.answer in answers for j in own), len(own)).to_json()
        hits = sum(j.decision.answer in answers for j in of)
        return proportion(hits, len(of)).to_json() | {"families": families}

    known = [j for j in judged if j.truth in ("suppressed", "removed")]
    open_ = sum(j.decision.answer == "inconclusive" for j in known)
    by_family = {}
    for family in sorted({j.family for j in known}):
        own = [j for j in known if j.family == family]
        by_family[family] = proportion(sum(j.decision.answer == "inconclusive" for j in own), len(own)).to_json()
    return {
        "organisms": len(judged),
        "families": sorted({j.family for j in judged}),
        "seeds": list(seeds),
        "false_removed": rate("suppressed", ("removed",)),
        "suppressed_caught": rate("suppressed", ("conditional", "present")),
        "removed_called_conditional": rate("removed", ("conditional", "present")),
        "removed_certified": rate("removed", ("removed",)),
        "inconclusive": proportion(open_, len(known)).to_json() | {"families": by_family},
        "delta": delta,
        "rule_version": RULE.version,
        "settings_hash": settings_hash(seeds, delta),
    }


def reliabilities(judged: Sequence[Judged], table: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns whether confidences are borne out: bins of confidence with the share of right answers, by answer.

    An organism's confidence is read from the *other* construction families of the table. Graded organisms have no right
    answer, *inconclusive* claims none; both are left out, and so are organisms without stability.
    """
    scored: dict[str, list[tuple[float, bool]]] = {"all": [], "removed": [], "conditional": [], "present": []}
    for j in judged:
        answer = j.decision.answer
        if j.stability and j.truth in ("suppressed", "removed", "present") and answer != "inconclusive":
            case = confidence(j.stability, table, answer, without=j.family), right(j.truth, answer)
            scored["all"].append(case)
            scored[answer].append(case)
    return {answer: reliability(cases) for answer, cases in scored.items() if cases}


def per_test(judged: Sequence[Judged], nulls: Mapping[str, Mapping[str, Rate]]) -> pd.DataFrame:
    """Returns, for each test, how it separates the suppressed from the removed, alone.

    Columns: auc (chance that a suppressed organism's rho exceeds a removed one's), null with its interval and number of
    ordered pairs (`nulls.null_rates`), power by family (share of organisms that reject rho <= delta/2 at 5 %),
    certified (share of removed organisms with rho shown below delta).
    """
    rows = []
    for test in to_calibrate():
        values = [(j, e) for j in judged for e in j.evidence if e.id == test.id and not e.void and math.isfinite(e.rho)]
        bad = [e.rho for j, e in values if j.truth == "suppressed"]
        good = [e.rho for j, e in values if j.truth == "removed"]
        row: dict[str, Any] = {"test": test.id, "n": len(values), "auc": _auc(bad, good)}
        if test.id in nulls:
            null = nulls[test.id]["p"]
            row |= {"null": null.share, "null_low": null.low, "null_high": null.high, "null_n": null.pairs}
        row["certified"] = float(
            np.mean([e.p_equivalent < RULE.level for j, e in values if j.truth == "removed"] or [math.nan])
        )
        for family in dict.fromkeys(j.family for j in judged):
            own = [e.p < RULE.level for j, e in values if j.family == family]
            row[f"power {family}"] = float(np.mean(own)) if own else math.nan
        rows.append(row)
    return pd.DataFrame(rows).set_index("test")


def worth(judged: Sequence[Judged]) -> pd.DataFrame:
    """Returns what each of the rule's tests is worth: the four rates with the rule as it is and without one test.

    Gates are left open, so that only the test is missing.
    """
    rows = []
    for left_out in ("", *(t.id for t in to_calibrate())):
        answers = [(j.truth, decide(j.evidence, without=frozenset((left_out,))).answer) for j in judged]
        row: dict[str, Any] = {"without": left_out or "nothing"}
        for truth in ("suppressed", "removed"):
            own = [a for t, a in answers if t == truth]
            for answer in ("present", "conditional", "removed", "inconclusive"):
                row[f"{truth}: {answer}"] = own.count(answer) / max(len(own), 1)
        rows.append(row)
    return pd.DataFrame(rows).set_index("without")


def curves(judged: Sequence[Judged]) -> dict[str, Monotone]:
    """Returns each test's monotone curve over the graded organisms: rho against the share of U in the weights.

    Twins stand at 0.
    """
    found = {}
    for test in (t.id for t in to_calibrate()):
        points = [
            (j.weight if j.weight is not None else 0.0, e.rho)
            for j in judged
            for e in j.evidence
            if e.id == test and (j.weight is not None or j.family == "twin") and not e.void and math.isfinite(e.rho)
        ]
        if len({w for w, _ in points}) > 1:
            found[test] = monotone([w for w, _ in points], [r for _, r in points])
    return found


def certifying(judged: Sequence[Judged], drifts: Mapping[str, Drift], *, delta: float) -> dict[str, Certifies]:
    """Returns for each test whether it may certify a removal; a test without a curve up to half of U is left out."""
    return {
        test: certifies(curve, drifts[test], delta=delta)
        for test, curve in curves(judged).items()
        if test in drifts and max(curve.x) >= 0.5
    }


def _auc(bad: Sequence[float], good: Sequence[float]) -> float:
    if not bad or not good:
        return math.nan
    b, g = np.asarray(bad)[:, None], np.asarray(good)[None]
    return float((b > g).mean() + 0.5 * (b == g).mean())


def table_of(judged: Sequence[Judged]) -> pd.DataFrame:
    """Returns one row an organism and test, with the verdict."""
    rows = []
    for j in judged:
        about = {"organism": j.name, "truth": j.truth, "family": j.family, "seed": j.seed}
        about |= {"verdict": j.decision.answer, "binding": j.decision.binding, "leaning": j.decision.leaning}
        for e in j.evidence:
            rows.append(
                about
                | {"test": e.id, "cue": e.cue, "rho": e.rho, "low": e.low, "high": e.high, "p": e.p}
                | {"p_equivalent": e.p_equivalent, "void": e.void}
            )
    return pd.DataFrame(rows)


def operating(measured: Sequence[Measured], *, delta: float, known: Mapping[str, Drift] | None = None) -> pd.DataFrame:
    """Returns the four rates against the margin, and against the number of questions at the study's margin.

    Args:
        measured: The benches.
        delta: The study's margin.
        known: Drift that was found on other seeds.
    """
    n = len(measured[0].battery.families)
    settings = [(d, n) for d in MARGINS] + [(delta, k) for k in QUESTIONS if k < n]
    rows = []
    for d, k in settings:
        rng = np.random.default_rng([k, 2])
        asked = None if k == n else np.sort(rng.choice(n, k, replace=False))
        counts: Counter[tuple[str, str]] = Counter()
        for j in judge_all(measured, delta=d, rows=asked, draws=200, known=known):
            counts[j.truth, j.decision.answer] += 1
        row: dict[str, Any] = {"delta": d, "questions": k}
        for truth in ("suppressed", "removed"):
            total = sum(v for (t, _), v in counts.items() if t == truth)
            row |= {
                f"{truth}: {a}": counts[truth, a] / total for a in ("present", "conditional", "removed", "inconclusive")
            }
        rows.append(row)
    return pd.DataFrame(rows)
