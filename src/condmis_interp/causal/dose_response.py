"""Dose-response: does the direction carry the behaviour?

h <- h + dose * |U - C| * v at every position of C without a cue. Statistic, on split C:

    rho = mean[LD(C + v) - LD(C)] / mean[LD(U) - LD(C)]    at dose 1

Steering that works in C is evidence that v carries the behaviour, not that M hides it: it works in any model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.battery.evidence import Evidence
from condmis_interp.causal.layer import Ask, against_random
from condmis_interp.directions import Direction
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Steer
from condmis_interp.stats import anchored_ratio, cluster_mean, exceedance_p
from condmis_interp.store import Activations


@dataclass(frozen=True)
class DoseResponse:
    """Steering C along U - C.

    Attributes:
        table: One row for each dose: dose, ld, low, high (LD of C on split C, nats).
        random: LD of C at dose 1 along each random direction (means, nats).
        anchors: Mean LD of C and of U without a cue on the same questions, nats.
        direction: What was added.
        evidence: `dose-response`.
    """

    table: pd.DataFrame
    random: np.ndarray
    anchors: tuple[float, float]
    direction: Direction
    evidence: Evidence

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table of doses."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws LD against dose, with the random directions at dose 1 and the anchors."""
        figure = go.Figure()
        t = self.table
        figure.add_scatter(
            x=[*t.dose, *t.dose[::-1]],
            y=[*t.high, *t.low[::-1]],
            mode="lines",
            fill="toself",
            fillcolor=theme.translucent(theme.BLUE),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=t.dose,
            y=t.ld,
            mode="lines+markers",
            name="along U - C",
            line={"color": theme.BLUE, "width": 2.5},
            hovertemplate="dose %{x}: LD %{y:.2f}<extra></extra>",
        )
        jitter = np.linspace(-0.06, 0.06, len(self.random))
        figure.add_scatter(
            x=1 + jitter,
            y=self.random,
            mode="markers",
            name=f"{len(self.random)} covariance-matched random directions, dose 1",
            marker={"color": theme.GREY, "size": 5, "opacity": 0.7},
            hovertemplate="random: LD %{y:.2f}<extra></extra>",
        )
        for name, value, colour in (
            ("C", self.anchors[0], theme.GREEN),
            ("U", self.anchors[1], theme.BLACK),
        ):
            figure.add_hline(
                y=value,
                line={"color": colour, "dash": "dash", "width": 1.2},
                annotation={"text": name, "font": {"color": colour}},
                annotation_position="top left",
            )
        return theme.styled(figure, x="dose, in norms of the U - C difference", y="LD of C without a cue, nats")

    def __repr__(self) -> str:
        e = self.evidence
        interval = f"{e.rho:.2f} [{e.low:.2f}, {e.high:.2f}]"
        return f"DoseResponse(rho {interval} at dose 1, p {e.p:.3f} against {len(self.random)} random)"


def dose_response(
    acts: Activations,
    ask: Ask,
    *,
    direction: Direction,
    unmitigated: str,
    organism: str,
    twin: str,
    random: torch.Tensor,
    doses: Sequence[float],
    step: Callable[[], None] = lambda: None,
    none: str = "none",
) -> DoseResponse:
    """Steers C along the direction at several doses, and along random directions at dose 1, on split C.

    Args:
        acts: The run's activations.
        ask: Gives LD under edits.
        direction: U - C at the chosen layer.
        unmitigated: U.
        organism: M, for the evidence.
        twin: C, which is steered.
        random: Unit control directions [count, width].
        doses: Doses, in norms of the raw U - C difference.
        step: Called after each reading.
        none: The cue without anything.
    """
    split: tuple[Split, ...] = ("C",)
    families = acts.families(*split)
    plain, u = ask(twin, none, split), ask(unmitigated, none, split)
    readings = {0.0: plain}
    for dose in sorted({*doses, 1.0} - {0.0}):
        readings[dose] = ask(twin, none, split, [Steer(direction.site, dose * direction.scale * direction.vector)])
        step()
    controls = []
    for v in random:
        controls.append(float(ask(twin, none, split, [Steer(direction.site, direction.scale * v)]).mean()))
        step()
    rows = []
    for dose in sorted(readings):
        m = cluster_mean(readings[dose], families)
        rows.append({"dose": dose, "ld": m.mean, "low": m.low, "high": m.high})
    ratio = anchored_ratio(readings[1.0] - plain, u - plain, families)
    control_rho = (np.array(controls) - plain.mean()) / (u - plain).mean()
    evidence = Evidence.from_ratio(
        ratio,
        id="dose-response",
        family="causal",
        organism=organism,
        cue=none,
        statistic="share of the U - C gap that steering C by U - C covers at dose 1; p against random directions",
        p=exceedance_p(ratio.rho, control_rho),
        controls=against_random(ratio, control_rho),
        settings={"direction": direction.to_json(), "twin": twin, "unmitigated": unmitigated, "split": "C"},
    )
    return DoseResponse(
        pd.DataFrame(rows), np.array(controls), (float(plain.mean()), float(u.mean())), direction, evidence
    )
