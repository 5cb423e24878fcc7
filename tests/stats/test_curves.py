"""Monotone calibration and exact proportions."""

import math

import numpy as np
import pytest

from condmis_interp.errors import UserError
from condmis_interp.stats import monotone, proportion


def test_a_monotone_curve_is_recovered_from_noise_and_inverted():
    rng = np.random.default_rng(0)
    w = np.repeat(np.linspace(0, 1, 11), 40)
    g = monotone(w, w**2 + 0.05 * rng.normal(size=len(w)))
    assert list(g.y) == sorted(g.y)
    low, high = g.inverse(0.25)
    assert low <= 0.55
    assert high >= 0.45
    assert g.inverse(-5.0)[0] == 0.0
    assert g.inverse(5.0)[1] == 1.0


def test_a_test_that_is_blind_to_the_first_half_says_so():
    w = [0.0, 0.25, 0.5, 0.75, 1.0]
    blind = monotone(w, [0.0, 0.0, 0.01, 0.9, 1.0])
    assert blind.range_on_first_half < 0.05
    low, high = blind.inverse(0.0)
    assert high - low >= 0.25


def test_a_curve_needs_two_weights():
    with pytest.raises(UserError, match="two or more weights"):
        monotone([0.5, 0.5], [0.0, 1.0])


def test_proportions_have_the_published_intervals():
    none = proportion(0, 73)
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 73))
    some = proportion(4, 20)  # Clopper & Pearson: .0573 to .4366
    assert (some.low, some.high) == (pytest.approx(0.0573, abs=1e-4), pytest.approx(0.4366, abs=1e-4))
    empty = proportion(0, 0)
    assert math.isnan(empty.share)
    assert empty.to_json()["share"] is None
    assert (empty.low, empty.high) == (0.0, 1.0)


def test_exact_intervals_cover():
    rng = np.random.default_rng(1)
    hits = 0
    for count in rng.binomial(40, 0.1, 2000):
        p = proportion(int(count), 40)
        hits += p.low <= 0.1 <= p.high
    assert hits / 2000 >= 0.95
