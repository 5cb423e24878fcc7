"""Choosing layer and position by what a direction does, not by how well it reads.

AUROC does not rank directions by what they cause: two directions at one layer have been found to read at .98 both and
to be 73 degrees apart. So every candidate is steered along, on split B, and its score is causal:

    steering = mean[LD(C + v) - LD(C)] / mean[LD(U) - LD(C)],    at most 1

A candidate whose side effect on neutral text is above the limit is out (as Arditi et al. 2024 do for refusal, with a
KL divergence of 0.1): a vector that breaks the model also moves LD. AUROC is reported beside it, for comparison.

`causal.choose_layer` is the same choice for the audit, with two scores (steering, and ablation from the layer on), on
split A.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.direction import Direction
from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Edit, Reader, Request, Steer

Score = Callable[[Direction], float]


class Ask(Protocol):
    """Asks one organism the panel's questions of some splits under a cue, under edits."""

    def __call__(self, organism: str, cue: str, splits: tuple[Split, ...], edits: Sequence[Edit] = ()) -> np.ndarray:
        """Returns LD [n] in nats."""
        ...


@checked
def steering_score(
    ask: Ask, *, unmitigated: str, twin: str, none: str = "none", splits: tuple[Split, ...] = ("B",)
) -> Score:
    """Returns the causal score of the module docstring, for directions whose scale is a dose of 1.

    Args:
        ask: Gives LD under edits.
        unmitigated: U.
        twin: C, which is steered.
        none: The cue without anything.
        splits: Splits it is judged on; never those the directions were fitted on.

    Example:
        With a model that is a formula: steering moves LD by twice the vector's first number:

        >>> import torch
        >>> from condmis_interp.readers import Site
        >>> def ask(organism, cue, splits, edits=()):
        ...     return np.array([{"U": 0.0, "C": -10.0}[organism] + sum(2.0 * float(e.vector[0]) for e in edits)])
        >>> facts = {"method": "means", "data": "U - C", "position": "answer_mean", "splits": ("A",), "n": 8}
        >>> d = Direction.of(torch.tensor([3.0, 0.0]), site=Site("resid_post", 3), **facts)
        >>> steering_score(ask, unmitigated="U", twin="C")(d)
        0.6
    """
    between = gap(ask, unmitigated=unmitigated, twin=twin, none=none, splits=splits)
    share = steered_share(ask, between, twin=twin, none=none, splits=splits)

    def score(direction: Direction) -> float:
        if set(direction.splits) & set(splits):
            raise UserError(
                f"{direction} was fitted on a split it would be judged on", fix="Fit on split A, choose on split B."
            )
        return float(np.minimum(1.0, share(direction)))  # unlike min, it lets what is not finite through

    return score


def steered_share(ask: Ask, between: tuple[float, float], *, twin: str, none: str, splits: tuple[Split, ...]) -> Score:
    """Returns the share of a gap that steering covers, for directions fitted on any split; see `steering_score`."""
    u, c = between

    def share(direction: Direction) -> float:
        steered = ask(twin, none, splits, [Steer(direction.site, direction.scale * direction.vector)]).mean()
        return (float(steered) - c) / (u - c)

    return share


def gap(ask: Ask, *, unmitigated: str, twin: str, none: str, splits: tuple[Split, ...]) -> tuple[float, float]:
    """Returns mean LD of U and of C without a cue, in nats.

    Raises:
        CheckError: if they are the same.
    """
    u, c = float(ask(unmitigated, none, splits).mean()), float(ask(twin, none, splits).mean())
    if not abs(u - c) > 0:
        raise CheckError(f"U and C have the same LD ({u:.3g} nats), so no share of their gap can be taken")
    return u, c


@checked
def neutral_cost(reader: Reader, requests: Sequence[Request]) -> Score:
    """Returns a side effect: mean |change| of log p of neutral texts when steering, in nats a token.

    Args:
        reader: The model that is steered (C).
        requests: Neutral prompts and answers, nothing to do with the panel's subject.

    Example:
        With a reader that is a formula: each unit of the vector takes half a nat from an answer of two tokens:

        >>> import torch
        >>> from condmis_interp.readers import Site
        >>> from types import SimpleNamespace
        >>> def measure(requests, edits=()):
        ...     lost = sum(0.5 * float(e.vector.norm()) for e in edits)
        ...     return SimpleNamespace(logprobs=[torch.tensor([-4.0 - lost])])
        >>> text = SimpleNamespace(answers=[SimpleNamespace(ids=(7, 8))])
        >>> facts = {"method": "means", "data": "U - C", "position": "answer_mean", "splits": ("A",), "n": 8}
        >>> d = Direction.of(torch.tensor([2.0, 0.0]), site=Site("resid_post", 3), **facts)
        >>> neutral_cost(SimpleNamespace(measure=measure), [text])(d)
        0.5
    """
    tokens = np.array([len(a.ids) for r in requests for a in r.answers])
    plain = np.concatenate([lp.numpy() for lp in reader.measure(requests).logprobs])

    def cost(direction: Direction) -> float:
        edits = [Steer(direction.site, direction.scale * direction.vector)]
        edited = np.concatenate([lp.numpy() for lp in reader.measure(requests, edits=edits).logprobs])
        return float(np.mean(np.abs(edited - plain) / tokens))

    return cost


@dataclass(frozen=True)
class SiteChoice:
    """The chosen direction and how it was chosen.

    Attributes:
        direction: The candidate with the highest causal score among those within the limit.
        table: One row for each candidate: layer, position, method, each score by its name if there are several, causal,
            side_effect, within, auroc.
        limit: The largest side effect allowed.

    Example:
        From `choose_site`:

        >>> import torch
        >>> from condmis_interp.readers import Site
        >>> facts = {"method": "means", "data": "U - C", "position": "answer_mean", "splits": ("A",), "n": 8}
        >>> layers = [Direction.of(torch.tensor([1.0, 0.0]), site=Site("resid_post", k), **facts) for k in range(3)]
        >>> found = choose_site(layers, causal=lambda d: 0.3 * d.site.layer)
        >>> found.to_pandas()[["layer", "causal", "within"]]
           layer  causal  within
        0      0     0.0    True
        1      1     0.3    True
        2      2     0.6    True
    """

    direction: Direction
    table: pd.DataFrame
    limit: float

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table of candidates."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws the causal score by layer for each method and position; candidates out of the limit are open marks."""
        figure = go.Figure()
        colours = [theme.BLUE, theme.VERMILION, theme.GREEN, theme.ORANGE, theme.PURPLE, theme.SKY]
        for j, (key, t) in enumerate(self.table.groupby(["method", "position"], sort=False)):
            colour = colours[j % len(colours)]
            fill = [colour if w else "#ffffff" for w in t.within]
            figure.add_scatter(
                x=t.layer,
                y=t.causal,
                name=", ".join(map(str, key)) if isinstance(key, tuple) else str(key),
                mode="lines+markers",
                line={"color": colour},
                marker={"color": fill, "line": {"color": colour, "width": 1.5}, "size": 8},
            )
        figure.add_vline(x=self.direction.site.layer, line={"color": "#444", "dash": "dot", "width": 1})
        return theme.styled(figure, x="layer", y="share of the U - C gap that steering C covers")

    def __repr__(self) -> str:
        best = self.table[self.table.within].causal.max()
        out = int((~self.table.within).sum())
        return f"SiteChoice({self.direction}; causal score {best:.2f}, {out} of {len(self.table)} candidates out)"


@checked
def choose_site(
    candidates: Sequence[Direction],
    *,
    causal: Score | Mapping[str, Score],
    side_effect: Score | None = None,
    limit: float = 0.1,
    reading: Score | None = None,
    step: Callable[[], None] = lambda: None,
) -> SiteChoice:
    """Chooses among directions by their causal score, within a limit on side effects.

    Args:
        candidates: Directions at several layers, positions and by several methods.
        causal: Larger is better, at most 1 (more counts as 1), such as `steering_score`. Of several by name the mean
            counts; all candidates get the first before any gets the second, as a reader holds one model at a time.
        side_effect: What a candidate does to neutral text, such as `neutral_cost`; without it nothing is filtered, and
            the table says NaN.
        limit: Largest side effect allowed, in its unit.
        reading: AUROC of a candidate, for comparison; not used in the choice.
        step: Called after each candidate, for each causal score.

    Raises:
        UserError: if there are no candidates.
        CheckError: if no candidate stays within the limit, or a score is not finite.

    Example:
        The layer that does most is out if it breaks the model:

        >>> import torch
        >>> from condmis_interp.readers import Site
        >>> facts = {"method": "means", "data": "U - C", "position": "answer_mean", "splits": ("A",), "n": 8}
        >>> layers = [Direction.of(torch.tensor([1.0, 0.0]), site=Site("resid_post", k), **facts) for k in range(3)]
        >>> def broken(d): return 0.4 if d.site.layer == 2 else 0.01
        >>> choose_site(layers, causal=lambda d: 0.3 * d.site.layer, side_effect=broken)
        SiteChoice(Direction(means, U - C, resid_post[1], ...); causal score 0.30, 1 of 3 candidates out)
    """
    if not candidates:
        raise UserError("there are no candidate directions")
    named = causal if isinstance(causal, Mapping) else {"causal": causal}
    each: dict[str, list[float]] = {name: [] for name in named}
    for name, of in named.items():
        for d in candidates:
            each[name].append(of(d))
            step()
    rows = []
    for i, d in enumerate(candidates):
        score = float(np.mean([np.minimum(1.0, values[i]) for values in each.values()]))
        cost = side_effect(d) if side_effect is not None else float("nan")
        if not np.isfinite(score) or (side_effect is not None and not np.isfinite(cost)):
            raise CheckError(f"causal score {score} and side effect {cost} must be finite", where=repr(d))
        rows.append(
            {"layer": d.site.layer, "position": d.position, "method": d.method}
            | {name: values[i] for name, values in each.items()}
            | {"causal": score, "side_effect": cost}
            | {"within": not cost > limit, "auroc": reading(d) if reading is not None else float("nan")}
        )
    table = pd.DataFrame(rows)
    if not table.within.any():
        raise CheckError(
            f"every candidate changes neutral text by more than {limit}; the least by {table.side_effect.min():.3g}",
            fix="Lower the dose (the directions' scale), or raise the limit and say so.",
        )
    best = int(table.causal.where(table.within, -np.inf).to_numpy().argmax())
    return SiteChoice(candidates[best], table, limit)
