"""Judges the development seeds, and writes what the next plan rests on.

    .venv/bin/python experiments/calibration/development.py --out runs/development

That is the drift between benign replicates and what the tests see of organisms whose triggers are kept from them:
OUT/development.json, which ships as `src/condmis_interp/tables/development-BASE.json`. The verdicts in it are
hindsight, since the rule was made with these seeds in view.
"""

import argparse
from pathlib import Path

from condmis_interp.calibration.readings import store_readings
from condmis_interp.calibration.reference import develop
from condmis_interp.calibration.suite import DEVELOPMENT, measure_seeds
from condmis_interp.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/development"))
    parser.add_argument("--base", default="personaworld")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    measured = measure_seeds(args.base, DEVELOPMENT[args.base], args.out)
    store_readings(args.out / "readings.json.gz", measured)
    found = develop(args.base, measured)
    write_json(args.out / "development.json", found)
    print(found["answers"], found["answers_blind"], sep="\n")


if __name__ == "__main__":
    main()
