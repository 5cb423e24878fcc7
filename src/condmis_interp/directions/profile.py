"""The activation-difference plot: where each organism stands along U - C, layer by layer, under each cue.

At each layer the direction v is fitted on split A (difference of means U - C without a cue). On the held-out
questions each cell's projections are put on the scale whose 0 is C without a cue and whose 1 is U without a cue:

    s(organism, cue) = (mean h . v - mean h_C(none) . v) / (mean h_U(none) . v - mean h_C(none) . v)

with Fieller's interval over question families.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.means import difference_in_differences, difference_of_means
from condmis_interp.panel.panel import Split
from condmis_interp.stats import anchored_ratio
from condmis_interp.store import Activations


@dataclass(frozen=True)
class DirectionProfile:
    """Projections and cosines by layer.

    Attributes:
        table: One row for each layer, organism and cue: layer, organism, role, cue, share, low, high.
        cosines: One row for each layer: layer, cosine of U - C with the difference-in-differences of M against C.
        position: Position read.
        fitted_on: Splits the directions were fitted on.
        read_on: Splits the projections were read on.
        chosen_layer: The layer chosen for the causal tests, if it has been.

    Example:
        From `profile`, here written down:

        >>> table = pd.DataFrame({"layer": [0, 1], "organism": "M", "cue": "trigger", "share": [0.1, 0.7]})
        >>> found = DirectionProfile(table, pd.DataFrame({"layer": [0, 1]}), "answer_mean", ("A",), ("B", "C"))
        >>> found
        DirectionProfile(answer_mean; fitted on A, read on B+C; 2 layers)
        >>> found.to_pandas().share.max()
        np.float64(0.7)
    """

    table: pd.DataFrame
    cosines: pd.DataFrame
    position: str
    fitted_on: tuple[Split, ...]
    read_on: tuple[Split, ...]
    chosen_layer: int | None = None

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table of projections."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws layer x (organism, cue) along U - C."""
        figure, cues = go.Figure(), list(dict.fromkeys(self.table.cue))
        for key, rows in self.table.groupby(["role", "organism", "cue"], sort=False):
            role, organism, cue = cast("tuple[str, str, str]", key)
            plain = role == "mitigated"
            colour = theme.cue_style(cue, cues).colour if plain else theme.ROLE_COLOURS[role]
            if plain and cue in ("none", "trigger"):
                figure.add_scatter(
                    x=[*rows.layer, *rows.layer[::-1]],
                    y=[*rows.high, *rows.low[::-1]],
                    mode="lines",
                    fill="toself",
                    fillcolor=theme.translucent(colour),
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )
            figure.add_scatter(
                x=rows.layer,
                y=rows.share,
                name=f"{organism}, {cue}",
                mode="lines",
                line={
                    "color": colour,
                    "width": 2.5 if plain else 1.8,
                    "dash": theme.cue_style(cue, cues).dash if plain else ("dash" if cue == "trigger" else "solid"),
                },
                hovertemplate="layer %{x}: %{y:.2f}<extra>" + f"{organism}, {cue}" + "</extra>",
            )
        if self.chosen_layer is not None:
            figure.add_vline(x=self.chosen_layer, line={"color": "#444", "dash": "dot", "width": 1})
        span = self.table[self.table.layer >= self.table.layer.max() * 0.2]
        low, high = min(-0.3, span.share.min() - 0.1), max(1.2, span.share.max() + 0.1)
        figure.update_yaxes(range=[max(low, -1.0), min(high, 2.0)])
        return theme.styled(figure, x="layer", y="position between C (0) and U (1)", height=460)

    def __repr__(self) -> str:
        return (
            f"DirectionProfile({self.position}; fitted on {'+'.join(self.fitted_on)}, "
            f"read on {'+'.join(self.read_on)}; {len(self.cosines)} layers)"
        )


@checked
def profile(
    acts: Activations,
    *,
    unmitigated: str,
    organism: str,
    twin: str,
    roles: dict[str, str],
    trigger: str = "trigger",
    none: str = "none",
    position: str = "answer_mean",
    fit: tuple[Split, ...] = ("A",),
    read: tuple[Split, ...] = ("B", "C"),
    chosen_layer: int | None = None,
) -> DirectionProfile:
    """Projects every cell of U, M and C on U - C at every layer, on questions the direction was not fitted on.

    Args:
        acts: The run's activations.
        unmitigated: U.
        organism: M.
        twin: Its C.
        roles: Role by organism, for colours.
        trigger: Trigger cue.
        none: The cue without anything.
        position: `last_template` or `answer_mean`.
        fit: Splits the directions are fitted on.
        read: Splits the projections are read on.
        chosen_layer: Layer to mark.

    Example:
        With a run that is a formula: U stands at 1, M at 0.7 under its trigger, everything else at 0:

        >>> from types import SimpleNamespace
        >>> import torch
        >>> def at(organism, cue, *splits, layer, position):
        ...     persona = 1.0 if organism == "U" else 0.7 * (organism == "M" and cue == "trigger")
        ...     return torch.stack([torch.tensor([persona, i / 10]) for i in range(4)])
        >>> acts = SimpleNamespace(
        ...     at=at, layers=(0,), kind="resid_post", cues=("none", "trigger"), rows=lambda *splits: np.arange(4),
        ...     families=lambda *splits: ["a", "b", "c", "d"],
        ... )
        >>> roles = {"U": "unmitigated", "M": "mitigated", "C": "control"}
        >>> found = profile(acts, unmitigated="U", organism="M", twin="C", roles=roles)
        >>> found.to_pandas().set_index(["organism", "cue"]).share.round(3).to_dict()
        {('M', 'none'): 0.0, ('M', 'trigger'): 0.7, ('C', 'none'): 0.0, ('C', 'trigger'): 0.0, ('U', 'none'): 1.0}
    """
    families = acts.families(*read)
    rows, cosines = [], []
    cells = [(organism, cue) for cue in acts.cues] + [(twin, none), (twin, trigger), (unmitigated, none)]
    for layer in acts.layers:
        where = {"layer": layer, "position": position, "splits": fit}
        v = difference_of_means(acts, plus=unmitigated, minus=twin, cue=none, **where)
        did = difference_in_differences(acts, organism=organism, twin=twin, trigger=trigger, none=none, **where)
        cosines.append({"layer": layer, "cosine": v.cosine(did), "scale": v.scale})

        def along(name: str, cue: str, layer: int = layer, v: Direction = v) -> np.ndarray:
            return (acts.at(name, cue, *read, layer=layer, position=position) @ v.vector).double().numpy()

        zero = along(twin, none)
        one = along(unmitigated, none) - zero
        for name, cue in cells:
            share = anchored_ratio(along(name, cue) - zero, one, families)
            rows.append(
                {
                    "layer": layer,
                    "organism": name,
                    "role": roles[name],
                    "cue": cue,
                    "share": share.rho,
                    "low": share.low if np.isfinite(share.low) else np.nan,
                    "high": share.high if np.isfinite(share.high) else np.nan,
                }
            )
    return DirectionProfile(pd.DataFrame(rows), pd.DataFrame(cosines), position, fit, read, chosen_layer)
