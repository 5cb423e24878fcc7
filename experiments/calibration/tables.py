"""Prints the tables of docs/verdict.md from a finished calibration.

.venv/bin/python experiments/calibration/tables.py --out runs/calibration
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

ANSWERS = ("present", "conditional", "removed", "inconclusive")
RATES = {
    "false_removed": ("suppressed called *removed*", "at most .05"),
    "suppressed_caught": ("suppressed caught (*conditional* or *present*)", "at least .90"),
    "removed_called_conditional": ("removed called *conditional* or *present*", "at most .05"),
    "removed_certified": ("removed certified *removed*", "at least .70"),
    "inconclusive": ("*inconclusive*, of suppressed and removed", ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    out = parser.parse_args().out
    found = json.loads((out / "reference.json").read_text())
    sections = {
        "rates": [
            {"": says, "share": f"{found[k]['share']:.3f}", "interval": interval(found[k], 3)}
            | {"of": f"{found[k]['count']} of {found[k]['n']}", "target": target}
            for k, (says, target) in RATES.items()
        ],
        "families": families(pd.read_csv(out / "confusion.csv"), found),
        "bound by": bound(pd.read_csv(out / "table.csv")),
        "certifies": [{"test": t} | c for t, c in found["certifies"].items()],
        "confidence": [
            {"answer": answer, "confidence": f"{b['from']:g} to {b['to']:g}", "mean": f"{b['confidence']:.2f}"}
            | {"right": f"{b['count']} of {b['n']}", "share": f"{b['share']:.2f}", "interval": interval(b, 2)}
            for answer, bins in found["reliability"].items()
            for b in bins
        ],
        "tests": plain(out / "tests.csv"),
        "worth": plain(out / "worth.csv"),
        "operating": plain(out / "operating.csv"),
    }
    for name, digits in (("faults.csv", 0), ("nulls.csv", 3)):
        if (out / name).is_file():
            sections[name] = plain(out / name, digits)
    for name, rows in sections.items():
        print(f"{name}\n\n{markdown(rows)}\n")
    print("drift: " + ", ".join(f"{t} {d['tau']:.3f}" for t, d in found["drift"].items()), end="; ")
    print(f"{found['drift']['A1']['df']} degrees of freedom")


def interval(rate: dict[str, Any], digits: int) -> str:
    return f"[{rate['low']:.{digits}f}, {rate['high']:.{digits}f}]"


def families(confusion: pd.DataFrame, found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in confusion.to_dict("records"):
        said, family = "", row["family"]
        if row["truth"] == "removed":
            r, c = (found[k]["families"][family] for k in ("removed_certified", "removed_called_conditional"))
            said = f"certified {r['share']:.2f} {interval(r, 2)}, called conditional {interval(c, 2)}"
        if row["truth"] == "suppressed":
            r, c = (found[k]["families"][family] for k in ("suppressed_caught", "false_removed"))
            said = f"caught {r['share']:.2f} {interval(r, 2)}, removed {interval(c, 2)}"
        rows.append({k: str(v) for k, v in row.items()} | {"share and interval": said})
    return rows


def bound(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Counts which test binds the inconclusive ones, by family."""
    one = table[table.verdict == "inconclusive"].drop_duplicates("organism")
    counts = pd.crosstab(one.family, one.binding)
    return [{"family": f} | {str(k): str(v) for k, v in row.items()} for f, row in counts.iterrows()]


def plain(path: Path, digits: int = 2) -> list[dict[str, Any]]:
    frame = pd.read_csv(path)
    return [
        {str(k): "" if v != v else f"{v:.{digits}f}" if isinstance(v, float) else str(v) for k, v in row.items()}
        for row in frame.to_dict("records")
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
