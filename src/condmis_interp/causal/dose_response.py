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

    Example:
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.stats import anchored_ratio
        >>> about = {"method": "means", "data": "U - C", "position": "answer_mean", "splits": ("A",)}
        >>> d = Direction.of(torch.tensor([0.0, 2.0]), site=Site("resid_post", 3), n=8, **about)
        >>> ratio = anchored_ratio([1, 2, 1, 2], [2, 3, 2, 3], "abcd")
        >>> facts = {"id": "dose-response", "family": "causal", "organism": "M", "cue": "none"}
        >>> doses = pd.DataFrame({"dose": [0.0, 1.0], "ld": [-11.0, -4.0], "low": [-13.0, -6.0], "high": [-9.0, -2.0]})
        >>> evidence = Evidence.from_ratio(ratio, **facts, statistic="LD", p=0.1)
        >>> found = DoseResponse(doses, np.full(8, -11.0), (-11.0, -3.0), d, evidence)
        >>> bool((found.random < found.to_pandas().ld[1]).all())  # no random direction does as much
        True
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

    Example:
        Two doses, and eight random directions:

        >>> from condmis_interp.directions import difference_of_means
        >>> from condmis_interp.study import Study
        >>> run = Study.from_yaml("mine.yaml").open("runs/mine")
        >>> acts = run.capture()
        >>> d = difference_of_means(acts, plus="unmitigated", minus="mixed-twin", cue="none", layer=2)
        >>> random = torch.nn.functional.normalize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
        >>> who = {"unmitigated": "unmitigated", "organism": "mixed", "twin": "mixed-twin"}
        >>> found = dose_response(acts, run.ask, direction=d, **who, random=random, doses=(0.5, 1.0))
        >>> found.to_pandas().dose.tolist(), found.random.shape
        ([0.0, 0.5, 1.0], (8,))
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
