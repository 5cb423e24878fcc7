"""The report: one HTML file that opens anywhere, offline, with everything escaped."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from condmis_interp.causal import LayerChoice
from condmis_interp.directions import DirectionProfile
from condmis_interp.files import write_text
from condmis_interp.panel import Panel
from condmis_interp.report.directions import Part, directions_section
from condmis_interp.report.forest import forest
from condmis_interp.report.static import heat_map, summary
from condmis_interp.store import Activations
from condmis_interp.study import Study
from condmis_interp.verdict import RULE, AuditResult, Decision

_CONFIG = {"responsive": True, "displayModeBar": False}


def write_report(out: Path, result: AuditResult) -> None:
    """Writes `report.html` and `figures/` into a run's folder.

    Every text that comes from a model, a panel or a study is escaped; the only markup let through is plotly's own.

    Args:
        out: The run's folder; the section on directions is drawn from its store.
        result: What the audit found.
    """
    study, panel, choice = result.study, result.panel, result.choice
    figures: dict[str, go.Figure] = {"behaviour": result.grid.figure()}
    if result.dose is not None:
        figures["dose-response"] = result.dose.figure()
    for m, finding in result.verdicts.items():
        figures[f"forest-{m}"] = forest(finding, delta=study.delta)
        if finding.coverage is not None:
            figures[f"coverage-{m}"] = finding.coverage.figure()
    figures |= {f"activation-difference-{m}": p.figure() for m, p in result.profiles.items()}
    figures |= {f"ablation-{m}": a.figure() for m, a in result.ablations.items()}
    parts = _directions(out, study, panel, choice)
    figures |= {p.name: p.figure for p in parts if p.figure is not None}
    folder = out / "figures"
    write_text(folder / "plotly.min.js", get_plotlyjs())
    for name, figure in figures.items():
        write_text(
            folder / f"{name}.html",
            figure.to_html(include_plotlyjs="plotly.min.js", config=_CONFIG, default_width="100%"),
        )
    first = next(iter(result.profiles), None)
    if first is not None and result.dose is not None:
        summary(
            folder / "summary.png",
            grid=result.grid,
            profile=result.profiles[first],
            dose=result.dose,
            ablation=result.ablations[first],
        )
    for part in parts:
        if part.table is not None:
            heat_map(folder / f"{part.name}.png", part.table, f"{part.title}, in class gaps", signed=True)
    env = Environment(
        loader=PackageLoader("condmis_interp.report", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["number"] = _number
    env.filters["p"] = _p
    env.filters["separation"] = _separation
    env.filters["bound"] = _bound
    env.filters["duration"] = _duration
    divs = {
        name: Markup(f.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"figure-{i}"))
        for i, (name, f) in enumerate(figures.items())
    }
    write_text(
        out / "report.html",
        env.get_template("report.html.j2").render(
            plotly=Markup(get_plotlyjs()),
            study=study,
            panel=panel,
            inserted=result.facts["inserted_by_template"],
            verdicts=result.verdicts,
            causal={m: own for m in result.verdicts if (own := [e for e in result.causal if e.organism == m])},
            cells={(r["organism"], r["cue"]): r for r in result.grid.table.to_dict("records")},
            organisms=list(dict.fromkeys(result.grid.table.organism)),
            cues=[c.name for c in panel.cues],
            choice=choice,
            figures=divs,
            directions=parts,
            cosines={m: _cosine_at(p, choice.layer) for m, p in result.profiles.items()} if choice else {},
            controls=result.controls,
            not_run=result.not_run,
            notes=result.notes,
            rule=RULE,
            answers=_side_by_side(result.answers),
            manifest=result.facts,
        ),
    )


def _directions(out: Path, study: Study, panel: Panel, choice: LayerChoice | None) -> list[Part]:
    """Returns the section on directions, from the run's own store; with what an SAE experiment left in `sae/`.

    Without U or a twin there is nothing to take a direction from.
    """
    if choice is None or study.unmitigated is None:
        return []
    sae = out / "sae" / "figures"
    twins = {m.name: twin.name for m in study.mitigated if (twin := study.twin_of(m.name)) is not None}
    own = study.twin_of(study.unmitigated.name)
    return directions_section(
        Activations.open(out / "activations", verify="used"),
        panel,
        unmitigated=study.unmitigated.name,
        twin=own.name if own else next(iter(twins.values())),
        twins=twins,
        layer=choice.layer,
        position=study.battery.position,
        rng=np.random.default_rng(study.seed),
        sae=sae if sae.is_dir() else None,
    )


def _side_by_side(answers: pd.DataFrame) -> list[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """Groups answers as question -> organism -> {cue: answer}."""
    return [
        (
            str(q),
            [
                (str(o), dict(zip(rows.cue, rows.answer, strict=True)))
                for o, rows in group.groupby("organism", sort=False)
            ],
        )
        for q, group in answers.groupby("question", sort=False)
    ]


def _cosine_at(profile: DirectionProfile, layer: int) -> float:
    return float(profile.cosines.set_index("layer").cosine[layer])


def _number(value: float | None, digits: int = 2) -> str:
    if value is None or not math.isfinite(value):
        return "unbounded"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _separation(z: float | None) -> str:
    """Returns how many standard errors the anchors lie apart; a test that no question enters has no such error."""
    return "no error" if z is not None and z > 1e6 else _number(z, 1)


def _bound(decision: Decision) -> str:
    """Returns what share of the grammar may still bring it out, in words; empty where no bound was found."""
    if not math.isfinite(decision.bound):
        return ""
    return f"At most {decision.bound:.1%} of the grammar (its open half) brings it out above the margin (95 %)."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else _number(value, 3)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
