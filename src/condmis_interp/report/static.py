"""Static figures with matplotlib, so that no browser is needed for a PNG.

matplotlib takes seconds to import, so what draws imports it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from condmis_interp import theme
from condmis_interp.battery import BehaviourGrid
from condmis_interp.causal import Ablation, DoseResponse
from condmis_interp.directions import DirectionProfile
from condmis_interp.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "x": "X"}
_STYLES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-."}


def summary(
    path: Path, *, grid: BehaviourGrid, profile: DirectionProfile, dose: DoseResponse, ablation: Ablation
) -> None:
    """Draws behaviour, activation differences, dose-response and ablation into one PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
        }
    ):
        figure = Figure(figsize=(11, 7.6), layout="constrained")
        axes = figure.subplots(2, 2)
        _behaviour(axes[0, 0], grid)
        _profile(axes[0, 1], profile)
        _dose(axes[1, 0], dose)
        _ablation(axes[1, 1], ablation)
        with whole_file(path) as part:
            figure.savefig(part, dpi=150, format="png")


def heat_map(path: Path, grid: pd.DataFrame, title: str, *, signed: bool) -> None:
    """Draws a grid [kind of organism x cue] into a PNG: nats around 0 if it is signed, else shares."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    values = grid.to_numpy(dtype=float)
    highest = float(np.nanmax(np.abs(values))) if signed else 1.0
    colours = [theme.BLUE, "#ffffff", theme.VERMILION] if signed else ["#ffffff", theme.VERMILION]
    figure = Figure(figsize=(2.6 + 0.62 * len(grid.columns), 1.6 + 0.21 * len(grid)), layout="constrained")
    ax = figure.subplots()
    shades = LinearSegmentedColormap.from_list("condmis", colours)
    ax.imshow(values, cmap=shades, vmin=-highest if signed else 0.0, vmax=highest, aspect="auto")
    for i, row in enumerate(values):
        for j, v in enumerate(row):
            ax.text(j, i, f"{v:.1f}" if signed else f"{v:.2f}", ha="center", va="center", fontsize=7)
    ax.set_xticks(
        range(len(grid.columns)), list(grid.columns), fontsize=8, rotation=35, ha="left", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(grid)), list(grid.index), fontsize=8)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    with whole_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


def _behaviour(ax: "Axes", grid: BehaviourGrid) -> None:
    organisms = list(dict.fromkeys(grid.table.organism))
    cues = list(dict.fromkeys(grid.table.cue))
    for i, cue in enumerate(cues):
        rows = grid.table[grid.table.cue == cue].set_index("organism").loc[organisms]
        y = np.arange(len(organisms)) + 0.7 * ((i + 0.5) / len(cues) - 0.5)
        ax.errorbar(
            rows.ld,
            y,
            xerr=[rows.ld - rows.low, rows.high - rows.ld],
            fmt=_MARKERS.get(theme.cue_style(cue, cues).symbol.removesuffix("-open"), "o"),
            color=theme.cue_style(cue, cues).colour,
            markersize=5,
            linewidth=1,
            label=cue,
        )
    ax.set_yticks(range(len(organisms)), organisms)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color="#444", linewidth=0.8)
    ax.set_xlabel("LD, nats (right = misaligned)")
    ax.set_title("Behaviour by organism and cue", loc="left", fontsize=10, fontweight="bold")
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.16))


def _profile(ax: "Axes", profile: DirectionProfile) -> None:
    cues = list(dict.fromkeys(profile.table.cue))
    for key, rows in profile.table.groupby(["role", "organism", "cue"], sort=False):
        role, organism, cue = cast("tuple[str, str, str]", key)
        under_test = role == "mitigated"
        colour = theme.cue_style(cue, cues).colour if under_test else theme.ROLE_COLOURS[role]
        style = theme.cue_style(cue, cues).dash if under_test else ("dash" if cue == "trigger" else "solid")
        if under_test and cue in ("none", "trigger"):
            ax.fill_between(rows.layer, rows.low, rows.high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(rows.layer, rows.share, _STYLES[style], color=colour, linewidth=1.8, label=f"{organism}, {cue}")
    if profile.chosen_layer is not None:
        ax.axvline(profile.chosen_layer, color="#444", linestyle=":", linewidth=1)
    ax.set_ylim(-0.6, 1.6)
    ax.set_xlabel("layer (dotted: chosen)")
    ax.set_ylabel("position along U - C\n(0 = C, 1 = U, no cue)")
    ax.set_title("Activation differences, held-out questions", loc="left", fontsize=10, fontweight="bold")
    ax.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _dose(ax: "Axes", dose: DoseResponse) -> None:
    t = dose.table
    ax.fill_between(t.dose, t.low, t.high, color=theme.BLUE, alpha=0.15, linewidth=0)
    ax.plot(t.dose, t.ld, "o-", color=theme.BLUE, markersize=4, label="along U - C")
    jitter = np.linspace(-0.06, 0.06, len(dose.random))
    ax.plot(1 + jitter, dose.random, ".", color=theme.GREY, markersize=4, label=f"{len(dose.random)} random directions")
    for name, value, colour in (("C", dose.anchors[0], theme.GREEN), ("U", dose.anchors[1], theme.BLACK)):
        ax.axhline(value, color=colour, linestyle="--", linewidth=1)
        ax.annotate(name, (t.dose.min(), value), color=colour, va="bottom")
    ax.margins(y=0.08)
    ax.set_xlabel("dose, in norms of the U - C difference")
    ax.set_ylabel("LD of C without a cue, nats")
    ax.set_title("Steering the benign twin", loc="left", fontsize=10, fontweight="bold")
    ax.legend(fontsize=8, frameon=False, loc="lower right")


def _ablation(ax: "Axes", ablation: Ablation) -> None:
    e = ablation.evidence
    counts, _, _ = ax.hist(
        ablation.random, bins=12, color=theme.GREY, label=f"{len(ablation.random)} random directions"
    )
    high, low = (e.high - e.rho, e.rho - e.low) if np.isfinite([e.low, e.high]).all() else (0.0, 0.0)
    ax.errorbar([e.rho], [max(counts) * 0.6], xerr=[[low], [high]], fmt="D", color=theme.BLUE, label="U - C")
    ax.axvline(0, color="#444", linewidth=0.8)
    ax.axvline(1, color=theme.GREEN, linestyle="--", linewidth=1)
    ax.set_xlabel("share of the triggered effect taken back (1 = all the way to C)")
    ax.set_ylabel("random directions")
    ax.set_title(f"Ablating {e.organism} under the trigger", loc="left", fontsize=10, fontweight="bold")
    ax.legend(fontsize=8, frameon=False, loc="upper center")
