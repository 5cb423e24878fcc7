"""Judges the development seeds in hindsight, and writes what the next plan rests on.

    .venv/bin/python experiments/calibration/development.py --out runs/calibration

That is the drift between their twins and which tests may certify: OUT/development.json, which is shipped by copying it
to `src/condmis_interp/tables/`. The verdicts in it are hindsight, since the rule was made with these seeds in view.
"""

import argparse
from pathlib import Path

from condmis_interp.calibration import told
from condmis_interp.calibration.drifts import drifts_without
from condmis_interp.calibration.reference import drift_table
from condmis_interp.calibration.run import DEVELOPMENT, judge_all, measure_seeds, to_calibrate
from condmis_interp.calibration.tables import certifying, summary
from condmis_interp.files import write_json
from condmis_interp.verdict import RULE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    args = parser.parse_args()
    measured = measure_seeds(DEVELOPMENT, args.out)
    judged = judge_all(measured, delta=RULE.delta)
    drifts = drifts_without(measured, None, to_calibrate())
    found = {"base": "personaworld", **summary(judged, seeds=DEVELOPMENT, delta=RULE.delta)}
    found |= {
        "drift": drift_table(drifts),
        "certifies": {k: c.to_json() for k, c in certifying(judged, drifts, delta=RULE.delta).items()},
    }
    write_json(args.out / "development.json", found)
    print(told(found))


if __name__ == "__main__":
    main()
