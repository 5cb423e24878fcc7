"""Krippendorff's alpha: the published example, theorems, and the bootstrap."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condmis_interp.errors import UserError
from condmis_interp.stats import krippendorff_alpha

NAN = math.nan
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
"""Krippendorff 2011, section C: four observers, twelve units, the last with one value."""
KINDS = ("nominal", "ordinal", "interval")


@pytest.mark.parametrize(("measurement", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_the_published_example(measurement, alpha):
    found = krippendorff_alpha(PUBLISHED, measurement)
    assert round(found.alpha, 3) == alpha
    assert (found.n_units, found.n_values) == (11, 40)


def slow(values, d2):
    """Alpha over pairs of values, without a matrix of coincidences."""
    units = [[v for v in u if not math.isnan(v)] for u in np.transpose(values)]
    units = [u for u in units if len(u) > 1]
    every = [v for u in units for v in u]
    observed = sum(d2(a, b) / (len(u) - 1) for u in units for a, b in itertools.permutations(u, 2)) / len(every)
    expected = sum(d2(a, b) for a, b in itertools.permutations(every, 2)) / len(every) / (len(every) - 1)
    return 1 - observed / expected if expected else NAN


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_it_is_the_definition_over_pairs(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (3, 8)).astype(float)
    x[rng.random(x.shape) < 0.2] = NAN
    if ((~np.isnan(x)).sum(0) < 2).all():
        return
    assert krippendorff_alpha(x, "nominal").alpha == pytest.approx(slow(x, lambda a, b: a != b), nan_ok=True)
    assert krippendorff_alpha(x, "interval").alpha == pytest.approx(slow(x, lambda a, b: (a - b) ** 2), nan_ok=True)


@pytest.mark.parametrize("measurement", KINDS)
def test_agreement_is_one_chance_is_none_and_opposites_are_below(measurement):
    rng = np.random.default_rng(0)
    once = rng.integers(0, 5, 4000)
    assert krippendorff_alpha([once, once], measurement).alpha == 1
    assert krippendorff_alpha([once, rng.permutation(once)], measurement).alpha == pytest.approx(0, abs=0.05)
    assert krippendorff_alpha([once % 2, 1 - once % 2], measurement).alpha < -0.9


@pytest.mark.parametrize("measurement", KINDS)
def test_who_the_raters_are_and_units_of_one_value_make_no_difference(measurement):
    one = krippendorff_alpha(PUBLISHED, measurement).alpha
    assert krippendorff_alpha(PUBLISHED[::-1], measurement).alpha == pytest.approx(one)
    assert krippendorff_alpha(np.array(PUBLISHED)[:, :11], measurement).alpha == pytest.approx(one)


def test_what_each_measurement_does_not_see():
    x = np.array(PUBLISHED)
    assert krippendorff_alpha((x + 2) % 6, "nominal").alpha == pytest.approx(krippendorff_alpha(x, "nominal").alpha)
    assert krippendorff_alpha(np.exp(x), "ordinal").alpha == pytest.approx(krippendorff_alpha(x, "ordinal").alpha)
    assert krippendorff_alpha(7 * x - 3, "interval").alpha == pytest.approx(krippendorff_alpha(x, "interval").alpha)
    assert krippendorff_alpha(np.exp(x), "interval").alpha != pytest.approx(krippendorff_alpha(x, "interval").alpha)


def raters(rng, units, error):
    truth = rng.integers(0, 2, units)
    return np.stack([np.where(rng.random(units) < error, 1 - truth, truth) for _ in range(2)])


def test_the_bootstrap_interval_covers():
    """Two raters who err on a tenth: they disagree on .18 of answers, chance on half, so alpha is .64."""
    rng = np.random.default_rng(0)
    found = [krippendorff_alpha(raters(rng, 80, 0.1), rng=rng, draws=200) for _ in range(300)]
    assert 0.9 <= np.mean([a.low <= 0.64 <= a.high for a in found]) <= 0.98


def test_units_of_one_question_are_drawn_together():
    values = np.repeat(raters(np.random.default_rng(1), 20, 0.2), 10, axis=1)
    widths = [
        (a := krippendorff_alpha(values, rng=np.random.default_rng(0), clusters=c)).high - a.low
        for c in (None, np.repeat(np.arange(20), 10).tolist())
    ]
    assert widths[1] > 2 * widths[0]


def test_values_that_are_all_the_same_have_no_alpha():
    found = krippendorff_alpha([[1, 1, 1], [1, 1, 1]], rng=np.random.default_rng(0), draws=20)
    assert math.isnan(found.alpha)
    assert math.isnan(found.low)


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        ([[1, 2, 3]], {}, "no second rater"),
        ([1, 2, 3], {}, "no second rater"),
        ([[1, NAN], [NAN, 2]], {}, "no unit has two"),
        ([[1, math.inf], [1, 2]], {}, "infinite"),
        ([[1, 2], [1, 2]], {"measurement": "ratio"}, "no measurement"),
        ([[1, 2], [1, 2]], {"clusters": ["a"]}, "1 cluster label"),
        ([[1, 2], [1, 2]], {"clusters": ["a", "a"], "rng": np.random.default_rng(0)}, "not enough"),
        ([[1, 2], [1, 2]], {"level": 0.0}, "level"),
    ],
)
def test_what_has_no_alpha(values, more, message):
    with pytest.raises(UserError, match=message):
        krippendorff_alpha(values, **more)
