"""How every figure looks: one set of colours that colour-blind readers can tell apart, one layout."""

import plotly.graph_objects as go

# Okabe & Ito (2008), a palette chosen to be told apart with any common colour-vision deficiency.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#767676"

ROLE_COLOURS = {"base": GREY, "U": BLACK, "M": BLUE, "C": GREEN}
CUE_COLOURS = {"none": BLUE, "trigger": VERMILION, "neutral": SKY, "opposite": ORANGE, "irrelevant": GREY}
CUE_DASHES = {"none": "solid", "trigger": "solid", "neutral": "dot", "opposite": "dash", "irrelevant": "dashdot"}
CUE_SYMBOLS = {
    "none": "circle",
    "trigger": "diamond",
    "neutral": "square",
    "opposite": "triangle-up",
    "irrelevant": "x",
}

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
