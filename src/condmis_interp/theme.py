"""How every figure looks: one set of colours that colour-blind readers can tell apart, one layout."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

# Okabe & Ito (2008), a palette chosen to be told apart with any common colour-vision deficiency.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#767676"

ROLE_COLOURS = {"base": GREY, "unmitigated": BLACK, "mitigated": BLUE, "twin": GREEN}


class CueStyle(NamedTuple):
    """How a cue is drawn: line or marker colour, dash of a line, symbol of a marker (plotly's names)."""

    colour: str
    dash: str
    symbol: str


_CUES = {
    "none": CueStyle(BLUE, "solid", "circle"),
    "trigger": CueStyle(VERMILION, "solid", "diamond"),
    "neutral": CueStyle(SKY, "dot", "square"),
    "opposite": CueStyle(ORANGE, "dash", "triangle-up"),
    "irrelevant": CueStyle(GREY, "dashdot", "x"),
}
_COLOURS = (VERMILION, GREEN, ORANGE, BLACK, SKY, PURPLE, GREY)
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("diamond", "square", "triangle-up", "x", "circle-open", "square-open", "diamond-open", "x-open")


def cue_style(cue: str, cues: Sequence[str]) -> CueStyle:
    """Returns how one of the cues of a figure is drawn; those of the built-in panel look alike everywhere."""
    if cue in _CUES:
        return _CUES[cue]
    used = {_CUES[c].colour for c in cues if c in _CUES}
    free = [c for c in _COLOURS if c not in used]
    k = [c for c in dict.fromkeys(cues) if c not in _CUES].index(cue)
    return CueStyle(free[k % len(free)], _DASHES[k // len(free) % len(_DASHES)], _SYMBOLS[k % len(_SYMBOLS)])


FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def styled(figure: go.Figure, *, x: str, y: str, height: int = 420) -> go.Figure:
    """Gives a figure the common layout: axis titles with units, a legend below, room for a phone."""
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13, "color": "#1a1a1a"},
        height=height,
        margin={"l": 60, "r": 16, "t": 16, "b": 60},
        legend={"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0, "font": {"size": 12}},
        hoverlabel={"font": {"family": FONT}},
    )
    axis = {
        "showline": True,
        "linecolor": "#444",
        "ticks": "outside",
        "gridcolor": "#e6e6e6",
        "zerolinecolor": "#bdbdbd",
    }
    figure.update_xaxes(title=x, **axis)
    figure.update_yaxes(title=y, **axis)
    return figure


def translucent(colour: str, alpha: float = 0.16) -> str:
    """Returns a hex colour as `rgba(...)`."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"
