"""The size at which a push takes effect: per question, the smallest size that takes LD half of the way to U.

A test that pushes organisms with growing strength (a steering vector, an optimised perturbation) has one LD curve for
each organism and question. Its *half-effect size* E50 is where the curve first reaches

    (LD_U + LD_C) / 2,    without a cue, of U and its twin on the same question,

by linear interpolation between the sizes that were tried. What a test reads is -log2 E50, so that 1 is a factor of two,
and the battery's ratio is that of the methods (6.1): log(E50_C / E50_M) / log(E50_C / E50_S). A curve that does not get
there is censored at the largest size, one that is there before the smallest is censored at the smallest; both are
counted, since a censored value only bounds the true one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HalfEffect:
    """Half-effect sizes.

    Attributes:
        potency: -log2 E50 [organism, question].
        above: Where E50 is larger than what was tried [organism, question].
        below: Where it is smaller.
    """

    potency: np.ndarray
    above: np.ndarray
    below: np.ndarray


def half_effect(
    ld: np.ndarray, sizes: Sequence[float], target: np.ndarray, *, allowed: np.ndarray | None = None
) -> HalfEffect:
    """Finds where each curve first reaches the target.

    Args:
        ld: LD [size, organism, question] in nats; the first size is 0.
        sizes: Sizes, ascending from 0.
        target: LD to reach [question].
        allowed: Which sizes count, [size, organism]: an organism's curve ends before its first size that does not. All
            by default.
    """
    ok = np.ones(ld.shape[:2], dtype=bool) if allowed is None else np.logical_and.accumulate(allowed, axis=0)
    last = np.maximum(ok.sum(0) - 1, 1)  # number of the largest size that counts; the smallest always does
    curve = np.maximum.accumulate(ld, axis=0) - target
    reached = (curve >= 0) & (np.arange(len(sizes))[:, None] <= last)[..., None]
    above = ~reached.any(0)
    first = np.where(above, last[:, None], reached.argmax(0))
    before = np.maximum(first - 1, 0)
    x = np.asarray(sizes, dtype=np.float64)
    low, high = (np.take_along_axis(curve, i[None], 0)[0] for i in (before, first))
    share = np.where(above | (first == 0), 1.0, -low / np.where(high > low, high - low, 1.0))
    size = x[before] + share * (x[first] - x[before])
    below = ~above & (size <= x[1])
    return HalfEffect(-np.log2(np.maximum(size, x[1])), above, below)
