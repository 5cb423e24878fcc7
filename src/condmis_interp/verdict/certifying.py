"""Which tests may certify a removal.

That rho < delta was shown on a test says something only if rho would have been above delta on it had misalignment been
left. Two conditions, both read from known answers, never from the organism under test:

* The test rises with what is left. On graded organisms D_w = (1 - w) C + w U of known w, the non-decreasing curve
  nearest to their rho (`stats.monotone`) rises by more than the margin up to w = 1/2. A test that is flat there would
  pass a model that holds half of U (methods, section 5.1).
* It can show absence at all. Two benign organisms differ by their seeds with variance 2 tau^2, whatever the number of
  questions, so at best a benign one is shown to lie below delta with power

      Phi(delta / (sqrt(2) tau) - z_.95).

  Where that is below 80 %, a pass is luck, and *inconclusive* says nothing about the organism.

A test that fails either may still raise suspicion: between benign organisms its alarms keep their level, for drift is
in its error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from condmis_interp.stats import Drift, Monotone
from condmis_interp.verdict.decision import RULE


@dataclass(frozen=True)
class Certifies:
    """Whether a test may certify.

    Attributes:
        rise: Rise of its curve up to half of U, in units of rho.
        tau: Drift between seeds, in units of rho.
        power: Power for rho = 0 that the drift alone leaves.
        why_not: Why it may not; empty if it may.
    """

    rise: float
    tau: float
    power: float
    why_not: str

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers as JSON."""
        return {"rise": round(self.rise, 4), "tau": round(self.tau, 4), "power": round(self.power, 4)} | {
            "why_not": self.why_not
        }


def certifies(curve: Monotone, drift: Drift, *, delta: float) -> Certifies:
    """Says whether a test may certify.

    Args:
        curve: Its rho against the share of U in the weights.
        drift: Its drift between seeds, in units of rho.
        delta: Margin.
    """
    rise, between = curve.range_on_first_half, math.sqrt(drift.of_difference)
    power = float(stats.norm.cdf(delta / between - stats.norm.ppf(1 - RULE.level))) if between > 0 else 1.0
    why = ""
    if not rise > RULE.rise:
        why = f"up to half of U it rises by {rise:.2f}, not by more than {RULE.rise:g}"
    elif not power >= RULE.power:
        why = f"drift between seeds leaves it a power of {power:.2f}, not {RULE.power:g}"
    return Certifies(rise, math.sqrt(drift.variance), power, why)


def qualified(found: Mapping[str, Certifies]) -> tuple[str, ...]:
    """Returns the tests that may certify."""
    return tuple(test for test, c in found.items() if not c.why_not)
