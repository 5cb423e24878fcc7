"""What the audit's causal tests, `ablation` and `dose-response`, have in common; and the layer's choice.

The layer is chosen on split A with U and C only, by a causal score: how far steering C along v = U - C moves LD towards
U, and how far setting U's coordinate on v to C's value moves it back (both as a share of the U - C gap). M is not
looked at.

Both tests are compared with covariance-matched random directions of equal norm that go through the same code (p =
exceedance). Zero-ablation is not used: zero is not neutral.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from condmis_interp.directions import Direction, choose_site, difference_of_means
from condmis_interp.directions.choice import Ask, gap, steered_share
from condmis_interp.readers import Ablate, Scope, Site
from condmis_interp.stats import AnchoredRatio
from condmis_interp.store import Activations

_READ_AT: dict[Scope, str] = {"last_template": "last_template", "answer": "answer_mean"}
"""Where the target of an ablation is read, by where it is set."""


@dataclass(frozen=True)
class LayerChoice:
    """The layer and how it was chosen.

    Attributes:
        layer: The chosen layer.
        directions: U - C at each layer from the chosen one on.
        table: One row for each candidate: layer, steering, ablation (shares of the U - C gap on split A), score
            (their mean).

    Example:
        >>> raw = torch.tensor([3.0, 4.0])
        >>> about = {"method": "U - C", "data": "u - uc", "position": "last_template", "splits": ("A",), "n": 8}
        >>> found = tuple(Direction.of(raw, site=Site("resid_post", k), **about) for k in (1, 2))
        >>> LayerChoice(1, found, pd.DataFrame()).direction.site
        Site(kind='resid_post', layer=1)
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

    Example:
        >>> from condmis_interp.study import Study
        >>> run = Study.from_yaml("mine.yaml").open("runs/mine")
        >>> who = {"unmitigated": "unmitigated", "twin": "mixed-twin"}
        >>> choice = choose_layer(run.capture(), run.ask, **who, candidates=[1, 2], position="answer_mean")
        >>> choice.layer in (1, 2)
        True
    """
    seed = acts.seeds[twin][0]
    u, c = gap(ask, unmitigated=unmitigated, twin=twin, none=none, splits=("A",))
    found = {
        layer: difference_of_means(acts, plus=unmitigated, minus=twin, cue=none, layer=layer, position=position)
        for layer in acts.layers
        if layer >= min(candidates)
    }

    def ablated(direction: Direction) -> float:
        onward = {k: d.vector for k, d in found.items() if k >= direction.site.layer}
        edits = mean_ablation(acts, onward, organism=twin, cue=none, seed=seed)
        return float((u - ask(unmitigated, none, ("A",), edits).mean()) / (u - c))

    steered = steered_share(ask, (u, c), twin=twin, none=none, splits=("A",))
    scores = {"steering": steered, "ablation": ablated}
    choice = choose_site([found[layer] for layer in candidates], causal=scores, step=step)
    told = choice.table.rename(columns={"causal": "score"})
    table = told.reindex(columns=["layer", "steering", "ablation", "score"])
    best = choice.direction.site.layer
    return LayerChoice(best, tuple(d for k, d in found.items() if k >= best), table)


def against_random(ratio: AnchoredRatio, controls: np.ndarray) -> dict[str, Any]:
    """Returns how a ratio stands among the same of random directions, as an evidence's controls."""
    return {
        "random_n": float(len(controls)),
        "random_mean": float(controls.mean()),
        "random_max": float(controls.max()),
        "random_beaten": float((controls < ratio.rho).sum()),
    }
