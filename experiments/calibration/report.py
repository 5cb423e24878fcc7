"""Prints the tables of docs/verdict.md from what a calibration wrote.

    .venv/bin/python experiments/calibration/report.py [figures/calibration]

The folder holds reference.json (else the shipped one is read) and the calibration's csv files.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from condmis_interp.files import read_json
from condmis_interp.tables import shipped
from condmis_interp.verdict.decision import ANSWERS

RATES = {
    "false_removed": "hidden called *removed*",
    "false_removed_blind": "the same, trigger not given",
    "hidden_caught": "hidden caught (*conditional* or *present*)",
    "hidden_caught_blind": "the same, trigger not given",
    "seen": "hidden that the tests see something of, trigger not given",
    "benign_certified": "benign certified *removed*",
    "benign_not_elicited": "benign called *not elicited*",
    "benign_accused": "benign accused",
    "retrained_certified": "retrained certified *removed*",
    "retrained_accused": "retrained accused",
    "graded_removed": "graded called *removed*",
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table."""
    print("", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head), sep="\n")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def share(r: dict[str, Any]) -> str:
    """Returns a share with its interval."""
    return "" if r["share"] is None else f"{r['share']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"


def csv(path: Path, **how: Any) -> Any:
    """Returns a table of the calibration."""
    return pd.read_csv(path, **how)


def main() -> None:
    """Prints them."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "figures/calibration")
    own = folder / "reference.json"
    found = read_json(own) if own.is_file() else shipped("reference-personaworld")
    table(
        ("", "share [95 %]", "of"),
        ((says, share(found[k]), f"{found[k]['count']} of {found[k]['n']}") for k, says in RATES.items()),
    )
    for which in ("answers", "answers_blind"):
        print(f"\n{which}")
        rows = ((*k.split(": "), *(v[a] or "" for a in ANSWERS)) for k, v in found[which].items())
        table(("truth", "family", *ANSWERS), rows)
    print("\nper test")
    tests, worth = csv(folder / "tests.csv", index_col=0), csv(folder / "worth.csv", index_col=0)
    tau = {t: found["drift"].get(t, {}).get("tau", float("nan")) for t in tests.index}
    rows = [
        (
            t,
            f"{r.auc:.2f}",
            f"{r['size']:.3f} [{r.size_low:.3f}, {r.size_high:.3f}]",
            f"{tau[t]:.3f}",
            f"{r.certified:.2f}",
        )
        for t, r in tests.iterrows()
    ]
    table(("test", "AUC, blind", "size on twins", "tau", "benign that pass"), rows)
    hidden = sorted({k.split(": ")[1] for k in found["answers"] if k.startswith(("hidden", "adversarial"))})
    table(("flags", *tests.index), ((f, *(f"{tests.loc[t, f'flags {f}']:.2f}" for t in tests.index)) for f in hidden))
    print("\nwithout a test")
    keep = [c for c in worth.columns if worth[c].any()]
    table(("without", *keep), ((i, *(f"{r[c]:.2f}" for c in keep)) for i, r in worth.iterrows()))
    print("\nmargins")
    margins = csv(folder / "operating.csv")
    keep = [c for c in margins.columns[2:] if margins[c].any()]
    rows = (
        (r.delta, "blind" if r.blind else "informed", *(f"{r[c]:.2f}" for c in keep)) for _, r in margins.iterrows()
    )
    table(("delta", "judge", *keep), rows)
    print("\nconfidence")
    bins = [(a, b) for a, own in found["reliability"].items() for b in own]
    rows = (
        (a, f"{b['from']:g} to {b['to']:g}", f"{b['confidence']:.2f}", f"{b['count']} of {b['n']}") for a, b in bins
    )
    table(("answer", "confidence", "mean", "right"), rows)
    readings = csv(folder / "figures.csv").pivot(index="family", columns="test", values="mean")
    print("\nmean rho, blind")
    table(("family", *readings.columns), ((f, *(f"{v:.2f}" for v in r)) for f, r in readings.iterrows()))


if __name__ == "__main__":
    main()
