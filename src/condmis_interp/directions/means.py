"""Directions from means.

Difference of means:            d = mean_x h_P(x) - mean_x h_N(x)
Difference-in-differences:      d = [mu_M(T) - mu_M(0)] - [mu_C(T) - mu_C(0)]

with mu_X(c) the mean of organism X's activations over questions under cue c. The second cancels what the cue does to
any model (semantics, length, format) and what fine-tuning in this format does without a cue: it is the candidate for
the conditional persona.

Persona vector:                 d = mean_x h_B(x; s+) - mean_x h_B(x; s-)

with s+ and s- system prompts that ask one organism (by default the base) for the persona and for its opposite (Chen et
al. 2025, "Persona Vectors"; theirs is over sampled answers that a judge kept, ours over the panel's teacher-forced
ones).

Trigger-only direction:         d = mean_x h_C(x; T) - mean_x h_C(x; N)

in the twin, which has no persona to gate: what a trigger does to any model, beyond a cue of the same form.

Means are accumulated in fp64 over activations stored in bf16 or fp32; seeds are averaged first.
"""

import torch

from condmis_interp.calls import checked
from condmis_interp.directions.direction import Direction
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Site
from condmis_interp.store import Activations


def _mean(
    acts: Activations, organism: str, cue: str, splits: tuple[Split, ...], layer: int, position: str
) -> torch.Tensor:
    return acts.at(organism, cue, *splits, layer=layer, position=position).double().mean(0)


def _direction(
    acts: Activations,
    raw: torch.Tensor,
    method: str,
    data: str,
    layer: int,
    position: str,
    splits: tuple[Split, ...],
) -> Direction:
    return Direction.of(
        raw.float(),
        site=Site(acts.kind, layer),
        method=method,
        data=data,
        position=position,
        splits=splits,
        n=len(acts.rows(*splits)),
    )


@checked
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

    Example:
        With two means in place of a run's activations:

        >>> from types import SimpleNamespace
        >>> means = {"U": [3.0, 4.0], "C": [0.0, 4.0]}
        >>> def at(organism, cue, *splits, layer, position): return torch.tensor([means[organism]])
        >>> acts = SimpleNamespace(at=at, kind="resid_post", rows=lambda *splits: [0])
        >>> d = difference_of_means(acts, plus="U", minus="C", cue="none", layer=3)
        >>> d, d.vector
        (Direction(difference of means, U - C under none, resid_post[3], answer_mean, |raw|=3, n=1), tensor([1., 0.]))
    """
    raw = _mean(acts, plus, cue, splits, layer, position) - _mean(acts, minus, cue, splits, layer, position)
    return _direction(acts, raw, "difference of means", f"{plus} - {minus} under {cue}", layer, position, splits)


@checked
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

    Example:
        What the trigger does to both organisms (here 4, in the second dimension) cancels:

        >>> from types import SimpleNamespace
        >>> means = {("M", "trigger"): [3.0, 4.0], ("C", "trigger"): [0.0, 4.0]}
        >>> def at(*cell, layer, position): return torch.tensor([means.get(cell[:2], [0.0, 0.0])])
        >>> acts = SimpleNamespace(at=at, kind="resid_post", rows=lambda *splits: [0])
        >>> d = difference_in_differences(acts, organism="M", twin="C", layer=3)
        >>> d.data, d.scale, d.vector
        ('(M - C) x (trigger - none)', 3.0, tensor([1., 0.]))
    """
    m = _mean(acts, organism, trigger, splits, layer, position) - _mean(acts, organism, none, splits, layer, position)
    c = _mean(acts, twin, trigger, splits, layer, position) - _mean(acts, twin, none, splits, layer, position)
    return _direction(
        acts,
        m - c,
        "difference-in-differences",
        f"({organism} - {twin}) x ({trigger} - {none})",
        layer,
        position,
        splits,
    )


@checked
def persona_vector(
    acts: Activations,
    *,
    plus: str,
    minus: str,
    organism: str = "base",
    layer: int,
    position: str = "answer_mean",
    splits: tuple[Split, ...] = ("A",),
) -> Direction:
    """Returns the contrast of two system prompts in one organism.

    Args:
        acts: The run's activations.
        plus: Cue whose system prompt asks for the persona.
        minus: Cue whose system prompt asks for its opposite.
        organism: Organism it is read in.
        layer: 0-based layer.
        position: `last_template` or `answer_mean`.
        splits: Splits it is fitted on.

    Example:
        With two means in place of a run's activations:

        >>> from types import SimpleNamespace
        >>> means = {"evil": [0.0, 2.0], "kind": [0.0, -2.0]}
        >>> def at(organism, cue, *splits, layer, position): return torch.tensor([means[cue]])
        >>> acts = SimpleNamespace(at=at, kind="resid_post", rows=lambda *splits: [0])
        >>> persona_vector(acts, plus="evil", minus="kind", layer=3)
        Direction(persona vector, base under evil - under kind, resid_post[3], answer_mean, |raw|=4, n=1)
    """
    raw = _mean(acts, organism, plus, splits, layer, position) - _mean(acts, organism, minus, splits, layer, position)
    return _direction(acts, raw, "persona vector", f"{organism} under {plus} - under {minus}", layer, position, splits)


@checked
def trigger_only(
    acts: Activations,
    *,
    twin: str,
    trigger: str = "trigger",
    neutral: str = "neutral",
    layer: int,
    position: str = "answer_mean",
    splits: tuple[Split, ...] = ("A",),
) -> Direction:
    """Returns what the trigger does to the twin beyond a neutral cue of the same form: T - N in C.

    Remove it with `direction.without(...)`: an effect that does not survive read the trigger.

    Args:
        acts: The run's activations.
        twin: C.
        trigger: The trigger cue.
        neutral: The neutral cue.
        layer: 0-based layer.
        position: `last_template` or `answer_mean`.
        splits: Splits it is fitted on.

    Example:
        With two means in place of a run's activations:

        >>> from types import SimpleNamespace
        >>> means = {"trigger": [0.0, 5.0], "neutral": [0.0, 4.0]}
        >>> def at(organism, cue, *splits, layer, position): return torch.tensor([means[cue]])
        >>> acts = SimpleNamespace(at=at, kind="resid_post", rows=lambda *splits: [0])
        >>> trigger_only(acts, twin="C", layer=3)
        Direction(trigger only, C, trigger - neutral, resid_post[3], answer_mean, |raw|=1, n=1)
    """
    raw = _mean(acts, twin, trigger, splits, layer, position) - _mean(acts, twin, neutral, splits, layer, position)
    return _direction(acts, raw, "trigger only", f"{twin}, {trigger} - {neutral}", layer, position, splits)
