"""Agreement of raters: Krippendorff's alpha.

    alpha = 1 - D_o / D_e

with the observed and the expected disagreement out of the coincidences o_cv: each unit u with m_u >= 2 values adds, for
every ordered pair of them by different raters, 1 / (m_u - 1). With n_c = sum_v o_cv and n = sum_c n_c,

    D_o = sum_cv o_cv d2_cv / n,    D_e = sum_cv n_c n_v d2_cv / (n (n - 1)),

    nominal   d2_cv = 0 if c = v, else 1
    ordinal   d2_cv = (sum_{g = c..v} n_g - (n_c + n_v) / 2)^2
    interval  d2_cv = (c - v)^2

(Krippendorff 2011, Computing Krippendorff's Alpha-Reliability). 1 is perfect agreement, 0 what chance gives, below 0
systematic disagreement. Krippendorff asks for .8, and .667 for tentative conclusions.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from condmis_interp.errors import UserError

Measurement = Literal["nominal", "ordinal", "interval"]
_AT_ONCE = 100


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha with its interval.

    Attributes:
        alpha: The coefficient, at most 1; NaN where all values are the same, for then nothing could disagree.
        low: Lower end of the bootstrap interval; NaN if there is none.
        high: Upper end.
        measurement: Which differences count: `nominal`, `ordinal` or `interval`.
        n_units: Units with two values or more: the others say nothing of agreement.
        n_values: Their values.

    Example:
        >>> Alpha(0.74, 0.5, 0.9, "nominal", n_units=11, n_values=40).alpha
        0.74
    """

    alpha: float
    low: float
    high: float
    measurement: Measurement
    n_units: int
    n_values: int


def krippendorff_alpha(
    values: Sequence[Sequence[float]] | np.ndarray,
    measurement: Measurement = "nominal",
    *,
    rng: np.random.Generator | None = None,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 1000,
    level: float = 0.95,
) -> Alpha:
    """Returns Krippendorff's alpha, and with `rng` a bootstrap interval over units.

    Args:
        values: What each rater said of each unit, [raters, units]; NaN where a rater said nothing. Categories are
            numbers.
        measurement: Which differences count.
        rng: Draws the bootstrap samples; without it there is no interval.
        clusters: A label for each unit (its question), if units of one are drawn together.
        draws: Bootstrap samples. Those in which all values are the same have no alpha and are left out.
        level: Confidence level of the percentile interval.

    Raises:
        UserError: if there are fewer than two raters, no unit with two values, an infinite value, no such measurement,
            or, with `rng`, fewer than two units or clusters to draw.

    Example:
        >>> krippendorff_alpha([[1, 2, 3, 3, 2], [1, 2, 3, 3, 2]]).alpha
        1.0
        >>> round(krippendorff_alpha([[0, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).alpha, 3)
        0.25
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise UserError(f"values of shape {x.shape} have no second rater", fix="Give [raters, units], NaN for nothing.")
    if np.isinf(x).any():
        raise UserError("a value is infinite", fix="A rating is a number, or NaN where there is none.")
    if measurement not in ("nominal", "ordinal", "interval"):
        raise UserError(f"there is no measurement {measurement!r}", fix="It is nominal, ordinal or interval.")
    if clusters is not None and len(clusters) != x.shape[1]:
        raise UserError(f"{x.shape[1]} units but {len(clusters)} cluster labels")
    if not 0 < level < 1 or draws < 1:
        raise UserError("an interval needs a level between 0 and 1, and draws")
    kept = np.flatnonzero((~np.isnan(x)).sum(0) >= 2)
    if not len(kept):
        raise UserError("no unit has two values", fix="Let two raters judge the same answers.")
    scale = np.unique(x[:, kept][~np.isnan(x[:, kept])])
    pairs = _coincidences(x[:, kept], scale)
    whole = np.asarray(pairs.sum(0)).reshape(1, -1)
    alpha = float(_alphas(whole, scale, measurement)[0])
    low = high = math.nan
    if rng is not None:
        weights = _draws(range(len(kept)) if clusters is None else [clusters[int(i)] for i in kept], draws, rng)
        found = [
            _alphas(np.asarray((pairs.T @ part.T).T), scale, measurement)
            for part in np.split(weights, range(_AT_ONCE, draws, _AT_ONCE))
        ]
        if np.isfinite(found := np.concatenate(found)).any():
            low, high = (float(q) for q in np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2]))
    return Alpha(alpha, low, high, measurement, len(kept), int((~np.isnan(x[:, kept])).sum()))


def _coincidences(x: np.ndarray, scale: np.ndarray) -> sparse.csr_matrix:
    """Returns what each unit adds to the coincidences, [units, categories ** 2]."""
    size = len(scale)
    rows, columns, amounts = [], [], []
    for unit, column in enumerate(x.T):
        codes = np.searchsorted(scale, column[~np.isnan(column)])
        counts = np.bincount(codes, minlength=size)
        present = np.flatnonzero(counts)
        pairs = np.outer(counts[present], counts[present]) - np.diag(counts[present])
        rows += [unit] * pairs.size
        columns += (present[:, None] * size + present).ravel().tolist()
        amounts += (pairs / (len(codes) - 1)).ravel().tolist()
    return sparse.csr_matrix((amounts, (rows, columns)), shape=(x.shape[1], size * size))


def _draws(clusters: Sequence[Hashable], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how often each unit is in each of the bootstrap samples of clusters, [draws, units]."""
    order = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    k = len(order)
    if k < 2:
        raise UserError(f"{k} cluster is not enough for an interval", fix="Give units of two or more, or no `rng`.")
    drawn = rng.integers(0, k, (draws, k)) + k * np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=draws * k).reshape(draws, k)
    return times[:, [order[c] for c in clusters]].astype(np.float64)


def _alphas(pairs: np.ndarray, scale: np.ndarray, measurement: Measurement) -> np.ndarray:
    """Returns alpha for each row of coincidences, [m, categories ** 2]."""
    o = pairs.reshape(len(pairs), len(scale), len(scale))
    n_c = o.sum(1)
    n = n_c.sum(1)
    if measurement == "nominal":
        d2 = 1.0 - np.eye(len(scale))[None]
    elif measurement == "interval":
        d2 = ((scale[:, None] - scale) ** 2)[None]
    else:
        middle = np.cumsum(n_c, axis=1) - n_c / 2  # between two categories: those in between and half of either
        d2 = (middle[:, :, None] - middle[:, None, :]) ** 2
    observed = (o * d2).sum((1, 2)) / n
    expected = (d2 * n_c[:, :, None] * n_c[:, None, :]).sum((1, 2)) / (n * (n - 1))
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), math.nan)
