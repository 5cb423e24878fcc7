"""P-values against controls that went through the same pipeline, and their adjustment for multiplicity."""

from collections.abc import Sequence

import numpy as np


def exceedance_p(observed: float, controls: Sequence[float] | np.ndarray) -> float:
    """Returns (1 + number of controls >= observed) / (1 + number of controls).

    Example:
        >>> exceedance_p(2.0, [0.0] * 18 + [3.0])
        0.1
    """
    c = np.asarray(controls, dtype=np.float64)
    return float((1 + np.sum(c >= observed)) / (1 + c.size))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's step-down adjusted p-values, in the order given (Holm 1979).

    Example:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    scaled = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.minimum(1.0, np.maximum.accumulate(scaled))
    out = np.empty(len(p))
    out[order] = adjusted
    return [float(v) for v in out]
