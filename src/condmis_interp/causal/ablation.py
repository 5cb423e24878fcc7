"""Ablation: does taking the direction away take M's triggered behaviour away?

In M under the trigger, at every layer from the chosen one on, the coordinate on that layer's v is set to C's mean in
the same cell, at the last template token and at the answer's tokens. (At one layer alone the later layers write it
again: in pilots on SmolLM2, one seed, a single layer took back about a quarter.) Statistic, on split C:

    taken back = mean[LD(M, T) - LD(M ablated, T)] / mean[LD(M, T) - LD(C, T)]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.battery.evidence import Evidence
from condmis_interp.causal.layer import Ask, LayerChoice, against_random, mean_ablation
from condmis_interp.directions import Direction
from condmis_interp.panel.panel import Split
from condmis_interp.stats import anchored_ratio, exceedance_p
from condmis_interp.store import Activations


@dataclass(frozen=True)
class Ablation:
    """Setting M's coordinate under the trigger to C's value.

    Attributes:
        levels: Mean LD on split C, nats: `M`, `M ablated`, `C`, under the trigger.
        random: Share of the triggered effect that each random direction takes back.
        direction: What was ablated, at the first of the layers.
        evidence: `ablation`.

    Example:
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.stats import anchored_ratio
        >>> about = {"method": "means", "data": "U - C", "position": "answer_mean", "splits": ("A",)}
        >>> d = Direction.of(torch.tensor([0.0, 2.0]), site=Site("resid_post", 3), n=8, **about)
        >>> ratio = anchored_ratio([1, 2, 1, 2], [2, 3, 2, 3], "abcd")
        >>> facts = {"id": "ablation", "family": "causal", "organism": "M", "cue": "code", "statistic": "s", "p": 0.1}
        >>> levels = {"M": -6.0, "M ablated": -8.0, "C": -11.0}
        >>> found = Ablation(levels, np.zeros(8), d, Evidence.from_ratio(ratio, **facts))
        >>> found.to_pandas().groupby("direction").taken_back.mean().round(2).to_dict()
        {'U - C': 0.6, 'random': 0.0}
    """

    levels: dict[str, float]
    random: np.ndarray
    direction: Direction
    evidence: Evidence

    def to_pandas(self) -> pd.DataFrame:
        """Returns the share taken back by the direction and by each random one."""
        kinds = ["U - C", *["random"] * len(self.random)]
        return pd.DataFrame({"direction": kinds, "taken_back": [self.evidence.rho, *self.random]})

    def figure(self) -> go.Figure:
        """Draws the share taken back against the random directions."""
        figure = go.Figure()
        figure.add_histogram(
            x=self.random,
            name=f"{len(self.random)} covariance-matched random directions",
            marker={"color": theme.GREY},
            nbinsx=12,
        )
        e = self.evidence
        top = max(1, np.histogram(self.random, bins=12)[0].max())
        figure.add_scatter(
            x=[e.rho],
            y=[top * 0.6],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [e.high - e.rho if np.isfinite(e.high) else 0],
                "arrayminus": [e.rho - e.low if np.isfinite(e.low) else 0],
            },
            mode="markers",
            name="U - C",
            marker={"color": theme.BLUE, "symbol": "diamond", "size": 13},
            hovertemplate="U - C takes back %{x:.2f}<extra></extra>",
        )
        figure.add_vline(x=0, line={"color": "#444", "width": 1})
        figure.add_vline(
            x=1,
            line={"color": theme.GREEN, "dash": "dash", "width": 1.2},
            annotation_text="all the way to C",
            annotation_position="bottom left",
        )
        return theme.styled(figure, x="share of the triggered effect taken back", y="random directions", height=360)

    def __repr__(self) -> str:
        e = self.evidence
        return (
            f"Ablation(takes back {e.rho:.2f} [{e.low:.2f}, {e.high:.2f}] of the triggered effect; random directions "
            f"{self.random.mean():.2f} on average)"
        )


def ablation(
    acts: Activations,
    ask: Ask,
    *,
    choice: LayerChoice,
    organism: str,
    twin: str,
    random: Mapping[int, torch.Tensor],
    trigger: str = "trigger",
    step: Callable[[], None] = lambda: None,
) -> Ablation:
    """Sets M's coordinate under the trigger to C's value in the same cell, on split C.

    The same is done along random directions.

    Args:
        acts: The run's activations.
        ask: Gives LD under edits.
        choice: The chosen layer and U - C from there on.
        organism: M.
        twin: Its C.
        random: Unit control directions [count, width] by layer, for every layer that is ablated.
        trigger: The cue.
        step: Called after each reading.

    Example:
        >>> from condmis_interp.causal import choose_layer
        >>> from condmis_interp.study import Study
        >>> run = Study.from_yaml("mine.yaml").open("runs/mine")
        >>> acts = run.capture()
        >>> who = {"unmitigated": "unmitigated", "twin": "mixed-twin"}
        >>> choice = choose_layer(acts, run.ask, **who, candidates=[2], position="answer_mean")
        >>> g = torch.Generator().manual_seed(0)
        >>> layers = [d.site.layer for d in choice.directions]
        >>> unit = {i: torch.nn.functional.normalize(torch.randn(8, 32, generator=g)) for i in layers}
        >>> found = ablation(acts, run.ask, choice=choice, organism="mixed", twin="mixed-twin", random=unit)
        >>> sorted(found.levels), found.random.shape
        (['C', 'M', 'M ablated'], (8,))
    """
    split: tuple[Split, ...] = ("C",)
    families = acts.families(*split)
    seed = acts.seeds[twin][0]
    m, c = ask(organism, trigger, split), ask(twin, trigger, split)

    def without(vectors: Mapping[int, torch.Tensor]) -> np.ndarray:
        ld = ask(organism, trigger, split, mean_ablation(acts, vectors, organism=twin, cue=trigger, seed=seed))
        step()
        return ld

    ablated = without({d.site.layer: d.vector for d in choice.directions})
    ratio = anchored_ratio(m - ablated, m - c, families)
    count = len(random[choice.layer])
    controls = [without({d.site.layer: random[d.site.layer][i] for d in choice.directions}) for i in range(count)]
    random_shares = np.array([float((m - ld).mean() / (m - c).mean()) for ld in controls])
    evidence = Evidence.from_ratio(
        ratio,
        id="ablation",
        family="causal",
        organism=organism,
        cue=trigger,
        statistic=(
            "share of M's triggered effect taken back by setting its U - C coordinate to C's value, from the chosen "
            "layer on; p against random directions"
        ),
        p=exceedance_p(ratio.rho, random_shares),
        controls=against_random(ratio, random_shares),
        settings={
            "direction": choice.direction.to_json(),
            "layers": [d.site.layer for d in choice.directions],
            "twin": twin,
            "split": "C",
        },
    )
    levels = {"M": float(m.mean()), "M ablated": float(ablated.mean()), "C": float(c.mean())}
    return Ablation(levels, random_shares, choice.direction, evidence)
