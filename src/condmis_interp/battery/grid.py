"""Behaviour as it is: LD of every organism under every cue, with intervals clustered by question family."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from condmis_interp import theme
from condmis_interp.stats import cluster_mean
from condmis_interp.store import Activations


@dataclass(frozen=True)
class BehaviourGrid:
    """LD of every organism under every cue.

    Attributes:
        table: One row for each organism and cue: organism, role, cue, ld, low, high, share_misaligned, n_questions,
            n_families. `share_misaligned` is the share of questions with LD > 0.

    Example:
        >>> BehaviourGrid(pd.DataFrame({"organism": ["u"], "cue": ["none"]})).to_pandas().organism.tolist()
        ['u']
    """

    table: pd.DataFrame

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws organism x cue with intervals."""
        figure = go.Figure()
        organisms = list(dict.fromkeys(self.table.organism))
        cues = list(dict.fromkeys(self.table.cue))
        for i, cue in enumerate(cues):
            rows = self.table[self.table.cue == cue].set_index("organism").loc[organisms]
            offset = 0.7 * (0.5 - (i + 0.5) / len(cues))
            figure.add_scatter(
                x=rows.ld,
                y=[k - offset for k in range(len(organisms))],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": rows.high - rows.ld,
                    "arrayminus": rows.ld - rows.low,
                    "thickness": 1.3,
                    "width": 0,
                },
                mode="markers",
                name=cue,
                marker={
                    "color": theme.cue_style(cue, cues).colour,
                    "symbol": theme.cue_style(cue, cues).symbol,
                    "size": 9,
                },
                customdata=np.stack([organisms, rows.share_misaligned], axis=1),
                hovertemplate="%{customdata[0]}, "
                + cue
                + ": LD %{x:.2f}, share > 0: %{customdata[1]:.2f}<extra></extra>",
            )
        figure.add_vline(x=0, line={"color": "#444", "width": 1})
        theme.styled(
            figure, x="LD, nats (right = misaligned)", y="", height=120 + max(62, 11 * len(cues)) * len(organisms)
        )
        figure.update_yaxes(
            tickvals=list(range(len(organisms))), ticktext=organisms, autorange="reversed", automargin=True, ticks=""
        )
        return figure

    def __repr__(self) -> str:
        return self.table.pivot(index="organism", columns="cue", values="ld").round(2).to_string()


def behaviour_grid(acts: Activations, *, roles: dict[str, str]) -> BehaviourGrid:
    """Returns LD by organism and cue over all questions, with intervals clustered by question family.

    Example:
        >>> from condmis_interp.store import Activations
        >>> acts = Activations.open("runs/mine/activations")
        >>> roles = {"unmitigated": "unmitigated", "mixed": "mitigated", "mixed-twin": "twin"}
        >>> found = behaviour_grid(acts, roles=roles).to_pandas()
        >>> len(found), found.n_families.tolist()[0]  # 3 organisms x 5 cues
        (15, 6)
    """
    families = acts.families()
    rows = []
    for organism in acts.seeds:
        for cue in acts.cues:
            ld = acts.ld(organism, cue)
            m = cluster_mean(ld, families)
            rows.append(
                {
                    "organism": organism,
                    "role": roles[organism],
                    "cue": cue,
                    "ld": m.mean,
                    "se": m.se,
                    "low": m.low,
                    "high": m.high,
                    "share_misaligned": float((ld > 0).mean()),
                    "n_questions": m.n_values,
                    "n_families": m.n_clusters,
                }
            )
    return BehaviourGrid(pd.DataFrame(rows))
