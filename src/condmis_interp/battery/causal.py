"""Causal tests: does the direction carry the behaviour, and does taking it away take the behaviour away?

Selection. The layer is chosen on split A with U and C only, by a causal score: how far steering C along v = U - C
moves LD towards U, and how far setting U's coordinate on v to C's value moves it back (both as a share of the U - C
gap). M is not looked at.

C3, dose-response. h <- h + dose * |U - C| * v at every position of C without a cue. Statistic, on split C:

    rho = mean[LD(C + v) - LD(C)] / mean[LD(U) - LD(C)]    at dose 1

C2, mean-ablation. In M under the trigger, at every layer from the chosen one on, the coordinate on that layer's v is
set to C's mean in the same cell, at the last template token and at the answer's tokens. (At one layer alone the later
layers write it again: in pilots on SmolLM2, one seed, a single layer took back about a quarter.)
Statistic, on split C:

    taken back = mean[LD(M, T) - LD(M ablated, T)] / mean[LD(M, T) - LD(C, T)]

Both are compared with covariance-matched random directions of equal norm that go through the same code (p =
exceedance). Steering that works in C is evidence that v carries the behaviour, not that M hides it: it works in any
model. Zero-ablation is not used: zero is not neutral.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.battery.evidence import Evidence
from condmis_interp.directions import Direction, difference_of_means
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Ablate, Edit, Scope, Site, Steer
from condmis_interp.stats import AnchoredRatio, anchored_ratio, cluster_mean, exceedance_p
from condmis_interp.store import Activations

_READ_AT: dict[Scope, str] = {"last_template": "last_template", "answer": "answer_mean"}
"""Where the target of an ablation is read, by where it is set."""


class Ask(Protocol):
    """Asks one organism (its first seed) the panel's questions of some splits under a cue, under edits."""

    def __call__(self, organism: str, cue: str, splits: tuple[Split, ...], edits: Sequence[Edit] = ()) -> np.ndarray:
        """Returns LD [n] in nats."""
        ...


@dataclass(frozen=True)
class LayerChoice:
    """The layer and how it was chosen.

    Attributes:
        layer: The chosen layer.
        directions: U - C at each layer from the chosen one on.
        table: One row for each candidate: layer, steering, ablation (shares of the U - C gap on split A), score
            (their mean).
    """

    layer: int
    directions: tuple[Direction, ...]
    table: pd.DataFrame

    @property
    def direction(self) -> Direction:
        """U - C at the chosen layer."""
        return self.directions[0]

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table of candidates."""
        return self.table

    def __repr__(self) -> str:
        return f"LayerChoice(layer {self.layer} of {list(self.table.layer)}, score {self.table.score.max():.2f})"


def mean_ablation(
    acts: Activations, vectors: Mapping[int, torch.Tensor], *, organism: str, cue: str, seed: int
) -> list[Ablate]:
    """Returns the edits that set the coordinate on each layer's vector to an organism's mean in a cell (split A).

    Args:
        acts: The run's activations.
        vectors: Unit vector [width] by layer.
        organism: Whose mean (the twin).
        cue: In which cell.
        seed: Which checkpoint's.

    Returns:
        One edit a layer, at the last template token and at the answer's tokens, each with the mean read there.
    """
    edits = []
    for layer, vector in vectors.items():
        target: dict[Scope, torch.Tensor] = {}
        for scope, position in _READ_AT.items():
            mean = acts.at(organism, cue, "A", layer=layer, position=position, seed=seed).double().mean(0)
            target[scope] = (mean @ vector.double()).float().reshape(1)
        edits.append(Ablate(Site(acts.kind, layer), vector[None], target))
    return edits


def choose_layer(
    acts: Activations,
    ask: Ask,
    *,
    unmitigated: str,
    twin: str,
    candidates: Sequence[int],
    position: str,
    step: Callable[[], None] = lambda: None,
    none: str = "none",
) -> LayerChoice:
    """Chooses the layer on split A, with U and C only, by the causal score of the module docstring.

    Args:
        acts: The run's activations.
        ask: Gives LD under edits.
        unmitigated: U.
        twin: C.
        candidates: Layers to try.
        position: Position the direction is read at.
        step: Called twice for each candidate.
        none: The cue without anything.
    """
    seed = acts.seeds[twin][0]
    u, c = ask(unmitigated, none, ("A",)).mean(), ask(twin, none, ("A",)).mean()
    found = {
        layer: difference_of_means(acts, plus=unmitigated, minus=twin, cue=none, layer=layer, position=position)
        for layer in acts.layers
        if layer >= min(candidates)
    }
    steering, ablation_ = [], []  # one organism after the other: a reader holds one model
    for layer in candidates:
        v = found[layer]
        steered = ask(twin, none, ("A",), [Steer(v.site, v.scale * v.vector)]).mean()
        steering.append((steered - c) / (u - c))
        step()
    for layer in candidates:
        onward = {k: d.vector for k, d in found.items() if k >= layer}
        edits = mean_ablation(acts, onward, organism=twin, cue=none, seed=seed)
        ablation_.append((u - ask(unmitigated, none, ("A",), edits).mean()) / (u - c))
        step()
    table = pd.DataFrame({"layer": list(candidates), "steering": steering, "ablation": ablation_})
    table["score"] = table[["steering", "ablation"]].clip(upper=1).mean(axis=1)
    best = int(table.layer[int(table.score.to_numpy().argmax())])
    return LayerChoice(best, tuple(d for k, d in found.items() if k >= best), table)


@dataclass(frozen=True)
class DoseResponse:
    """Steering C along U - C.

    Attributes:
        table: One row for each dose: dose, ld, low, high (LD of C on split C, nats).
        random: LD of C at dose 1 along each random direction (means, nats).
        anchors: Mean LD of C and of U without a cue on the same questions, nats.
        direction: What was added.
        evidence: C3.
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
            ("U", self.anchors[1], theme.ROLE_COLOURS["U"]),
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
    """C3: steers C along the direction at several doses, and along random directions at dose 1, on split C.

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
        id="C3",
        family="causal",
        organism=organism,
        cue=none,
        statistic="share of the U - C gap that steering C by U - C covers at dose 1; p against random directions",
        p=exceedance_p(ratio.rho, control_rho),
        controls=_summary(ratio, control_rho),
        settings={"direction": direction.to_dict(), "twin": twin, "unmitigated": unmitigated, "split": "C"},
    )
    return DoseResponse(
        pd.DataFrame(rows), np.array(controls), (float(plain.mean()), float(u.mean())), direction, evidence
    )


@dataclass(frozen=True)
class Ablation:
    """Setting M's coordinate under the trigger to C's value.

    Attributes:
        levels: Mean LD on split C, nats: `M`, `M ablated`, `C`, under the trigger.
        random: Share of the triggered effect that each random direction takes back.
        direction: What was ablated, at the first of the layers.
        evidence: C2.
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
    """C2: sets M's coordinate under the trigger to C's value in the same cell, on split C.

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
        id="C2",
        family="causal",
        organism=organism,
        cue=trigger,
        statistic=(
            "share of M's triggered effect taken back by setting its U - C coordinate to C's value, from the chosen "
            "layer on; p against random directions"
        ),
        p=exceedance_p(ratio.rho, random_shares),
        controls=_summary(ratio, random_shares),
        settings={
            "direction": choice.direction.to_dict(),
            "layers": [d.site.layer for d in choice.directions],
            "twin": twin,
            "split": "C",
        },
    )
    levels = {"M": float(m.mean()), "M ablated": float(ablated.mean()), "C": float(c.mean())}
    return Ablation(levels, random_shares, choice.direction, evidence)


def _summary(ratio: AnchoredRatio, controls: np.ndarray) -> dict[str, Any]:
    return {
        "random_n": float(len(controls)),
        "random_mean": float(controls.mean()),
        "random_max": float(controls.max()),
        "random_beaten": float((controls < ratio.rho).sum()),
    }
