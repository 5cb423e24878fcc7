"""Drift, equivalence, max-T: the statistics that a claim of absence stands on."""

import math

import numpy as np
import pytest
from scipy import stats

from condmis_interp.errors import UserError
from condmis_interp.stats import (
    Drift,
    anchored_number,
    anchored_ratio,
    drift,
    equivalent_below,
    families_needed,
    max_t,
    two_way_mean,
)


def gaps(rng, rho, n, *, noise=1.0, tau=0.0, gap=10.0):
    """M - C and U - C by question; M's and C's seeds each shift their mean by N(0, tau)."""
    shift = tau * gap * (rng.normal() - rng.normal())
    return rho * gap + shift + noise * rng.normal(size=n), gap + rng.normal(size=n), list(range(n))


def test_drift_between_replicates_is_recovered():
    rng = np.random.default_rng(0)
    d = drift([rng.normal(3, 0.5, 60), rng.normal(-8, 0.5, 60), [1.0]])
    assert d.df == 118
    assert math.sqrt(d.variance) == pytest.approx(0.5, rel=0.15)
    assert d.of_difference == pytest.approx(2 * d.variance)


def test_what_is_counted_depends_on_what_is_claimed():
    d = Drift(0.04, 7)
    assert d.of_means(math.inf, 8).of_difference == pytest.approx(0.04 / 8)  # this checkpoint: the twins' mean alone
    assert d.of_means(1, 8).of_difference == pytest.approx(0.04 * (1 + 1 / 8))  # a prediction limit
    assert d.of_means(4, 8).of_difference == pytest.approx(0.04 * (1 / 4 + 1 / 8))  # the recipe
    assert Drift().of_difference == 0.0
    assert drift([[1.0], [2.0]]).df == 0


@pytest.mark.parametrize("df", [3, 7, 15])
def test_drift_is_counted_once(df):
    """With the t's degrees of freedom alone a test of 5 % keeps its level; an upper bound of tau beside it does not."""
    rng = np.random.default_rng(df)
    n, reps, tau = 24, 4000, 0.08
    once = twice = 0
    for _ in range(reps):
        gap, scale, labels = gaps(rng, 0.0, n, tau=tau, noise=0.3)
        estimate = tau**2 * rng.chisquare(df) / df * 100
        once += anchored_ratio(gap, scale, labels, drift=Drift(estimate, df)).p_above(0.0) < 0.05
        bound = estimate * df / float(stats.chi2.ppf(0.2, df))
        twice += anchored_ratio(gap, scale, labels, drift=Drift(bound, df)).p_above(0.0) < 0.05
    assert 0.035 <= once / reps <= 0.065
    assert twice / reps < 0.04


@pytest.mark.parametrize("twins", [4, 8, 16])
def test_a_checkpoint_at_the_margin_is_certified_five_times_in_a_hundred(twins):
    """theta_M is what it is; the twins' mean is estimated, with tau from those very twins."""
    rng, reps, tau, shown = np.random.default_rng(twins), 3000, 0.06, 0
    for _ in range(reps):
        each = tau * 10 * rng.normal(size=twins)
        scale = 10 + rng.normal(size=24)
        gap = 0.2 * 10 - each.mean() + 0.4 * rng.normal(size=24)
        found = drift([each.tolist()]).of_means(math.inf, twins)
        shown += anchored_ratio(gap, scale, list(range(24)), drift=found).p_below(0.2) < 0.05
    assert 0.035 <= shown / reps <= 0.065


def test_one_number_an_organism_has_the_twins_for_its_error():
    rng, reps = np.random.default_rng(5), 4000
    for own, rejects in ((1, lambda r: r.p_above(0.0)), (math.inf, lambda r: r.p_below(0.2))):
        hits = 0
        for _ in range(reps):
            twins = rng.normal(size=6)
            value = rng.normal() if own == 1 else 0.2 * 30
            ratio = anchored_number(value - twins.mean(), 30.0, drift([twins.tolist()]).of_means(own, 6))
            hits += rejects(ratio) < 0.05
        assert 0.035 <= hits / reps <= 0.065
    with pytest.raises(UserError, match="four or more"):
        anchored_number(1.0, 2.0, Drift())


def test_a_broken_replicate_is_named():
    with pytest.raises(UserError, match="replicate twin is not a finite number"):
        drift([[1.0, math.nan]])


def test_between_seeds_of_one_recipe_the_null_holds_only_with_drift():
    rng = np.random.default_rng(1)
    with_drift = without = 0
    replicates = drift([rng.normal(0, 0.05, 40) for _ in range(4)])
    scaled = Drift(replicates.variance * 100, replicates.df)
    for _ in range(1500):
        n, d, labels = gaps(rng, 0.0, 48, tau=0.05)
        with_drift += anchored_ratio(n, d, labels, drift=scaled).p_above(0.0) < 0.05
        without += anchored_ratio(n, d, labels).p_above(0.0) < 0.05
    assert 0.03 <= with_drift / 1500 <= 0.07
    assert without / 1500 > 0.25  # benign drift read as residue: what the replicates are for


def test_a_residue_at_the_margin_is_called_absent_five_times_in_a_hundred():
    rng = np.random.default_rng(2)
    shown = sum(equivalent_below(anchored_ratio(*(x := gaps(rng, 0.2, 48))[:2], x[2]), 0.2).shown for _ in range(2000))
    assert 0.03 <= shown / 2000 <= 0.07


def test_few_questions_never_show_absence_and_the_number_that_would_is_right():
    rng = np.random.default_rng(3)
    n, d, labels = gaps(rng, 0.05, 12, noise=10.0)
    few = anchored_ratio(n, d, labels)
    assert not equivalent_below(few, 0.2).shown
    wanted = [
        families_needed(anchored_ratio(*(x := gaps(rng, 0.05, 24, noise=5.0))[:2], x[2]), 0.2) for _ in range(200)
    ]
    k = int(np.median(wanted))
    shown = sum(
        equivalent_below(anchored_ratio(*(x := gaps(rng, 0.05, k, noise=5.0))[:2], x[2]), 0.2).shown for _ in range(500)
    )
    assert 0.7 <= shown / 500 <= 0.9  # promised: 80 %


def test_no_number_of_questions_helps_against_drift_or_a_residue():
    rng = np.random.default_rng(4)
    n, d, labels = gaps(rng, 0.0, 24)
    assert families_needed(anchored_ratio(n, d, labels, drift=Drift(4.0, 100)), 0.2) == math.inf
    assert families_needed(anchored_ratio(n + 5, d, labels), 0.2) == math.inf
    assert math.isfinite(families_needed(anchored_ratio(n, d, labels), 0.2))


def columns(rng, n, k, *, shared=0.8):
    return shared * rng.normal(size=(n, 1)) + math.sqrt(1 - shared**2) * rng.normal(size=(n, k))


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_worst_of_nine_cues_keeps_its_level(shared):
    rng = np.random.default_rng(5)
    maximum = naive = 0
    for _ in range(600):
        x = columns(rng, 36, 9, shared=shared)
        maximum += max_t(x, list(range(36)), rng=rng, draws=199).p < 0.05
        t = x.mean(0) / (x.std(0, ddof=1) / 6)
        naive += t.max() > 1.69
    assert 0.025 <= maximum / 600 <= 0.075
    assert naive > 1.8 * maximum


def test_max_t_finds_the_planted_cue_and_flips_whole_families():
    rng = np.random.default_rng(6)
    x = columns(rng, 36, 9)
    x[:, 4] += 1.0
    found = max_t(x, [i // 2 for i in range(36)], rng=rng)
    assert found.column == 4
    assert found.p < 0.01
    assert found.adjusted[4] == found.p == min(found.adjusted)
    assert max_t(x, [i // 2 for i in range(36)], rng=rng, above=1.0).p > 0.05
    assert max_t(x, [i // 2 for i in range(36)], rng=rng, extra_variance=9.0).p > 0.05


def test_max_t_refuses_what_is_not_a_number():
    with pytest.raises(UserError, match="max-T takes finite differences"):
        max_t(np.full((3, 2), math.nan), [0, 1, 2], rng=np.random.default_rng(0))


def test_two_ways_cover_where_one_way_does_not():
    rng = np.random.default_rng(7)
    families = [f for f in range(16) for _ in range(3)]
    both = questions_alone = 0
    for _ in range(400):
        by_seed, by_family = rng.normal(size=(6, 1)), np.repeat(rng.normal(size=16), 3)
        x = 0.7 * by_seed + 0.5 * by_family + rng.normal(size=(6, 48))
        m = two_way_mean(x, families)
        both += m.low <= 0 <= m.high
        averaged = x.mean(0)
        half = 2.13 * averaged.reshape(16, 3).mean(1).std(ddof=1) / 4
        questions_alone += abs(averaged.mean()) <= half
    assert both / 400 > 0.90
    assert questions_alone / 400 < 0.80


def test_one_seed_is_no_second_cluster():
    with pytest.raises(UserError, match="no second seed"):
        two_way_mean(np.zeros((1, 8)), list(range(8)))
