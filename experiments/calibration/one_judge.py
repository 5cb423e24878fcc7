"""Compares calibrations organism by organism: what the published judge said, and what another says of the same.

    .venv/bin/python experiments/calibration/one_judge.py published=figures/calibration old=runs/old new=runs/new

Each argument names a folder with a calibration's `table.csv`. Prints the answers by truth and family, then every
organism of which they do not all say the same, with the test that binds and the largest change of a rho.
"""

import sys
from pathlib import Path

import pandas as pd

ANSWERS = ("present", "conditional", "removed", "inconclusive")


def main() -> None:
    tables = {name: pd.read_csv(Path(at) / "table.csv") for name, _, at in (a.partition("=") for a in sys.argv[1:])}
    shared = set.intersection(*(set(t.organism) for t in tables.values()))
    tables = {name: t[t.organism.isin(shared)] for name, t in tables.items()}
    one = {name: t.drop_duplicates("organism").set_index("organism") for name, t in tables.items()}
    first, *others = one
    print(f"{len(shared)} organisms\n\n| truth | family | " + " | ".join(one) + " |")
    print("|" + " --- |" * (2 + len(one)))
    for (truth, family), rows in one[first].groupby(["truth", "family"]):
        cells = []
        for t in one.values():
            counts = t.loc[rows.index].verdict.value_counts()
            cells.append(", ".join(f"{a} {counts[a]}" for a in ANSWERS if a in counts))
        print(f"| {truth} | {family} | " + " | ".join(cells) + " |")
    about = ("rho", "low", "high", "p", "p_equivalent")
    print("\n| from | to | answers that moved | " + " | ".join(f"largest change of {k}" for k in about) + " |")
    print("|" + " --- |" * (3 + len(about)))
    key = ["organism", "test"]
    for name in others:
        a, b = (tables[n].set_index(key).sort_index() for n in (first, name))
        both = a.index.intersection(b.index)
        moved = (one[first].verdict != one[name].verdict.loc[one[first].index]).sum()
        change = [f"{(a.loc[both, k] - b.loc[both, k]).abs().max():.3g}" for k in about]
        print(f"| {first} | {name} | {moved} | " + " | ".join(change) + " |")
    print()
    for organism in one[first].index:
        said = {name: t.loc[organism] for name, t in one.items()}
        if len({s.verdict for s in said.values()}) > 1:
            print(f"{organism}: " + "; ".join(f"{n} {s.verdict} ({s.binding})" for n, s in said.items()))


if __name__ == "__main__":
    main()
