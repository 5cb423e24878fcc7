"""Intervals whose unit is the cluster: theorems, coverage, and the version that must fail."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from condmis_interp.errors import UserError
from condmis_interp.stats import anchored_ratio, cluster_mean, exceedance_p, holm, resample_clusters


def grouped(rng, clusters, each, icc):
    return (
        math.sqrt(icc) * np.repeat(rng.normal(size=clusters), each)
        + math.sqrt(1 - icc) * rng.normal(size=clusters * each),
        np.repeat(np.arange(clusters), each).tolist(),
    )


@pytest.mark.parametrize("clusters", [8, 24])
def test_a_true_null_is_rejected_at_the_nominal_rate_and_the_iid_interval_fails(clusters):
    rng = np.random.default_rng(0)
    honest = iid = 0
    for _ in range(2000):
        x, labels = grouped(rng, clusters, 20, 0.3)
        m = cluster_mean(x, labels)
        honest += not m.low <= 0 <= m.high
        iid += abs(x.mean()) > 1.96 * x.std(ddof=1) / math.sqrt(len(x))
    assert 0.03 <= honest / 2000 <= 0.07
    assert iid / 2000 > 0.3  # samples as the unit: the test that this package exists to avoid


def test_one_value_a_cluster_is_the_ordinary_t_interval():
    x = np.random.default_rng(1).normal(size=12)
    m = cluster_mean(x, list(range(12)))
    low, high = stats.t.interval(0.95, 11, x.mean(), stats.sem(x))
    assert (m.low, m.high) == pytest.approx((low, high))


def test_repeating_every_value_changes_nothing():
    x = np.random.default_rng(2).normal(size=10)
    once = cluster_mean(x, list(range(10)))
    thrice = cluster_mean(np.repeat(x, 3), np.repeat(np.arange(10), 3).tolist())
    assert (thrice.mean, thrice.se) == pytest.approx((once.mean, once.se))


def test_fieller_covers():
    rng = np.random.default_rng(3)
    hits = bounded = 0
    for _ in range(1000):
        base, labels = grouped(rng, 24, 3, 0.3)
        noise, _ = grouped(rng, 24, 3, 0.3)
        d = 2.0 + base
        r = anchored_ratio(0.5 * 2.0 + 0.5 * base + 0.5 * noise, d, labels)
        bounded += math.isfinite(r.low)
        hits += r.low <= 0.5 <= r.high
    assert bounded == 1000
    assert 0.93 <= hits / 1000 <= 0.97


def test_weak_anchors_give_an_unbounded_set():
    rng = np.random.default_rng(4)
    r = anchored_ratio(rng.normal(size=24), rng.normal(size=24), list(range(24)))
    assert (r.low, r.high) == (-math.inf, math.inf)
    assert abs(r.gate_z) < 5


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 10), st.floats(-2, 2), st.integers(0, 10_000))
def test_the_ratio_scales_and_its_tests_agree_with_its_set(scale, bound, seed):
    rng = np.random.default_rng(seed)
    n, d, labels = rng.normal(1, 1, 20), rng.normal(6, 1, 20), list(range(20))
    r = anchored_ratio(n, d, labels)
    same = anchored_ratio(scale * n, scale * d, labels)
    assert (same.rho, same.low, same.high) == pytest.approx((r.rho, r.low, r.high))
    assert (r.p_above(bound) < 0.025) == (r.low > bound)
    assert (r.p_below(bound) < 0.025) == (r.high < bound)


def test_holm_against_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(5).uniform(size=9) ** 2
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_exceedance_p_is_uniform_under_the_null_and_never_zero():
    rng = np.random.default_rng(6)
    p = [exceedance_p(rng.normal(), rng.normal(size=64)) for _ in range(4000)]
    assert min(p) >= 1 / 65
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.012)


def test_bootstrap_keeps_clusters_whole():
    rows, labels = resample_clusters(["a", "a", "b", "b", "b", "c"], np.random.default_rng(0))
    assert len(set(labels.tolist())) == 3
    for label in set(labels.tolist()):
        assert tuple(rows[labels == label]) in {(0, 1), (2, 3, 4), (5,)}


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([1.0, 2.0], ["a"], "2 values but 1"),
        ([1.0, 2.0], ["a", "a"], "not enough"),
        ([1.0, math.nan], ["a", "b"], "not a finite"),
    ],
)
def test_values_that_cannot_be_averaged(values, clusters, message):
    with pytest.raises(UserError, match=message):
        cluster_mean(values, clusters)
