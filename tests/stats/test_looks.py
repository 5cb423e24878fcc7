"""Looks: several of them keep the level of one."""

import math

import numpy as np
import pytest
from scipy import stats

from condmis_interp.errors import UserError
from condmis_interp.stats import LOOKS, drift, look_of, nominal_level


def test_the_boundary_is_pococks():
    # information in equal steps, three looks, one-sided .05: nominal .0232 (Jennison & Turnbull 2000, table 2.1 for .10
    # two-sided)
    assert nominal_level((1, 2, 3)) == pytest.approx(0.0232, abs=3e-4)
    assert nominal_level((8,)) == 0.05
    assert 0.05 / 3 < nominal_level(LOOKS) < nominal_level(LOOKS[:2]) < 0.05
    assert [look_of(k) for k in (0, 3, 4, 7, 8, 16, 40)] == [0, 0, 4, 4, 8, 16, 16]
    for wrong in ((), (4, 4), (0, 4), (8, 4)):
        with pytest.raises(UserError, match="do not ascend"):
            nominal_level(wrong)


@pytest.mark.parametrize(("own", "high"), [(math.inf, 0.06), (1, 0.055)])
def test_looking_after_4_8_and_16_twins_rejects_five_times_in_a_hundred(own, high):
    """The worst case: no questions, so the twins' mean is all the error. tau is estimated anew at every look."""
    rng, reps, level = np.random.default_rng(0), 6000, nominal_level()
    twins = rng.normal(size=(reps, LOOKS[-1]))
    seed = rng.normal(size=reps) if own == 1 else np.zeros(reps)
    rejected, naive = np.zeros(reps, dtype=bool), np.zeros(reps, dtype=bool)
    for n in LOOKS:
        for i in range(reps):
            d = drift([twins[i, :n].tolist()]).of_means(own, n)
            p = stats.t.sf((seed[i] - twins[i, :n].mean()) / math.sqrt(d.of_difference), d.df)
            rejected[i] |= p < level
            naive[i] |= p < 0.05
    assert 0.03 <= rejected.mean() <= high
    assert naive.mean() > rejected.mean() + 0.02
