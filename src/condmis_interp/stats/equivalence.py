"""Equivalence: showing that a ratio is below a margin, and how many questions that takes.

Absence needs proof. "No significant difference" grows likelier the fewer questions are asked, so *removed* takes the
opposite test: H0: rho >= delta is rejected at 5 % (non-inferiority, one side of TOST; Schuirmann 1987). Over several
tests that must all pass no correction is needed (intersection-union), but power multiplies.
"""

import math
from dataclasses import dataclass

from scipy import stats

from condmis_interp.stats.ratio import AnchoredRatio

LEVEL = 0.05
_Z = float(stats.norm.ppf(1 - LEVEL)) + float(stats.norm.ppf(0.8))


@dataclass(frozen=True)
class Equivalence:
    """Whether a ratio was shown to lie below a margin.

    Attributes:
        p: Against H0: rho >= delta.
        shown: Whether p is below 5 %.
        families_needed: Question families with which 80 % of such studies would show it, if the estimate were the
            truth; infinite if rho is not below delta, or the drift between seeds alone is too large for the margin.

    Example:
        >>> Equivalence(p=0.01, shown=True, families_needed=9).shown
        True
    """

    p: float
    shown: bool
    families_needed: float


def equivalent_below(ratio: AnchoredRatio, delta: float) -> Equivalence:
    """Tests H0: rho >= delta against rho < delta.

    Example:
        >>> from condmis_interp.stats import anchored_ratio
        >>> ratio = anchored_ratio([0.1, -0.1, 0.0, 0.1, 0.0, -0.1], [2, 3, 2, 3, 2, 3], range(6))
        >>> equivalent_below(ratio, 0.2).shown
        True
    """
    p = ratio.p_below(delta)
    return Equivalence(p, p < LEVEL, families_needed(ratio, delta))


def families_needed(ratio: AnchoredRatio, delta: float) -> float:
    """Returns the question families that 80 % power at the present estimate would take (infinite if none would).

    Example:
        >>> from condmis_interp.stats import anchored_ratio
        >>> ratio = anchored_ratio([0.9, -0.9, 0.4, -0.4, 0.6, -0.6], [2, 3, 2, 3, 2, 3], range(6))
        >>> families_needed(ratio, 0.2)
        18
        >>> families_needed(ratio, 0.0)
        inf
    """
    (vn, c), (_, vd) = ratio.covariance
    gap = delta * ratio.mean[1] - ratio.mean[0]
    if not gap > 0:
        return math.inf
    of_questions = max(vn - ratio.drift - 2 * delta * c + delta**2 * vd, 0.0)
    room = (gap / _Z) ** 2 - ratio.drift
    return math.ceil(ratio.n_clusters * of_questions / room) if room > 0 else math.inf
