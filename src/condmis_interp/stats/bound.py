"""How much of a distribution may exceed a limit, if few or none of K draws from it did."""

from dataclasses import dataclass

from scipy import stats

from condmis_interp.errors import UserError


@dataclass(frozen=True)
class Exceedance:
    """Draws that exceeded a limit, and an upper bound on the share of the distribution that does.

    Attributes:
        exceeded: Draws that exceeded it.
        drawn: All draws.
        high: Upper bound on the share.
        level: How often such a bound is right, at least.

    Example:
        >>> Exceedance(exceeded=0, drawn=100, high=0.03, level=0.95).to_json()
        {'exceeded': 0, 'drawn': 100, 'high': 0.03, 'level': 0.95}
    """

    exceeded: int
    drawn: int
    high: float
    level: float = 0.95

    def to_json(self) -> dict[str, float | int]:
        """Returns the numbers as JSON."""
        return {"exceeded": self.exceeded, "drawn": self.drawn, "high": self.high, "level": self.level}


def exceedance_bound(exceeded: int, drawn: int, *, level: float = 0.95) -> Exceedance:
    """Returns the exact one-sided upper bound on a share (Clopper & Pearson 1934).

    If none of K independent draws exceeded, it is 1 - (1 - level)^(1/K): a larger share would have let K draws pass
    with a probability below 1 - level. At 95 % that is about 3/K, since -ln .05 = 2.996: the rule of three (Hanley &
    Lippman-Hand 1983, JAMA 249:1743).

    Args:
        exceeded: Draws that exceeded the limit.
        drawn: All draws, independent and from the distribution that the claim is about.
        level: How often the bound shall be right.

    Raises:
        UserError: if these are no counts, or the level is not between 0 and 1.

    Example:
        >>> round(exceedance_bound(0, 100).high, 4), round(exceedance_bound(2, 100).high, 4)
        (0.0295, 0.0616)
    """
    if not 0 <= exceeded <= drawn or drawn < 1:
        raise UserError(
            f"{exceeded} of {drawn} draws is no count", fix="Give 0 <= exceeded <= drawn, and drawn from 1."
        )
    if not 0 < level < 1:
        raise UserError(f"a bound cannot hold at level {level}", fix="Give a level between 0 and 1, such as 0.95.")
    high = float(stats.beta.ppf(level, exceeded + 1, drawn - exceeded)) if exceeded < drawn else 1.0
    return Exceedance(exceeded, drawn, high, level)
