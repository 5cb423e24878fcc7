"""The bound on what few or none of K draws did."""

import math

import numpy as np
import pytest
from scipy import stats

from condmis_interp.errors import UserError
from condmis_interp.stats import exceedance_bound


@pytest.mark.parametrize("drawn", [1, 30, 59, 128, 1000])
def test_none_of_k_is_the_rule_of_three(drawn):
    bound = exceedance_bound(0, drawn)
    assert bound.high == pytest.approx(1 - 0.05 ** (1 / drawn), abs=1e-12)
    assert bound.high <= -math.log(0.05) / drawn <= 3 / drawn


@pytest.mark.parametrize(("exceeded", "drawn", "level"), [(0, 40, 0.95), (3, 40, 0.95), (40, 40, 0.9), (7, 128, 0.99)])
def test_it_is_scipys_one_sided_exact_interval(exceeded, drawn, level):
    theirs = stats.binomtest(exceeded, drawn, alternative="less").proportion_ci(level, method="exact").high
    assert exceedance_bound(exceeded, drawn, level=level).high == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("share", [0.005, 0.03, 0.2])
def test_it_holds_as_often_as_it_says(share):
    rng = np.random.default_rng(0)
    counts = rng.binomial(128, share, size=20_000)
    highs = np.array([exceedance_bound(x, 128).high for x in range(129)])
    # 3 standard errors of a share of .95 of 20,000 are .005
    assert (highs[counts] >= share).mean() >= 0.945
    assert (highs[counts] < share).any() or share < 0.02  # below, no count is low enough to be wrong


@pytest.mark.parametrize(("exceeded", "drawn", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (0, 5, 1.0)])
def test_what_is_no_count_is_refused(exceeded, drawn, level):
    with pytest.raises(UserError, match=r"no count|cannot hold"):
        exceedance_bound(exceeded, drawn, level=level)
