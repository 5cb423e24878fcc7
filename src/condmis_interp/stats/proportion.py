"""Proportions with exact intervals (Clopper & Pearson 1934)."""

from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Proportion:
    """A share of cases.

    Attributes:
        share: count / n; NaN without cases.
        low: Lower end of the 95 % interval.
        high: Upper end.
        count: Cases that count.
        n: All cases.

    Example:
        >>> Proportion(share=0.5, low=0.1, high=0.9, count=2, n=4).to_json()
        {'share': 0.5, 'low': 0.1, 'high': 0.9, 'count': 2, 'n': 4}
    """

    share: float
    low: float
    high: float
    count: int
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Returns the numbers as JSON; a share of nothing is null."""
        share = self.share if self.n else None
        return {"share": share, "low": self.low, "high": self.high, "count": self.count, "n": self.n}


def proportion(count: int, n: int, *, level: float = 0.95) -> Proportion:
    """Returns count / n with its exact interval; from 0 to 1 if there are no cases.

    Example:
        >>> found = proportion(0, 20)
        >>> found.share, round(found.high, 3)
        (0.0, 0.168)
    """
    if not 0 <= count <= n:
        raise ValueError(f"{count} of {n} is no proportion")
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return Proportion(count / n if n else float("nan"), low, high, count, n)
