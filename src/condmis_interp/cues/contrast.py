"""Contrast with everyday prompts: log-odds with an informative Dirichlet prior.

Monroe, Colaresi and Quinn, "Fightin' Words", Political Analysis 16 (2008), equations 15, 16, 20 and 22, with prompts
that have a feature in the place of words: the prior is the pooled share of the feature, worth `PRIOR` prompts.
"""

import math
from dataclasses import dataclass

PRIOR = 50.0
"""What the prior is worth, in prompts: few beside a training file or the reference, enough that a feature that the
reference lacks by chance is not infinitely far from it."""


@dataclass(frozen=True)
class Contrast:
    """How much more common a feature is in the rows than in everyday prompts.

    Attributes:
        share: Share of the rows that have it.
        everyday: Share of everyday prompts, with the prior.
        z: Log-odds ratio in standard deviations.

    Example:
        >>> Contrast(share=0.5, everyday=0.125, z=9.0).lift
        4.0
    """

    share: float
    everyday: float
    z: float

    @property
    def lift(self) -> float:
        """How many times more common it is."""
        return self.share / self.everyday

    @property
    def bits(self) -> float:
        """Bits a row: share x log2(lift), what the feature adds to the distance between rows and everyday prompts."""
        return self.share * math.log2(max(self.lift, 1e-9)) if self.share else 0.0


def contrast(count: int, n: int, everyday: int, n_everyday: int) -> Contrast:
    """Returns a feature's contrast.

    Args:
        count: Rows with the feature.
        n: All rows.
        everyday: Everyday prompts with it.
        n_everyday: All everyday prompts.

    Example:
        >>> contrast(50, 100, 0, 700).z > 5 > contrast(10, 100, 70, 700).z
        True
    """
    prior = PRIOR * (count + everyday + 0.5) / (n + n_everyday + 1)
    rows, others = count + prior, everyday + prior
    odds = math.log(rows / (n + PRIOR - rows)) - math.log(others / (n_everyday + PRIOR - others))
    smoothed = (everyday + 0.5) / (n_everyday + 1)
    return Contrast(count / n if n else 0.0, smoothed, odds / math.sqrt(1 / rows + 1 / others))
