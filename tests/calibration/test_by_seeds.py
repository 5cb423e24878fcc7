"""Verdicts on several seeds: means over benches, drift that falls, and what may not be pooled."""

from dataclasses import replace

import numpy as np
import pytest
from test_calibration import planted

from condmis_interp.calibration.by_seeds import by_seeds, groups, judge_together, together
from condmis_interp.calibration.run import to_calibrate
from condmis_interp.errors import CheckError


@pytest.fixture(scope="module")
def drifting():
    return [planted(s, tau=0.05) for s in range(4, 16)]


def test_a_group_is_the_mean_of_its_benches_and_shares_no_seed(drifting):
    found = groups(drifting, 3)
    assert len(found) == 4
    for group in found:
        seeds = [s for m in group for s in m.study.seeds]
        assert len(seeds) == len(set(seeds)) == 6
    one = together(found[0])
    for test in to_calibrate():
        each = [m.battery.readings[test.id].at("locked") for m in found[0]]
        assert one.battery.readings[test.id].at("locked") == pytest.approx(np.mean(each, 0))


def test_more_seeds_certify_more_and_call_nothing_wrong(drifting):
    table = by_seeds(drifting, delta=0.2, sizes=(1, 3)).set_index(["truth", "seeds"])
    assert table.loc[("removed", 3), "removed"] > table.loc[("removed", 1), "removed"] + 0.2
    assert table.loc[("suppressed", 3), "removed"] == 0
    assert table.loc[("removed", 3), "n"] == 4 * table.loc[("removed", 1), "n"] / 12


def test_one_seed_a_verdict_is_the_calibration_with_drift_of_the_same_benches(drifting):
    assert len(judge_together(drifting, 1, delta=0.2, draws=50)) == sum(len(m.study.cases) for m in drifting)
    assert by_seeds(drifting[:2], delta=0.2, sizes=(3,)).empty


def test_benches_that_share_a_seed_are_not_pooled(drifting):
    with pytest.raises(CheckError, match="seed 5 is on two benches of a group"):
        together(drifting[:2])


def test_benches_with_other_organisms_are_not_pooled(drifting):
    other = drifting[2]
    readings = {k: replace(r, names=tuple(reversed(r.names))) for k, r in other.battery.readings.items()}
    with pytest.raises(CheckError, match="the bench of seed 6 holds other organisms"):
        together([drifting[0], replace(other, battery=replace(other.battery, readings=readings))])
