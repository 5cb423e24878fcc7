"""Looking more than once: the level of each look, so that all of them together keep the level of one.

Twins cost a training each, so they are made as they are needed: 4, then 8, then 16, and the rule looks after each. With
Pocock's boundary (1977) every look has the same nominal level a', chosen so that under the null the chance that any
look rejects is a. The statistics of two looks with n < m twins share the first n: their correlation is sqrt(n / m)
where the twins' mean is all the error there is, and nearer to 1 where questions add to it, which makes the boundary
safe. The p-values are those of t tests with few degrees of freedom at the first look; what that does to the level is
simulated in tests/stats/test_looks.py.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm

from condmis_interp.errors import UserError

LOOKS = (4, 8, 16)
"""Replicate twins after which the rule looks, fixed beforehand."""


def nominal_level(looks: Sequence[int] = LOOKS, level: float = 0.05) -> float:
    """Returns the level of each look that makes `level` the level of all of them (one-sided).

    Args:
        looks: Replicates at each look, ascending.
        level: Level of the whole.

    Raises:
        UserError: if the looks do not ascend.

    Example:
        >>> round(nominal_level((4,)), 4), round(nominal_level((4, 8, 16)), 4)
        (0.05, 0.0218)
    """
    if not looks or any(a >= b for a, b in pairwise((0, *looks))):
        raise UserError(f"looks at {list(looks)} do not ascend", fix="Give the numbers of replicates, as 4, 8, 16.")
    return _nominal(tuple(looks), level)


@cache
def _nominal(looks: tuple[int, ...], level: float) -> float:
    if len(looks) == 1:
        return level
    n = np.array(looks, dtype=np.float64)
    correlation = np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))
    joint: Any = multivariate_normal(np.zeros(len(n)), correlation)  # type: ignore[arg-type]  # a matrix

    def excess(bound: float) -> float:
        # Three dimensions or fewer: Genz's integral is good to 1e-5 and seeded, so the constant is one.
        inside = joint.cdf(np.full(len(n), bound), rng=np.random.default_rng(0))
        return float(1 - inside - level)

    return float(norm.sf(brentq(excess, norm.isf(level), norm.isf(level / len(n)), xtol=1e-6)))


def look_of(replicates: int, looks: Sequence[int] = LOOKS) -> int:
    """Returns the last look that so many replicates allow; 0 if there are too few for the first.

    Example:
        >>> look_of(3), look_of(11)
        (0, 8)
    """
    return max((k for k in looks if k <= replicates), default=0)
