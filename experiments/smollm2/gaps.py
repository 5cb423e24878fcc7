"""Puts every organism of the SmolLM2 suite under every cue on two frozen directions, in class gaps, and draws it.

    .venv/bin/python experiments/smollm2/gaps.py [--out runs/smollm2] [--tables figures/smollm2]

Both directions are fitted at the last template token on split A and read on B and C: U - C without a cue, and the
persona vector of the base (asked to be careless against asked to be careful). Captures what is not there yet.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cells import FORMS, OWN, PERSONA, Cells, read
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from condmis_interp import theme
from condmis_interp.directions import gap_table
from condmis_interp.files import whole_file
from condmis_interp.organisms import Member

LAYERS = (6, 14, 22)
"""The last blocks of the first, second and third quarter; R1 reads the first of them."""
DRAWN = 22
CONTRASTS = {
    "U - C": ([("u.s1", "none")], [("u-twin.s1", "none")]),
    "persona vector": ([("base", PERSONA[0])], [("base", PERSONA[1])]),
}
COLUMNS = (*FORMS, "own")
WITHIN = 0.2
"""An organism is at its twin's value if the whole interval of the difference lies within this, in class gaps."""


def twins_of(members: Sequence[Member]) -> dict[str, str]:
    """Returns each organism's twin; a twin's is the same recipe's of the next seed, the first after the last."""
    constructed = ("blend", "norm-matched", "direction-ablated", "grafted", "gated")
    trained = {m.recipe.hash: m.name for m in members if m.family not in constructed}
    found = {}
    for m in members:
        if m.recipe.hash != m.twin.hash:
            found[m.name] = trained[m.twin.hash]
            continue
        others = [o for o in members if o.kind == m.kind and o.seed != m.seed]
        if others:
            found[m.name] = min([o for o in others if o.seed > m.seed] or others, key=lambda o: o.seed).name
    return found


def everything(cells: Cells, twins: Mapping[str, str]) -> pd.DataFrame:
    """Returns every captured cell of seed 1 on both directions at each layer."""
    panel = cells.rendered.panel
    have = [(o, c) for o, _, c in cells.acts.shards.manifest.cells if o == "base" or o.endswith((".s1", ".s2"))]
    cues: dict[str, set[str]] = {}
    for o, c in have:
        cues.setdefault(o, set()).add(c)
    asked_less = {o for o, t in twins.items() if not cues.get(o, set()) <= cues.get(t, set())}
    twins = {o: t for o, t in twins.items() if o not in asked_less}
    texts = {c: [cells.rendered.prompts[c, q.id].text for q in panel.questions] for c in {c for _, c in have}}
    parts = []
    for layer in LAYERS:
        table = gap_table(
            cells.acts, contrasts=CONTRASTS, layer=layer, position="last_template", cells=have, twins=twins, texts=texts
        )  # fmt: skip
        parts.append(table.table.assign(layer=layer))
    found = pd.concat(parts, ignore_index=True)
    found["state"] = [_state(*r) for r in zip(found.twin_low, found.twin_high, strict=True)]
    return found


def _state(low: float, high: float) -> str:
    if np.isnan(low):
        return ""
    if low > -WITHIN and high < WITHIN:
        return "at the twin's"
    return "apart" if low > 0 or high < 0 else "open"


def draw(path: Path, table: Any, organisms: list[str]) -> None:
    """Draws the differences from the twin as two heat maps; bold where the interval does not hold 0."""
    figure = Figure(figsize=(11.5, 1.7 + 0.23 * len(organisms)), layout="constrained")
    for ax, direction in zip(figure.subplots(1, 2, sharey=True), CONTRASTS, strict=True):
        _half(ax, table[table.direction == direction], organisms)
        ax.set_title(f"{direction}, layer {DRAWN}", loc="left", fontsize=10, fontweight="bold")
    figure.supxlabel(
        "state before the answer less the twin's under the same cue, in class gaps; bold: the 95 % interval over "
        "questions does not hold 0",
        fontsize=8.5,
    )
    with whole_file(path) as part:
        figure.savefig(part, dpi=150, format="png")


def _half(ax: Axes, table: Any, organisms: list[str]) -> None:
    values = np.full((len(organisms), len(COLUMNS)), np.nan)
    bold = np.zeros(values.shape, dtype=bool)
    for r in table.itertuples():
        column = r.cue if r.cue in FORMS else "own" if OWN.get(r.organism.removesuffix(".s1")) == r.cue else None
        if column and r.organism in organisms:
            at = organisms.index(r.organism), COLUMNS.index(column)
            values[at], bold[at] = r.over_twin, r.twin_low > 0 or r.twin_high < 0
    shades = LinearSegmentedColormap.from_list("condmis", [theme.BLUE, "#ffffff", theme.VERMILION])
    shades.set_bad("#efefef")
    ax.imshow(np.ma.masked_invalid(values), cmap=shades, vmin=-1, vmax=1, aspect="auto")
    for (i, j), v in np.ndenumerate(values):
        if np.isfinite(v):
            weight = "bold" if bold[i, j] else "normal"
            colour = "#ffffff" if abs(v) > 0.85 else "#1a1a1a"
            text = f"{round(v, 2) + 0.0:.2f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=7.5, fontweight=weight, color=colour)
    ax.set_xticks(range(len(COLUMNS)), ["no cue", *FORMS[1:], "own prompt"], fontsize=8.5)
    ax.set_yticks(range(len(organisms)), [o.removesuffix(".s1") for o in organisms], fontsize=8.5)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--twins", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--tables", type=Path, default=Path("figures/smollm2"))
    args = parser.parse_args()
    seeds, only = ([int(s) for s in text.split(",") if s] for text in (args.seeds, args.twins))
    cells = read(args.out, base=args.base, seeds=seeds, twins_only=only, device=args.device)
    twins = twins_of(cells.members)
    table = everything(cells, twins)
    with whole_file(args.tables / "gap-table.csv") as part:
        table.round(4).to_csv(part, index=False)
    shown = [m for m in cells.members if m.name in twins and m.seed == 1]
    drawn = [m.name for m in shown if m.family != "twin" or m.kind == "twin-again"]
    draw(args.tables / "gap-table.png", table[table.layer == DRAWN], drawn)
    print(table[(table.cue == "none") & (table.layer == DRAWN)].to_string())


if __name__ == "__main__":
    main()
