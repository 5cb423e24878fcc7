"""Judges replicate twins against each other, to see whether each test keeps its level.

    .venv/bin/python experiments/calibration/nulls.py --out runs/calibration [--benches 1 14]

Pairs of three kinds: within the benches of seeds 1 to 39 (each holds its twins and the next seed's); across these
benches, for tests that read an organism by itself; and, if `--benches` are given, within benches that hold the twins of
all these seeds beside one seed's anchors. Writes nulls.csv: one row for each kind, test and part.
"""

import argparse
from pathlib import Path

import pandas as pd

from condmis_interp.calibration.nulls import joined, null_rates, twin_pairs
from condmis_interp.calibration.run import CALIBRATION, DEVELOPMENT, measure_seeds, measure_twins, to_calibrate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--benches", type=int, nargs="*", default=[])
    args = parser.parse_args()
    tests = to_calibrate()
    rings = [*measure_seeds(DEVELOPMENT, args.out), *measure_seeds(CALIBRATION, args.out)]
    many = measure_twins(args.benches, (*DEVELOPMENT, *CALIBRATION), args.out)
    pairs = {
        "within benches": twin_pairs(rings, tests),
        "across benches": twin_pairs(joined(rings), tests, of_seeds=rings, draws=400),
        "benches of all twins": twin_pairs(many, tests, of_seeds=rings, draws=400),
    }
    rows = [
        {"kind": of, "test": test, "part": part} | vars(rate)
        for of, found in pairs.items()
        if len(found)
        for test, parts in null_rates(found).items()
        for part, rate in parts.items()
    ]
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "nulls.csv", index=False, float_format="%.5g")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
