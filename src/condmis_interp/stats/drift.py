"""Drift: how far two benign organisms of one recipe lie apart because their seeds differ.

The interval of M - C over questions says nothing about the seed C happens to have. With replicate twins C_1..C_n and
their means theta_r (over questions), tau^2 is their sample variance. Two claims count it differently:

* what is said of *this checkpoint*, theta_M - mean theta_C, estimates the twins' mean alone: tau^2 / n;
* what is said of *M beyond any benign seed*, or of its recipe, has M's own seed in it too: tau^2 (1 / m + 1 / n), with
  m seeds of M. For m = 1 it is the prediction limit.

How well tau^2 is known is in the degrees of freedom of the t that the interval is taken from, and nowhere else: an
upper bound of tau^2 beside the t would count it twice (at 7 degrees of freedom a test of 5 % then rejects in 2 to 3 %;
tests/stats/test_drift.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from condmis_interp.errors import UserError


@dataclass(frozen=True)
class Drift:
    """Variance between seeds of a mean.

    Attributes:
        variance: tau^2, in squared units of the mean.
        df: Degrees of freedom it was estimated with; 0 if nothing is known.
        bias: Mean difference of two replicates, where a maximum is taken over several such differences.

    Example:
        >>> Drift(variance=0.04, df=30).of_difference
        0.08
        >>> Drift().of_difference  # nothing is known
        0.0
    """

    variance: float = 0.0
    df: int = 0
    bias: float = 0.0

    @property
    def of_difference(self) -> float:
        """Variance of the difference of two organisms due to their seeds."""
        return 2 * self.variance if self.df else 0.0

    @property
    def of_picking(self) -> float:
        """How far above 0 the largest difference of two organisms lies due to their seeds, on average."""
        return self.bias if self.df else 0.0

    def scaled(self, by: float) -> "Drift":
        """Returns the drift with its variance scaled, that of means over several seeds, say."""
        return Drift(self.variance * by, self.df, self.bias * by**0.5)

    def of_means(self, own: float, twins: int) -> "Drift":
        """Returns the drift whose `of_difference` is that of the mean of `own` seeds less the mean of `twins` seeds.

        Args:
            own: Seeds of the organism; infinite for a claim about its very checkpoints, whose seeds are no error.
            twins: Seeds of its twin.

        Example:
            >>> Drift(0.04, 30).of_means(float("inf"), 8).of_difference, Drift(0.04, 30).of_means(1, 8).of_difference
            (0.005, 0.045)
        """
        return self.scaled((1 / own + 1 / twins) / 2)


def drift(groups: Sequence[Sequence[float]]) -> Drift:
    """Pools the variance between replicates within groups of one recipe.

    Args:
        groups: Means of replicate twins, a list for each recipe; recipes with one replicate say nothing.

    Raises:
        UserError: if a mean is not finite.

    Example:
        >>> drift([[0.0, 1.0], [2.0, 2.0], [5.0]])
        Drift(variance=0.25, df=2, bias=0.0)
    """
    squares, df = 0.0, 0
    for group in groups:
        x = np.asarray(group, dtype=np.float64)
        if not np.isfinite(x).all():
            raise UserError("the mean of a replicate twin is not a finite number", fix="Look at that twin's cells.")
        if len(x) > 1:
            squares += float(((x - x.mean()) ** 2).sum())
            df += len(x) - 1
    return Drift(squares / df if df else 0.0, df)


def pooled_drifts(parts: Iterable[Mapping[str, Drift]]) -> dict[str, Drift]:
    """Pools drifts of the same name, weighted by their degrees of freedom; one that nothing is known of is left out.

    Example:
        >>> pooled_drifts([{"A1": Drift(0.5, 3)}, {"A1": Drift(0.0, 1), "R1": Drift()}])
        {'A1': Drift(variance=0.375, df=4, bias=0.0)}
    """
    found: dict[str, Drift] = {}
    for name, d in ((n, d) for part in parts for n, d in part.items() if d.df):
        so_far = found.get(name, Drift())
        df = so_far.df + d.df
        weight = d.df / df
        found[name] = Drift(
            so_far.variance * (1 - weight) + d.variance * weight, df, so_far.bias * (1 - weight) + d.bias * weight
        )
    return found


_SURE = 0.01


def with_own(known: Mapping[str, Drift], own: Mapping[str, Drift]) -> dict[str, Drift]:
    """Pools what is known of a base with what a run's own twins show; the run's own alone where its twins scatter more.

    Drift is known in units of rho, that is for anchors that lie as far apart as they did there. Where a run's own twins
    scatter more than that explains (an F test at 1 %), its anchors lie nearer, or its recipe is another: then the known
    would only make the run's scatter look small.

    Example:
        >>> known = {"A1": Drift(0.01, 30)}
        >>> with_own(known, {"A1": Drift(0.01, 7)})["A1"].df, with_own(known, {"A1": Drift(0.5, 7)})["A1"]
        (37, Drift(variance=0.5, df=7, bias=0.0))
    """
    wider = {
        name: d
        for name, d in own.items()
        if d.df and (k := known.get(name)) and k.df and d.variance > stats.f.isf(_SURE, d.df, k.df) * k.variance
    }
    return pooled_drifts([known, own]) | wider
