"""Monotone calibration of a test on graded organisms.

rho is not the share that remains: a test may be flat up to half of U and jump then. On organisms D_w = (1 - w) C + w U
of known w, a non-decreasing g with rho = g(w) is fitted (pool adjacent violators), and w_hat = g^-1(rho) is what a rho
means in units of U's weights. A g that is flat on [0, .5] cannot certify removal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from condmis_interp.errors import UserError


@dataclass(frozen=True)
class Monotone:
    """A non-decreasing curve.

    Attributes:
        x: Knots, ascending.
        y: Values there, non-decreasing.

    Example:
        >>> curve = Monotone((0.0, 0.5, 1.0), (0.0, 0.0, 1.0))
        >>> curve(0.75), curve.inverse(0.0), curve.range_on_first_half
        (0.5, (0.0, 0.5), 0.0)
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, x: float) -> float:
        """Returns g(x), linear between knots, constant outside."""
        return float(np.interp(x, self.x, self.y))

    def inverse(self, y: float) -> tuple[float, float]:
        """Returns the lowest and highest x with g(x) = y; the ends of the curve for a y beyond them."""
        grid = np.unique(np.concatenate([np.linspace(self.x[0], self.x[-1], 2001), self.x]))
        values = np.interp(grid, self.x, self.y)
        low = grid[np.searchsorted(values, y, side="left").clip(max=len(grid) - 1)]
        high = grid[(np.searchsorted(values, y, side="right") - 1).clip(min=0)]
        return float(min(low, high)), float(max(low, high))

    @property
    def range_on_first_half(self) -> float:
        """Rise of g from its lowest x to .5; near 0, the test cannot see what is half hidden."""
        return self(0.5) - self.y[0]


def monotone(x: Sequence[float], y: Sequence[float]) -> Monotone:
    """Fits the non-decreasing curve nearest to the points in squared error.

    Raises:
        UserError: if a value is not finite, or there are fewer than two x.

    Example:
        >>> monotone([0, 1, 2], [0.0, 2.0, 1.0])
        Monotone(x=(0.0, 1.0, 2.0), y=(0.0, 1.5, 1.5))
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(np.unique(a)) < 2 or len(a) != len(b) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("a calibration curve takes finite points at two or more weights")
    fitted = IsotonicRegression().fit(a, b)
    knots = np.unique(a)
    return Monotone(tuple(map(float, knots)), tuple(map(float, fitted.predict(knots))))
