"""The reference table that ships with the package, and the run that makes one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from condmis_interp.calibration.by_seeds import by_seeds
from condmis_interp.calibration.drifts import drifts_without
from condmis_interp.calibration.nulls import null_rates, twin_pairs
from condmis_interp.calibration.readings import store_readings
from condmis_interp.calibration.run import (
    CALIBRATION,
    DEVELOPMENT,
    RESAMPLES,
    Judged,
    judge_all,
    measure_seeds,
    preregistration,
    to_calibrate,
)
from condmis_interp.calibration.tables import (
    certifying,
    confusion,
    curves,
    operating,
    per_test,
    reliabilities,
    summary,
    table_of,
    worth,
)
from condmis_interp.calibration.world import Measured
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json, whole_file, write_json
from condmis_interp.progress import progress
from condmis_interp.stats import Drift
from condmis_interp.tables import shipped
from condmis_interp.verdict.decision import RULE
from condmis_interp.verdict.roster import KnownDrift


@dataclass(frozen=True)
class Calibration:
    """A finished calibration.

    Attributes:
        summary: The operating characteristics (`tables.summary`), drift, curve and null rates of each test, whether
            confidences are borne out, and cost.
        confusion: Organisms by truth, family and verdict.
        tests: Each test alone.
        worth: The rule without one test at a time.
        operating: Rates against the margin and the number of questions.
        seeds: Rates against the number of seeds a verdict.
        table: One row an organism and test.
        judged: Every organism.
        measured: The benches.
    """

    summary: dict[str, Any]
    confusion: pd.DataFrame
    tests: pd.DataFrame
    worth: pd.DataFrame
    operating: pd.DataFrame
    seeds: pd.DataFrame
    table: pd.DataFrame
    judged: tuple[Judged, ...] = field(repr=False)
    measured: tuple[Measured, ...] = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row an organism and test."""
        return self.table

    def __repr__(self) -> str:
        return told(self.summary) + "\n\n" + self.confusion.to_string()


def reference() -> dict[str, Any]:
    """Returns the summary that ships with the package, which confidences are read from.

    Raises:
        CheckError: if it was made with another version of the rule.
    """
    table = shipped("reference")
    if table["rule_version"] != RULE.version:
        raise CheckError(
            f"the reference table is of rule version {table['rule_version']}, the rule of {RULE.version}",
            where="tables/reference.json",
            fix="Run condmis calibrate and ship its reference.json.",
        )
    return table


def drift_table(drifts: Mapping[str, Drift]) -> dict[str, dict[str, float]]:
    """Returns drifts as JSON: tau and bias in units of rho, degrees of freedom."""
    return {name: {"tau": d.variance**0.5, "df": d.df, "bias": d.bias} for name, d in drifts.items()}


def drifts_in(table: Mapping[str, Any]) -> dict[str, Drift]:
    """Returns the drifts of a stored table, by test and rise; see `drift_table`."""
    return {name: Drift(d["tau"] ** 2, d["df"], d.get("bias", 0.0)) for name, d in table.get("drift", {}).items()}


def known_drift(base: str) -> KnownDrift:
    """Returns the drift that a shipped calibration found on a base; nothing, if none ships for it.

    Args:
        base: Spec of the base.
    """
    if base == "personaworld":
        table, what = reference(), "the calibration on persona world"
    elif table := shipped(f"reference-{base}"):
        what = f"the calibration on {base}"
    else:
        return KnownDrift()
    of = drifts_in(table)
    return KnownDrift(of, f"{what} (rule version {table['rule_version']})" if of else "")


def development(base: str) -> dict[str, Any]:
    """Returns what was found on the development seeds of a base, the drift above all; nothing for another base."""
    table = shipped("development")
    return table if table["base"] == base else {}


def calibrate(
    out: Path,
    *,
    seeds: Sequence[int] = CALIBRATION,
    delta: float = RULE.delta,
    base: str = "personaworld",
) -> Calibration:
    """Runs the battery over known-answer organisms; goes on where it was.

    Beside the tables it writes `readings.json.gz`, from which another judge can judge the same organisms again without
    any model (`readings.load_readings`).

    Args:
        out: Folder for the pre-registration, finished pieces and results.
        seeds: Seeds of the organisms; at least two, since twins are judged against those of the next seed.
        delta: Margin.
        base: Persona world.

    Raises:
        UserError: if there are fewer than two seeds, or the folder's pre-registration says something else.
    """
    if len(set(seeds)) < 2:
        raise UserError(f"{len(set(seeds))} seed has no replicate twins", fix="Give two seeds or more.")
    if not 0 < delta < 1:
        raise UserError(f"a margin lies between 0 and 1, not at {delta:g}", fix="Give --delta 0.2, for example.")
    out.mkdir(parents=True, exist_ok=True)
    found_before = development(base)
    known = drifts_in(found_before)
    plan = preregistration(seeds, delta, drift=found_before.get("drift", {}))
    path = out / "preregistration.json"
    if path.is_file():
        if read_json(path)["hash"] != plan["hash"]:
            raise UserError(
                "this folder was pre-registered with another rule, margin or other seeds",
                where=str(path),
                fix="Give another --out; a plan is not changed after the data was seen.",
            )
    else:
        write_json(path, plan)
    started = time.monotonic()
    measured = measure_seeds(seeds, out, base=base)
    store_readings(out / "readings.json.gz", measured)
    tests = to_calibrate()
    with progress("judging", sum(len(m.study.cases) for m in measured), unit="organisms") as step:
        judged = judge_all(measured, delta=delta, resamples=RESAMPLES, known=known, step=step)
    nulls = null_rates(twin_pairs(measured, tests, known=known))
    found = summary(judged, seeds=seeds, delta=delta)
    drifts = drifts_without(measured, None, tests, known=known)
    found |= {
        "drift": drift_table(drifts),
        "curves": {k: {"weight": list(g.x), "rho": [round(y, 4) for y in g.y]} for k, g in curves(judged).items()},
        "certifies": {k: c.to_json() for k, c in certifying(judged, drifts, delta=delta).items()},
        "nulls": {test: {part: vars(rate) for part, rate in parts.items()} for test, parts in nulls.items()},
        "reliability": reliabilities(judged, found),
        "development_seeds": list(DEVELOPMENT),
        "preregistration": plan["hash"],
        "crashed": sorted({f"{k}: {v}" for m in measured for k, v in m.battery.crashed.items()}),
        "seconds_of_last_run": round(time.monotonic() - started, 1),
    }
    result = Calibration(
        found,
        confusion(judged),
        per_test(judged, nulls),
        worth(judged),
        operating(measured, delta=delta, known=known),
        by_seeds(measured, delta=delta, known=known),
        table_of(judged),
        tuple(judged),
        tuple(measured),
    )
    write_json(out / "reference.json", found)
    tables = {
        "confusion": result.confusion,
        "tests": result.tests,
        "worth": result.worth,
        "operating": result.operating,
        "seeds": result.seeds,
        "table": result.table,
    }
    for name, frame in tables.items():
        with whole_file(out / f"{name}.csv") as part:
            frame.to_csv(part, index=name in ("confusion", "tests", "worth"), float_format="%.5g")
    return result


def told(table: dict[str, Any]) -> str:
    """Returns a summary in words."""
    lines = [
        f"{table['organisms']} organisms of {len(table['families'])} families, {len(table['seeds'])} seeds; "
        f"margin {table['delta']:g}, rule version {table['rule_version']}, settings {table['settings_hash']}"
    ]
    for key in (
        "false_removed",
        "suppressed_caught",
        "removed_called_conditional",
        "removed_certified",
        "inconclusive",
    ):
        r = table[key]
        share = "none" if r["share"] is None else f"{r['share']:.3f}"
        lines.append(f"  {key:27s}{share} [{r['low']:.3f}, {r['high']:.3f}]  {r['count']} of {r['n']}")
        lines += [f"    {name:25s}{f['count']:3d} of {f['n']}" for name, f in r["families"].items() if f["count"]]
    return "\n".join(lines)
