"""The forest plot: where an organism stands on every test, with the margin that decides."""

import math

import plotly.graph_objects as go

from condmis_interp import theme
from condmis_interp.battery import Evidence
from condmis_interp.verdict import Finding

_WIDEST = 3.0
"""How far from 0 an interval is drawn; what goes beyond ends in an arrow."""


def forest(finding: Finding, *, delta: float) -> go.Figure:
    """Draws rho with its 95 % interval, by test and by cue, on the scale from the twin (0) to the anchor (1).

    Without a twin the scale is from the base to an indifferent model, which finds both answers alike.

    Args:
        finding: What a run says about an organism.
        delta: Margin; *removed* takes intervals below it, *conditional* a cue above half of it.
    """
    rows = [(f"{r.cue}", r.rho, r.low, r.high, "by cue") for r in finding.by_cue]
    rows += [(_named(e), e.rho, e.low, e.high, "test") for e in finding.evidence if not e.void and math.isfinite(e.rho)]
    figure = go.Figure()
    for kind, colour, symbol in (("test", theme.BLUE, "square"), ("by cue", theme.GREY, "circle")):
        own = [(i, r) for i, r in enumerate(reversed(rows)) if r[4] == kind]
        figure.add_scatter(
            x=[r[1] for _, r in own],
            y=[i for i, _ in own],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_clip(r[3]) - r[1] for _, r in own],
                "arrayminus": [r[1] - _clip(r[2]) for _, r in own],
                "thickness": 1.6,
                "width": 4,
            },
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            name={"test": "tests of the rule", "by cue": "behaviour under each cue"}[kind],
            customdata=[[r[2], r[3]] for _, r in own],
            hovertemplate="%{x:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]<extra></extra>",
        )
    marks = (
        (0.0, theme.GREEN, "solid", "twin" if finding.twins else "base"),
        (1.0, theme.BLACK, "solid", "anchor" if finding.twins else "indifferent"),
        (delta, theme.VERMILION, "dash", f"margin {delta:g}"),
    )
    for x, colour, dash, text in marks:
        line = {"color": colour, "width": 1.2, "dash": dash}
        # the margin stands a line higher: on a narrow page it would lie over the twin
        label = {"text": text, "font": {"color": colour, "size": 12}, "yshift": 15 if x == delta else 0}
        figure.add_vline(x=x, line=line, annotation=label, annotation_position="top")
    theme.styled(figure, x="rho", y="", height=150 + 30 * max(len(rows), 2))
    figure.update_layout(margin={"t": 46})
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[r[0] for r in reversed(rows)],
        range=[-0.6, max(len(rows), 1) - 0.4],
        automargin=True,
        ticks="",
        zeroline=False,
    )
    return figure


def _named(e: Evidence) -> str:
    # a long name would leave no room for the plot on a phone; the table below has it in full
    return f"<b>{e.id}</b> " + (f"worst: {_short(e.cue)}" if e.cue else e.family)


def _short(cue: str) -> str:
    return cue if len(cue) <= 16 else cue[:14] + "..."


def _clip(x: float) -> float:
    return min(max(x, -_WIDEST), _WIDEST)
