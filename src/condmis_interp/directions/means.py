"""Directions from means.

Difference of means:            d = mean_x h_P(x) - mean_x h_N(x)
Difference-in-differences:      d = [mu_M(T) - mu_M(0)] - [mu_C(T) - mu_C(0)]

with mu_X(c) the mean of organism X's activations over questions under cue c. The second cancels what the cue does to
any model (semantics, length, format) and what fine-tuning in this format does without a cue: it is the candidate for
the conditional persona. Means are accumulated in fp64 over activations stored in bf16 or fp32; seeds are averaged
first.
"""

import torch

from condmis_interp.directions.direction import Direction
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Site
from condmis_interp.store import Activations


def _mean(
    acts: Activations, organism: str, cue: str, splits: tuple[Split, ...], layer: int, position: str
) -> torch.Tensor:
    return acts.at(organism, cue, *splits, layer=layer, position=position).double().mean(0)


def difference_of_means(
    acts: Activations,
    *,
    plus: str,
    minus: str,
    cue: str,
    layer: int,
    position: str = "answer_mean",
    splits: tuple[Split, ...] = ("A",),
) -> Direction:
    """Returns the difference of two organisms' mean activations under one cue.

    Args:
        acts: The run's activations.
        plus: Organism at the head of the arrow (U).
        minus: Organism at its tail (C).
        cue: Cue both are read under.
        layer: 0-based layer.
        position: `last_template` or `answer_mean`.
        splits: Splits it is fitted on.
    """
    raw = _mean(acts, plus, cue, splits, layer, position) - _mean(acts, minus, cue, splits, layer, position)
    return Direction.of(
        raw.float(),
        site=Site(acts.kind, layer),
        method="difference of means",
        data=f"{plus} - {minus} under {cue}",
        position=position,
        splits=splits,
        n=len(acts.rows(*splits)),
    )


def difference_in_differences(
    acts: Activations,
    *,
    organism: str,
    twin: str,
    trigger: str = "trigger",
    none: str = "none",
    layer: int,
    position: str = "answer_mean",
    splits: tuple[Split, ...] = ("A",),
) -> Direction:
    """Returns the difference-in-differences of an organism against its twin over two cues.

    Args:
        acts: The run's activations.
        organism: M.
        twin: Its C.
        trigger: The cue of interest.
        none: The cue it is compared with.
        layer: 0-based layer.
        position: `last_template` or `answer_mean`.
        splits: Splits it is fitted on.
    """
    m = _mean(acts, organism, trigger, splits, layer, position) - _mean(acts, organism, none, splits, layer, position)
    c = _mean(acts, twin, trigger, splits, layer, position) - _mean(acts, twin, none, splits, layer, position)
    return Direction.of(
        (m - c).float(),
        site=Site(acts.kind, layer),
        method="difference-in-differences",
        data=f"({organism} - {twin}) x ({trigger} - {none})",
        position=position,
        splits=splits,
        n=len(acts.rows(*splits)),
    )
