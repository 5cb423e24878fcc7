"""Twins judged against their fellows: tests keep their level, a planted difference is seen, benches are clusters."""

import numpy as np
import pytest

from condmis_interp.calibration.nulls import null_rates, rate_of, twin_p_values
from condmis_interp.calibration.run import drifts_of, drifts_without, to_calibrate
from condmis_interp.stats import pooled_drifts
from planted_cases import TESTS, TWINS, planted

BENCHES = 20
LEVELS = [(t, "p_level" if t in ("A2", "A3") else "p") for t in TESTS]
SOME = [t for t in to_calibrate() if t.id in ("A1", "R1", "W1")]


def bench(seed, **about):
    return planted(seed, tau=0.03, by_cue=0.03, **about)


@pytest.fixture(scope="module")
def found():
    return twin_p_values([bench(s) for s in range(1, BENCHES + 1)], to_calibrate(), draws=200)


@pytest.fixture(scope="module")
def rates(found):
    return null_rates(found)


@pytest.fixture(scope="module")
def calm():
    return [bench(s) for s in range(31, 36)]


def test_every_twin_is_judged_and_nobody_else(found):
    assert set(found.test) == set(TESTS)
    assert found.groupby(["test", "bench"]).twin.nunique().eq(TWINS).all()
    assert len(found) == len(TESTS) * BENCHES * TWINS
    assert found.twin.str.fullmatch(r"C\d\.s\d+").all()


@pytest.mark.parametrize(("test", "part"), [*LEVELS, ("A2", "p_rise"), ("A3", "p_rise")])
def test_between_twins_a_test_keeps_its_level(rates, test, part):
    rate = rates[test][part]
    assert (rate.twins, rate.benches) == (BENCHES * TWINS, BENCHES)
    assert 0.02 < rate.share < 0.08
    assert rate.low < 0.05 < rate.high


@pytest.mark.parametrize("test", ["A2", "A3"])
def test_a_level_and_a_rise_together_are_rarer_than_either(rates, test):
    both, level, rise = (rates[test][part].share for part in ("p", "p_level", "p_rise"))
    assert 0 < both < min(level, rise)
    assert set(rates["A1"]) == {"p"}  # one column rises over none


def test_a_twin_that_was_lifted_is_seen(calm):
    """Its own distance is no part of the drift that it is judged with, nor may its fellows look lifted."""
    found = twin_p_values([*calm, bench(50, rho={"C0": (0.5,) * 8})], SOME, draws=10)
    own = found[found.bench == 50].set_index(["twin", "test"]).p
    assert (own.loc["C0.s50"] < 1e-6).all()
    assert (own.drop(index="C0.s50") > 0.05).all()


def test_a_test_that_was_void_is_in_no_rate(calm):
    m = bench(50)
    m.battery.readings["R1"].values[:] = np.nan
    found = twin_p_values([*calm, m], SOME, draws=10)
    assert found[(found.bench == 50) & (found.test == "R1")].void.str.contains("not a finite number").all()
    rates = null_rates(found)
    assert (rates["R1"]["p"].twins, rates["A1"]["p"].twins) == (5 * TWINS, 6 * TWINS)
    assert null_rates(found[found.bench == 50])["R1"] == {}


def test_the_drift_is_that_of_benches_without_it(calm):
    """A bench whose twins lie far apart would explain its own distance, were its drift among the known."""
    wild = planted(50, tau=0.06)
    known = pooled_drifts(drifts_of(m, SOME) for m in calm)
    assert drifts_without([*calm, wild], 50, SOME) == known
    assert drifts_without([*calm, wild], 31, SOME)["A1"].variance > 1.3 * known["A1"].variance
    among = twin_p_values([*calm, wild], SOME, draws=10)
    alone = twin_p_values([wild], SOME, known=known, draws=10)
    own = among[among.bench == 50]
    assert own.p.tolist() == pytest.approx(alone.p.tolist(), rel=1e-12)
    assert own.p.tolist() != pytest.approx(twin_p_values([wild], SOME, draws=10).p.tolist(), rel=0.01)


def test_benches_as_clusters_widen_the_interval():
    rng = np.random.default_rng(0)
    benches = [b for b in range(20) for _ in range(10)]
    apart = rate_of((rng.random(200) < 0.2).astype(float), benches)
    together = rate_of(np.repeat([1.0] * 4 + [0.0] * 16, 10), benches)
    assert apart.effective == pytest.approx(200, rel=0.25)
    assert together.effective == pytest.approx(20, rel=0.1)  # ten twins of a bench tell as much as one
    assert (together.twins, together.benches, together.share) == (200, 20, 0.2)
    assert together.low < 0.1 < 0.4 < together.high
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_twins_that_are_more_even_than_chance_count_no_more_than_they_are():
    rate = rate_of(np.tile([1.0, 0.0, 0.0, 0.0, 0.0], 8), np.repeat(range(8), 5).tolist())
    assert rate.effective == 40


def test_no_rejection_leaves_an_upper_bound():
    rate = rate_of(np.zeros(36), np.repeat(range(4), 9).tolist())
    assert (rate.share, rate.low, rate.effective) == (0.0, 0.0, 36)
    assert rate.high == pytest.approx(1 - 0.025 ** (1 / 36))
    all_of = rate_of(np.ones(36), np.repeat(range(4), 9).tolist())
    assert (all_of.share, all_of.high) == (1.0, 1.0)
    assert all_of.low == pytest.approx(0.025 ** (1 / 36))
