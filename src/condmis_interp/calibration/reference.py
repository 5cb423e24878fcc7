"""The reference tables that ship with the package, and the run that makes one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from condmis_interp.calibration.known import Measured
from condmis_interp.calibration.nulls import null_rates, twin_p_values
from condmis_interp.calibration.readings import store_readings
from condmis_interp.calibration.run import (
    RESAMPLES,
    Judged,
    drifts_without,
    judge_all,
    preregistration,
    rule_of,
    settings_hash,
    to_calibrate,
)
from condmis_interp.calibration.suite import CALIBRATION, families_of, measure_seeds
from condmis_interp.calibration.tables import (
    figures,
    operating,
    per_test,
    power_of,
    reliabilities,
    summary,
    table_of,
    worth,
)
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json, whole_file, write_json
from condmis_interp.progress import progress
from condmis_interp.stats import Drift
from condmis_interp.tables import shipped, told
from condmis_interp.verdict.decision import RULE
from condmis_interp.verdict.roster import Known


@dataclass(frozen=True)
class Calibration:
    """A finished calibration.

    Attributes:
        summary: The operating characteristics (`tables.summary`), drift and size of each test, whether confidences are
            borne out, and cost.
        tests: Each test alone.
        worth: The rule without one test at a time.
        operating: Rates against the margin.
        table: One row an organism, judge and test.
        judged: Every organism, informed and blind.
        measured: The benches.
    """

    summary: dict[str, Any]
    tests: pd.DataFrame
    worth: pd.DataFrame
    operating: pd.DataFrame
    table: pd.DataFrame
    judged: tuple[Judged, ...] = field(repr=False)
    measured: tuple[Measured, ...] = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row an organism, judge and test."""
        return self.table

    def __repr__(self) -> str:
        return told(self.summary)


def reference(base: str = "personaworld") -> dict[str, Any]:
    """Returns the summary that ships for a base, which confidences are read from; persona world's where none does.

    Raises:
        CheckError: if it was made with another version of the rule.
    """
    table = shipped(f"reference-{base}")
    if "false_removed" not in table:
        table = shipped("reference-personaworld")
    if table["rule_version"] != RULE.version:
        raise CheckError(
            f"the reference table is of rule version {table['rule_version']}, the rule of {RULE.version}",
            where=f"tables/reference-{table.get('base', base)}.json",
            fix="Run condmis calibrate and ship its reference.json.",
        )
    return table


def drift_table(drifts: Mapping[str, Drift]) -> dict[str, dict[str, float]]:
    """Returns drifts as JSON: tau and bias in units of rho, degrees of freedom."""
    return {name: {"tau": d.variance**0.5, "df": d.df, "bias": d.bias} for name, d in drifts.items()}


def drifts_in(table: Mapping[str, Any]) -> dict[str, Drift]:
    """Returns the drifts of a stored table, by test and rise; see `drift_table`."""
    return {name: Drift(d["tau"] ** 2, d["df"], d.get("bias", 0.0)) for name, d in table.get("drift", {}).items()}


def known_of(base: str) -> Known:
    """Returns what a shipped calibration says of a base; nothing, if none ships for it.

    Args:
        base: Spec of the base.
    """
    table = shipped(f"reference-{base}")
    if not table:
        return Known(base)
    what = f"the calibration on {base} (rule version {table['rule_version']})"
    if "false_removed" not in table:
        what = f"earlier replicate twins on {base}, where no known answers were judged"
    return Known(base, drifts_in(table), table.get("seen"), what)


def development(base: str) -> dict[str, Any]:
    """Returns what was found on the development seeds of a base: drift, and what the tests see; nothing for others."""
    return shipped(f"development-{base}")


def calibrate(
    out: Path,
    *,
    base: str = "personaworld",
    seeds: Sequence[int] = (),
    delta: float = RULE.delta,
) -> Calibration:
    """Runs the battery over known-answer organisms; goes on where it was.

    Beside the tables it writes `readings.json.gz`, from which another judge can judge the same organisms again without
    any model (`readings.load_readings`).

    Args:
        out: Folder for the pre-registration, finished pieces and results.
        base: Which base.
        seeds: Seeds of the organisms; the table's own by default. At least two: drift is known from the other seeds.
        delta: Margin.

    Raises:
        UserError: if there are fewer than two seeds, there are no known answers on the base, or the folder's
            pre-registration says something else.
    """
    chosen = tuple(seeds) or CALIBRATION.get(base, ())
    families = families_of(base)
    if len(set(chosen)) < 2:
        raise UserError(
            f"{len(set(chosen))} seed says nothing of the drift between seeds", fix="Give two seeds or more."
        )
    if not 0 < delta < 1:
        raise UserError(f"a margin lies between 0 and 1, not at {delta:g}", fix="Give --delta 0.2, for example.")
    out.mkdir(parents=True, exist_ok=True)
    before = development(base)
    plan = preregistration(base, chosen, delta, development=before, families=families)
    path = out / "preregistration.json"
    if path.is_file():
        if read_json(path)["hash"] != plan["hash"]:
            raise UserError(
                "this folder was pre-registered with another rule, margin, base or other seeds",
                where=str(path),
                fix="Give another --out; a plan is not changed after the data was seen.",
            )
    else:
        write_json(path, plan)
    started = time.monotonic()
    measured = measure_seeds(base, chosen, out)
    store_readings(out / "readings.json.gz", measured)
    result = judged_again(measured, base=base, delta=delta, before=before)
    result.summary["preregistration"] = plan["hash"]
    result.summary["seconds_of_last_run"] = round(time.monotonic() - started, 1)
    _write(result, out)
    return result


def judged_again(
    measured: Sequence[Measured], *, base: str, delta: float = RULE.delta, before: Mapping[str, Any] | None = None
) -> Calibration:
    """Judges benches that were measured, without any model.

    Args:
        measured: The benches.
        base: Spec of their base.
        delta: Margin.
        before: What was found on the development seeds; what ships by default.
    """
    tests = to_calibrate()
    rule, before = rule_of(tests), development(base) if before is None else before
    known = Known(base, drifts_in(before), before.get("seen"))
    judged: list[Judged] = []
    with progress("judging", 2 * sum(len(m.study.cases) for m in measured), unit="organisms") as step:
        for blind in (False, True):
            draws = 0 if blind else RESAMPLES
            judged += judge_all(measured, delta=delta, known=known, blind=blind, resamples=draws, step=step)
    seeds = [m.study.seed for m in measured]
    found = summary(judged, rule, base=base, seeds=seeds, delta=delta)
    found["settings_hash"] = settings_hash(rule, tests, seeds, delta)
    nulls = null_rates(twin_p_values(measured, tests, known=known.drift))
    found |= {
        "seen_by_family": power_of(judged),
        "drift": drift_table(drifts_without(measured, None, tests, known=known.drift)),
        "nulls": {test: {part: vars(rate) for part, rate in parts.items()} for test, parts in nulls.items()},
        "reliability": reliabilities(judged, found),
        "development": {k: before.get(k) for k in ("seeds", "seen")},
        "crashed": sorted({f"{k}: {v}" for m in measured for k, v in m.battery.crashed.items()}),
    }
    return Calibration(
        found,
        per_test(judged, nulls, rule),
        worth(judged, rule),
        operating(measured, delta=delta, known=known),
        table_of(judged),
        tuple(judged),
        tuple(measured),
    )


def develop(base: str, measured: Sequence[Measured], *, delta: float = RULE.delta) -> dict[str, Any]:
    """Returns what the plan of a calibration takes from the development seeds: drift, and what the tests see.

    Args:
        base: Spec of the base.
        measured: Benches of its development seeds.
        delta: Margin.
    """
    trusted = {"share": 1.0, "low": 1.0, "high": 1.0, "count": 1, "n": 1}  # what is asked here is what that shall be
    result = judged_again(measured, base=base, delta=delta, before={"seen": trusted})
    keep = ("base", "rule_version", "seeds", "organisms", "families", "seen", "seen_by_family", "drift", "nulls")
    rates = ("false_removed", "false_removed_blind", "hidden_caught", "benign_certified", "benign_accused")
    return {k: result.summary[k] for k in (*keep, *rates, "retrained_certified", "answers", "answers_blind")}


def _write(result: Calibration, out: Path) -> None:
    write_json(out / "reference.json", result.summary)
    tables = {
        "tests": result.tests,
        "worth": result.worth,
        "operating": result.operating,
        "figures": figures(result.judged),
        "table": result.table,
    }
    for name, frame in tables.items():
        with whole_file(out / f"{name}.csv") as part:
            frame.to_csv(part, index=name in ("tests", "worth"), float_format="%.5g")
