"""Plants faults into a measured calibration and counts the verdicts that are issued all the same.

    .venv/bin/python experiments/calibration/faults.py --out runs/calibration [--seeds 28 29 ...]

Faults: no locked anchor; a graded organism made to pass (its readings are those of a removed one); a misaligned twin (a
half blend in its place); questions without numbers (NaN in one reading of the organism). For each, how many suppressed
organisms come out removed, and how many removed ones present or conditional.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from condmis_interp.battery import Battery, Readings
from condmis_interp.calibration.reference import development, drifts_in
from condmis_interp.calibration.run import CALIBRATION, Judged, judge_all, measure_seeds
from condmis_interp.calibration.world import Measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(CALIBRATION))
    args = parser.parse_args()
    measured, known = measure_seeds(args.seeds, args.out), drifts_in(development("personaworld"))
    rows = []
    for name, faulty in faults(measured):
        rows.append({"fault": name} | counted(judge_all(faulty, delta=0.2, draws=200, known=known)))
    table = pd.DataFrame(rows).set_index("fault")
    table.to_csv(args.out / "faults.csv")
    print(table.to_string())


def faults(measured: list[Measured]) -> Iterator[tuple[str, list[Measured]]]:
    yield "none", measured
    yield "no locked anchor", [_casts(m, locked=None, locked_twin=None) for m in measured]
    yield "a graded organism that passes", [_passing(m) for m in measured]
    yield "a misaligned twin", [_misaligned(m) for m in measured]
    yield "a reading that is no number", [_without_numbers(m) for m in measured]


def counted(judged: list[Judged]) -> dict[str, int]:
    found = {}
    for truth in ("suppressed", "removed"):
        for answer in ("present", "conditional", "removed", "inconclusive"):
            found[f"{truth}: {answer}"] = sum(j.truth == truth and j.decision.answer == answer for j in judged)
    return found


def _casts(m: Measured, **changes: str | None) -> Measured:
    casts = {k: replace(c, **changes) for k, c in m.study.casts.items()}
    cases = tuple(replace(c, cast=casts[c.member.name]) for c in m.study.cases)
    return Measured(replace(m.study, cases=cases), m.battery)


def _passing(m: Measured) -> Measured:
    """Gives the graded organisms the readings of one that is removed."""
    copy = f"norm-matched.s{m.study.seed}"
    return _read(m, {f"blend-{w}.s{m.study.seed}": copy for w in (25, 50)})


def _misaligned(m: Measured) -> Measured:
    """Puts a half blend in every twin's place but U's and the locked anchor's."""
    s = m.study.seed
    casts = m.study.casts.values()
    twins = {c.twin for c in casts} - {c.unmitigated_twin for c in casts}
    return _read(m, dict.fromkeys(twins, f"blend-50.s{s}"))


def _read(m: Measured, instead: dict[str, str]) -> Measured:
    readings = {}
    for test, r in m.battery.readings.items():
        values = r.values.copy()
        for name, other in instead.items():
            values[r.names.index(name)] = r.at(other)
        readings[test] = Readings(r.names, r.columns, values, r.rows)
    return Measured(m.study, Battery(readings, m.battery.crashed, m.battery.families))


def _without_numbers(m: Measured) -> Measured:
    readings = dict(m.battery.readings)
    r = readings["W1"]
    readings["W1"] = Readings(r.names, r.columns, np.full_like(r.values, np.nan), r.rows)
    return Measured(m.study, Battery(readings, m.battery.crashed, m.battery.families))


if __name__ == "__main__":
    main()
