"""Twins judged against twins: the tests keep their level, a planted difference is seen, errors count seeds."""

from dataclasses import dataclass

import numpy as np
import pytest

from condmis_interp.battery import Battery, Cast, Readings, registered
from condmis_interp.calibration.nulls import _rate, joined, null_rates, seed_of, twin_pairs
from condmis_interp.calibration.world import Measured

TESTS = registered("A1", "A2", "A3")
QUESTIONS = 36


@dataclass(frozen=True)
class Bench:
    """What is read of a study."""

    seed: int
    seeds: frozenset[int]
    casts: dict[str, Cast]
    replicates: tuple[tuple[str, ...], ...]


def bench(seed: int, *, twins: int = 4, tau: float = 0.03, lifted: float = 0.0) -> Measured:
    """Replicate twins of seeds of their own, that differ by drift and question noise; `lifted` raises the first."""
    rng = np.random.default_rng(seed)
    group = tuple(f"C.s{100 * seed + k}" for k in range(twins))
    names = (*group, "u", "cu")
    drift = {n: tau * rng.normal() for n in group} | {"u": 1.0, "cu": 0.0}
    drift[group[0]] += lifted
    readings = {}
    for test in TESTS:
        columns = {"A1": ("x",), "A2": ("none", "a", "b", "c"), "A3": ("none", *map(str, range(20)))}[test.id]
        noise = rng.normal(0, 0.05, (len(names), len(columns), QUESTIONS))
        level = np.array([drift[n] for n in names])[:, None, None]
        readings[test.id] = Readings(names, columns, 14 * (level + noise), np.arange(QUESTIONS))
    seeds = frozenset(int(seed_of(n)) for n in group)
    study = Bench(100 * seed, seeds, {"m": Cast(group[0], group[1], "u", "cu")}, (group,))
    families = tuple(f"f{i}" for i in range(QUESTIONS))
    return Measured(study, Battery(readings, {}, families))


@pytest.fixture(scope="module")
def rates():
    return null_rates(twin_pairs([bench(s) for s in range(1, 31)], TESTS, draws=200))


@pytest.mark.parametrize(("test", "part"), [("A1", "p"), ("A2", "p_level"), ("A3", "p_level")])
def test_between_twins_a_test_keeps_its_level(rates, test, part):
    rate = rates[test][part]
    assert rate.pairs == 360
    assert 0.02 < rate.share < 0.08
    assert rate.low < 0.05 < rate.high


@pytest.mark.parametrize("test", ["A2", "A3"])
def test_a_level_and_a_rise_together_are_rarer_than_either(rates, test):
    assert rates[test]["p"].share <= min(rates[test]["p_level"].share, rates[test]["p_rise"].share)
    assert set(rates["A1"]) == {"p"}


def test_a_twin_that_is_not_like_the_others_is_seen():
    benches = [bench(s) for s in range(1, 9)]
    pairs = twin_pairs([bench(50, lifted=0.5)], TESTS, of_seeds=benches, draws=100)
    own = pairs[(pairs.test == "A1") & (pairs.organism == "C.s5000")]
    assert (own.p < 0.001).all()
    assert (pairs[(pairs.test == "A1") & (pairs.twin == "C.s5000")].p > 0.9).all()


def test_the_drift_is_that_of_benches_without_the_two():
    """A bench whose twins lie far apart would explain its own distance, were its drift used."""
    calm = [bench(s) for s in range(1, 9)]
    pairs = twin_pairs([*calm, bench(50, tau=0.5)], TESTS[:1], draws=10)
    assert (pairs[pairs.bench == 5000].p < 0.05).mean() > 0.3


def test_twins_of_two_benches_are_judged_on_both_with_their_own_readings():
    benches = [bench(s) for s in (1, 2, 3)]
    found = joined(benches)
    assert found[0].study.replicates == (("C.s100", "C.s200"), ("C.s100", "C.s300"))
    for m in found:
        for test in ("A1", "A2", "A3"):
            for a in (100, 200, 300):
                own = benches[a // 100 - 1].battery.readings[test].at(f"C.s{a}")
                assert (m.battery.readings[test].at(f"C.s{a}") == own).all()
    pairs = twin_pairs(found, TESTS, of_seeds=[bench(s) for s in (4, 5, 6)], draws=10)
    assert len(pairs) == 3 * 2 * 2 * 3  # benches, pairs, orders, tests


def test_pairs_that_share_seeds_count_less():
    rng = np.random.default_rng(0)
    apart = [(f"a{i}", f"b{i}") for i in range(200)]
    hits = (rng.random(200) < 0.2).astype(float)
    both = np.concatenate([hits, hits])  # each pair in both orders
    independent = _rate(both, [*apart, *apart])
    assert independent.effective == pytest.approx(200, rel=0.15)
    few = [(f"a{i % 4}", f"b{i}") for i in range(200)]
    of_four = np.repeat([1.0, 0.0, 0.0, 0.0], 50)[np.argsort(np.arange(200) % 4, kind="stable").argsort()]
    clustered = _rate(of_four, few)
    assert clustered.effective < 10
    assert clustered.high - clustered.low > 3 * (independent.high - independent.low)


def test_no_rejection_leaves_an_upper_bound_by_pairs_that_share_no_seed():
    rate = _rate(np.zeros(40), [(f"a{i}", f"b{i}") for i in range(20)] * 2)
    assert (rate.share, rate.low, rate.effective) == (0.0, 0.0, 20)
    assert rate.high == pytest.approx(1 - 0.025 ** (1 / 20))
