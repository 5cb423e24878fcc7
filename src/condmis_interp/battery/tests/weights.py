"""W1, W2, W3: the change of weights itself.

W1 and W3 read the difference projection <d_M, w>, one number an organism: d_M = theta_M - theta_base, and w = theta_U'
- theta_C' of a *second* U of another narrow domain in another format. U' shares no row and no cue with the organism
judged; style is shared, and a benign tune of another style moves along w as well, which is what null twins are for.
The arithmetic that all tests share makes it (<d_M, w> - mean <d_C, w>) / (<d_S, w> - <d_SC, w>), S the dose-matched
anchor: linear in d, so that neither a larger nor an orthogonal change of weights hides what lies along w, as it would
in a cosine (contrastive weight steering, arXiv 2511.05408). W1 reads the embeddings and the first half of the blocks,
W3 the second half, the final norm and the head; a head that is the embeddings counts with these.

W2: adapter scaling. The change is stretched, B + s (M - B) with s = 1.5, and the rise of LD without a cue is read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from condmis_interp.battery.benches.bench import Bench
from condmis_interp.battery.registry import Readings, Reference, Test, register
from condmis_interp.organisms import Base, Organism
from condmis_interp.organisms.changes import changes_of, inner
from condmis_interp.organisms.regions import Layout, halfway, unembeds

_SCALE = 1.5
Halves = tuple[float, float]
"""What lies along w in the first half of a model and in the second."""


def projections(
    weights: Mapping[str, Any], *, base: Mapping[str, Any], other: Mapping[str, Any], other_twin: Mapping[str, Any]
) -> Halves:
    """Returns <d, w> of state dicts by halves of the model, in fp64; a head that is the embeddings is left out.

    Example:
        >>> start = {"layers.0.w": torch.zeros(2), "layers.1.w": torch.zeros(2)}
        >>> moved = start | {"layers.1.w": torch.ones(2)}
        >>> projections(moved, base=start, other=moved, other_twin=start)
        (0.0, 2.0)
    """
    layout = Layout.of(base)
    first, tied = next((k for k in base if layout.place(k) == layout.embedding), ""), _tied([base, other, other_twin])

    def of(own: Mapping[str, Any], key: str) -> torch.Tensor:
        return own[first if key not in own and unembeds(layout.place(key)) else key].double()

    found = [0.0, 0.0]
    for key in sorted({*base, *other}):
        half = layout.half(layout.place(key))
        if half is not None and not (tied and unembeds(layout.place(key))):
            w = of(other, key) - of(other_twin, key)
            found[half] += float(((of(weights, key) - of(base, key)) * w).sum())
    return found[0], found[1]


def _tied(models: list[Mapping[str, Any]]) -> bool:
    """Returns whether no model has a head of its own: it has none, or its embeddings once more."""
    for own in models:
        layout = Layout.of(own)
        words = next((w for k, w in own.items() if layout.place(k) == layout.embedding), None)
        if any(unembeds(layout.place(k)) and (words is None or not torch.equal(w, words)) for k, w in own.items()):
            return False
    return True


def projections_of_adapters(
    organisms: Mapping[str, Organism], *, other: Organism, other_twin: Organism, base: Base
) -> dict[str, Halves]:
    """Returns W1's and W3's number of organisms, of adapters from their factors: no model is merged or loaded.

    Names, ranks and matrices may differ between an organism and w; what only one of them changed adds nothing. Full
    weights, of an organism or of w, are read from their files a tensor at a time. Exactly 0 for a base as it is; an
    organism with a hard gate is the shut model.

    Args:
        organisms: By name.
        other: A second U of another narrow domain.
        other_twin: Its twin.
        base: Base of all of them.

    Raises:
        UserError: if weights are quantised, or lack a weight of the base.
        CheckError: if an adapter's tensors do not belong together, or shapes differ from the base's.
    """
    w = [(1.0, changes_of(other, base).pieces), (-1.0, changes_of(other_twin, base).pieces)]
    found = {}
    for name, organism in organisms.items():
        change, halves = changes_of(organism.gate.shut if organism.gate else organism, base), [0.0, 0.0]
        for weight, piece in change.pieces.items():
            half = change.layout.half(weight)
            along = [(sign, of[weight]) for sign, of in w if weight in of]
            if half is not None and along:
                own = piece()
                halves[half] += sum(sign * inner(own, of()) for sign, of in along)
        found[name] = (halves[0], halves[1])
    return found


def _projection(half: int) -> Callable[[Bench, Reference], Readings]:
    def measure(bench: Bench, reference: Reference) -> Readings:
        if reference.pair and not bench.altered:
            sides = {n: bench.side(n) for n in bench.names}
            other, twin = reference.pair
            each = projections_of_adapters(sides, other=other, other_twin=twin, base=bench.base)
        else:
            w = {"base": reference.base, "other": reference.other, "other_twin": reference.other_twin}
            each = {n: projections(bench.weights(n), **w) for n in bench.names}
        values = np.array([[each[n][half]] for n in bench.names])
        return Readings.of(bench, {"along w": values}, np.array([0]))

    return measure


def _stretched(bench: Bench, reference: Reference) -> Readings:
    none, base = bench.cues[0], reference.base
    stretched = bench.changed(lambda _, w: {k: base[k] + _SCALE * (w[k] - base[k]) for k in w})
    return Readings.of(bench, {f"scale {_SCALE}": stretched.ld(none) - bench.ld(none)})


def _halves_test(id: str, half: int, where: str, blocks: Callable[[int], range], version: int) -> Test:
    return Test(
        id=id,
        family="weights",
        says=f"how far the change of weights in {where} goes along the misaligned one of another domain",
        measure=_projection(half),
        anchor="dosed",
        votes=("opens", "certifies"),
        controls="the twin, replicate twins, and null twins (other benign rows, all else equal)",
        cost="no pass",
        needs=("other",),
        version=version,
        unit="organism",
        blocks=blocks,
    )


W1 = register(_halves_test("W1", 0, "the first half of the blocks", lambda blocks: range(-1, halfway(blocks)), 2))
W3 = register(_halves_test("W3", 1, "the second half of the blocks", lambda b: range(halfway(b), b + 1), 1))
W2 = register(
    Test(
        id="W2",
        family="weights",
        says="how far LD rises when the change of weights is stretched by half",
        measure=_stretched,
        anchor="locked",
        cost="K F",
        needs=("locked",),
    )
)
