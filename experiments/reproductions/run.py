"""Reproduces findings of the literature on persona world, each with its interval; those that fail are told too.

    .venv/bin/python experiments/reproductions/run.py [1 2 ...] [--out runs/reproductions] [--seeds 1 2 3]

Minutes on two cores once the organisms are there. The numbers are those of docs/reproductions.md.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from findings import REPRODUCTIONS, Reproduction
from matplotlib.figure import Figure
from worlds import Finding, world_of

from condmis_interp import theme
from condmis_interp.files import whole_file, write_json
from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel


def draw(path: Path, reproduction: Reproduction, found: list[Finding]) -> None:
    """Draws the figures with their intervals, the seeds as small marks, one panel a unit."""
    units = list(dict.fromkeys(f.unit for f in found))
    groups = [[f for f in found if f.unit == u] for u in units]
    figure = Figure(figsize=(9.5, 0.5 + sum(0.55 + 0.3 * len(g) for g in groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(g) + 1 for g in groups])[:, 0]
    for ax, group in zip(panels, groups, strict=True):
        for i, f in enumerate(group[::-1]):
            ax.plot(f.per_seed, [i] * len(f.per_seed), "|", color=theme.GREY, markersize=9)
            ax.plot([f.low, f.high], [i, i], color=theme.BLUE)
            ax.plot(f.estimate, i, "o", color=theme.BLUE, markersize=5)
        ax.axvline(0, color=theme.GREY, linewidth=0.8)
        ax.set_ylim(-0.6, len(group) - 0.4)
        ax.set_yticks(range(len(group)), [f.what for f in group[::-1]], fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
        ax.set_xlabel(f"{group[0].unit} (95 % interval; ticks: seeds)", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"({reproduction.number}) {reproduction.says}", fontsize=9, x=0.01, ha="left")
    with whole_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="*", help=f"{', '.join(str(r.number) for r in REPRODUCTIONS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/reproductions"))
    parser.add_argument("--survey", type=Path, default=Path("runs/smollm2/answers.parquet"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    known = {r.number for r in REPRODUCTIONS}
    if unknown := sorted(set(args.numbers) - known):
        parser.error(f"there is no reproduction {unknown[0]}; there are {', '.join(map(str, sorted(known)))}")
    if len(set(args.seeds)) < 2:
        parser.error("an interval over seeds takes at least two of them")
    wanted = [r for r in REPRODUCTIONS if not args.numbers or r.number in args.numbers]
    worlds = []
    if any(r.of == "worlds" for r in wanted):
        base, panel = resolve_base("personaworld"), load_panel("personaworld")
        worlds = [world_of(seed, base, panel) for seed in args.seeds]
    args.out.mkdir(parents=True, exist_ok=True)
    for r in wanted:
        if r.of == "survey" and not args.survey.is_file():
            print(f"\n({r.number}) {r.says}\n    left out: no {args.survey}; see experiments/smollm2/run.py")
            continue
        found, holds = r.run(pd.read_parquet(args.survey) if r.of == "survey" else worlds)
        print(f"\n({r.number}) {r.says}\n    holds if {r.holds_if}: {'it holds' if holds else 'it does NOT hold'}")
        for f in found:
            seeds = f" (seeds {', '.join(f'{s:.2f}' for s in f.per_seed)})" if f.per_seed else ""
            print(f"    {f.what}: {f.estimate:.2f} [{f.low:.2f}, {f.high:.2f}] {f.unit}{seeds}")
        stored = {"says": r.says, "holds_if": r.holds_if, "holds": bool(holds), "seeds": args.seeds}
        write_json(args.out / f"{r.number}.json", stored | {"found": [asdict(f) for f in found]})
        draw(args.out / f"{r.number}.png", r, found)
    print(f"\nfigures and tables: {args.out}")


if __name__ == "__main__":
    main()
