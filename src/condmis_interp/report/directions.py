"""The report's section on directions: what the run's activations say, read from its store.

Everything here describes; no verdict rests on it. The settings are cheap (seconds on the demo's captures): a dozen
layers, eight bootstrap samples, one site for the probes. `directions.compare`, `probe_test` and `gap_table` are the
same functions with the settings a paper needs.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from condmis_interp import directions, theme
from condmis_interp.directions import Rows
from condmis_interp.directions.rows import CellName
from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import CueRole, Panel
from condmis_interp.panel.panel import Split
from condmis_interp.stats import grouped_folds
from condmis_interp.store import Activations

LAYERS = 12
BOOTSTRAPS = 8
PERMUTATIONS = 100
FOLDS = 4


@dataclass(frozen=True)
class Part:
    """A part of the section.

    Attributes:
        title: Its heading.
        name: Name of its figure's file.
        sentence: What is drawn, and what it says; or why it could not be drawn.
        figure: The figure; None if it could not be drawn.
        table: What a static figure can show: organism x cue.
    """

    title: str
    name: str
    sentence: str
    figure: go.Figure | None = None
    table: pd.DataFrame | None = None


Drawn = tuple[str, go.Figure, pd.DataFrame | None]


def directions_section(
    acts: Activations,
    panel: Panel,
    *,
    unmitigated: str,
    twin: str,
    twins: Mapping[str, str],
    layer: int,
    position: str,
    rng: np.random.Generator,
    sae: Path | None = None,
) -> list[Part]:
    """Returns the section's parts: gap table, direction cards, probes with their controls, transfer, SAE.

    Args:
        acts: The run's activations.
        panel: Its panel.
        unmitigated: U.
        twin: The C of U - C: U's own twin, where there is one.
        twins: The twin of each M.
        layer: Layer that was chosen for the causal tests.
        position: Position the directions are read at.
        rng: Deals folds, draws bootstrap samples and permutations.
        sae: Folder of figures of an SAE experiment on the same organisms (`experiments/sae`), if there is one.
    """
    folds = min(FOLDS, len({*acts.families("B", "C")}))
    none, trigger = (panel.cues_with(role)[0].name for role in (CueRole.NONE, CueRole.TRIGGER))
    u_c: tuple[list[CellName], list[CellName]] = ([(unmitigated, none)], [(twin, none)])
    contrasts: dict[str, tuple[list[CellName], list[CellName]]] = {"U - C": u_c}
    for m, c in twins.items():
        contrasts |= {f"{m} - twin, {cue}": ([(m, cue)], [(c, cue)]) for cue in (none, trigger)}
        contrasts[f"{m}, {trigger} - {none}"] = ([(m, trigger)], [(m, none)])

    def cards() -> Drawn:
        grid = sorted({*np.linspace(acts.layers[0], acts.layers[-1], LAYERS).astype(int).tolist(), layer})
        layers = [k for k in grid if k in acts.layers]

        def of(*splits: Split) -> Rows:
            return directions.rows_of(
                acts, plus=u_c[0], minus=u_c[1], splits=splits, layers=layers, positions=[position]
            )

        fitted, read = of("A"), of("B", "C")
        found = directions.compare(fitted, read, rng=rng, bootstraps=BOOTSTRAPS, permutations=PERMUTATIONS)
        cosines = found.cards[layer, "means"].cosines
        said = ", ".join(f"{m} {v:.2f}" for m, v in cosines.items())
        return (
            f"U - C by four methods, fitted on split A and read on B and C: the class gap along each over the spread "
            f"of questions, held-out AUROC, cosine with the difference of means, and how stable each is over resampled "
            f"families (mean and lowest 5 %). At layer {layer} the cosines with the difference of means are: {said}. "
            f"Mass-mean is a filter, Sigma^-1 (U - C): it is not meant to point the same way.",
            found.figure(chosen_layer=layer),
            None,
        )

    def rows(name: str) -> Rows:
        plus, minus = contrasts[name]
        return directions.rows_of(acts, plus=plus, minus=minus, splits=("B", "C"), layers=[layer], positions=[position])

    def transfer() -> Drawn:
        own = {name: rows(name) for name in contrasts}
        found = directions.transfer(own, own, rng=rng, folds=folds, layer=layer, position=position)
        gaps = found.matrix("gap")
        triggered = f"{next(iter(twins))} - twin, {trigger}"
        return (
            f"The difference of means of each contrast, tested on every other on families it was not fitted on, in its "
            f"own class gaps: 1 means as far apart as what it was fitted on. Fitted on U - C, {triggered} reads "
            f"{gaps.loc['U - C', triggered]:.2f}.",
            found.figure(),
            None,
        )

    def probes() -> Drawn:
        return _probes(panel, {name: rows(name) for name in contrasts}, folds, layer, rng)

    parts: Sequence[tuple[str, str, Callable[[], Drawn]]] = (
        ("Every cell on U - C", "directions-gaps", lambda: _gaps(acts, u_c, twins, trigger, layer, position)),
        ("Methods by layer", "directions-methods", cards),
        (
            "Can it be read?",
            "directions-probes",
            lambda: _probes(panel, {n: rows(n) for n in contrasts}, folds, layer, rng),
        ),
        ("Does one direction read the other?", "directions-transfer", transfer),
    )
    return [_or_why(*part) for part in parts] + ([*_sae(sae)] if sae is not None else [])


def _or_why(title: str, name: str, draw: Callable[[], Drawn]) -> Part:
    """Draws a part; a panel that is too small for it is no reason to have no report."""
    try:
        return Part(title, name, *draw())
    except (UserError, CheckError) as error:
        return Part(title, name, f"Not drawn: {error}")


def _gaps(
    acts: Activations,
    u_c: tuple[list[CellName], list[CellName]],
    twins: Mapping[str, str],
    trigger: str,
    layer: int,
    position: str,
) -> Drawn:
    found = directions.gap_table(acts, contrasts={"U - C": u_c}, twins=twins, layer=layer, position=position)
    t = found.table.set_index(["organism", "cue"])
    over = "; ".join(
        f"{m} under {trigger} {r.over_twin:.2f} [{r.twin_low:.2f}, {r.twin_high:.2f}]"
        for m in twins
        for r in [t.loc[m, trigger]]
    )
    return (
        f"The direction is fitted on split A without a cue and frozen; every organism under every cue is read on B "
        f"and C with it at layer {layer}. 0 is {u_c[1][0][0]}, 1 {u_c[0][0][0]}. A cue moves any model, so the "
        f"figure to quote is the one over its own twin under the same cue: {over} class gaps.",
        found.figure(),
        found.grid("U - C"),
    )


def _probes(panel: Panel, rows: Mapping[str, Rows], count: int, layer: int, rng: np.random.Generator) -> Drawn:
    texts = {c.name: [f"{c.system or ''} {q.under(c)}" for q in panel.questions] for c in panel.cues}
    chosen = panel.question_indices("B", "C")
    folds = grouped_folds(next(iter(rows.values())).families, count, rng)
    table = []
    for name, own in rows.items():
        test = directions.probe_test(own, folds, rng=rng, method="means", permutations=PERMUTATIONS)
        words = [texts[cue][i] for (_, cue), i in zip(own.cells, chosen * 2, strict=True)]
        of_text = directions.text_rows(own, words)  # most words are rare, which `drop` would take for massive
        text = directions.probe_test(of_text, folds, rng=rng, method="means", permutations=0, massive="keep")
        low, high = np.quantile(test.null, [0.05, 0.95])
        table.append({"contrast": name, "auroc": test.auroc, "low": low, "high": high, "text": text.auroc})
    t = pd.DataFrame(table)
    figure = go.Figure()
    figure.add_scatter(
        x=(t.low + t.high) / 2,
        y=t.contrast,
        error_x={"type": "data", "array": (t.high - t.low) / 2, "thickness": 7, "width": 0, "color": "#cfcfcf"},
        mode="markers",
        marker={"color": "#cfcfcf", "size": 1},
        name="labels shuffled, 5 to 95 %",
    )
    for column, label, colour, symbol in (
        ("text", "from the prompt's words alone", theme.ORANGE, "square-open"),
        ("auroc", "from the activations", theme.BLUE, "circle"),
    ):
        figure.add_scatter(
            x=t[column], y=t.contrast, mode="markers", name=label,
            marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2}},
            hovertemplate="%{y}: %{x:.2f}<extra>" + label + "</extra>",
        )  # fmt: skip
    plot = 34 * len(t)
    theme.styled(figure, x="held-out AUROC", y="", height=150 + plot)
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", showgrid=False)
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_layout(legend={"y": -60 / plot})
    return (
        f"A difference-of-means probe at layer {layer}, held out by question family on splits B and C. Where the "
        f"words alone do as well (always, between two cues), the probe shows nothing about the model; organism and "
        f"twin under one cue read the same words. That a class can be read does not say that it does anything.",
        figure,
        None,
    )


def _sae(folder: Path) -> Iterator[Part]:
    """Reads what an SAE experiment left: fidelity by cell, and what its latents cause."""
    for path in sorted(folder.glob("*-fidelity.csv")):
        name, t = path.name.removesuffix("-fidelity.csv"), pd.read_csv(path)
        grid = t.pivot(index="organism", columns="cue", values="explained")
        grid = grid.loc[list(dict.fromkeys(t.organism)), list(dict.fromkeys(t.cue))]
        refused = [f"{r['organism']} under {r['cue']}" for r in t.to_dict("records") if not r["passed"]]
        yield Part(
            "Where the SAE may be believed",
            f"sae-fidelity-{name}",
            f"Share of the variance that the SAE explains in each cell, on questions it was not trained on. "
            f"{len(t) - len(refused)} of {len(t)} cells pass the gate"
            + (f"; not {', '.join(refused)} (crossed). No latent is read there." if refused else "."),
            _heat(grid, t.pivot(index="organism", columns="cue", values="passed").loc[grid.index, grid.columns]),
        )
        causes, facts = (folder / f"{name}-{kind}" for kind in ("causes.csv", "facts.json"))
        if causes.is_file():
            said = json.loads(facts.read_text()).get("sentences", {}) if facts.is_file() else {}
            yield Part(
                "What its latents do, beside as many principal components",
                f"sae-causes-{name}",
                "Share of the gap to the twin that is taken back when latents are set to the twin's values, on "
                "questions they were not chosen on. " + next(iter(said.values()), ""),
                _causes(pd.read_csv(causes)),
            )


def _heat(grid: pd.DataFrame, passed: pd.DataFrame) -> go.Figure:
    text = [
        [f"{v:.2f}" + ("" if p else " x") for v, p in zip(*row, strict=True)]
        for row in zip(grid.to_numpy(), passed.to_numpy(), strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=list(grid.columns),
            y=list(grid.index),
            text=text,
            texttemplate="%{text}",
            colorscale=[[0, theme.ORANGE], [0.5, "#ffffff"], [1, theme.SKY]],
            zmin=0.4,
            zmax=1,
            showscale=False,
            hovertemplate="%{y} under %{x}: %{z:.2f}<extra></extra>",
        )
    )
    theme.styled(figure, x="", y="", height=120 + 26 * len(grid))
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", showgrid=False)
    figure.update_xaxes(side="top", ticks="", showgrid=False, tickangle=-30, automargin=True)
    return figure


def _causes(table: pd.DataFrame) -> go.Figure:
    colours = {"latents": theme.BLUE, "pca": theme.VERMILION, "random latents": theme.GREY, "everything": theme.BLACK}
    shown = cast("pd.DataFrame", table[table.kind.isin(list(colours)) & table.share.notna()])
    shown = shown.drop_duplicates(["found", "kind"])
    figure = go.Figure()
    for kind, t in shown.groupby("kind", sort=False):
        figure.add_scatter(
            x=t.share,
            y=[f"{f}: {n}" for f, n in zip(t.found, t.name, strict=True)],
            error_x={"type": "data", "symmetric": False, "array": t.high - t.share, "arrayminus": t.share - t.low},
            mode="markers",
            name=str(kind),
            marker={"color": colours[str(kind)], "size": 9},
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    order = [f"{f}: {n}" for f, n in zip(shown.found, shown.name, strict=True)]
    theme.styled(figure, x="share of the gap to the twin taken back", y="", height=150 + 26 * len(order))
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], automargin=True, ticks="")
    figure.update_layout(showlegend=False)
    return figure
