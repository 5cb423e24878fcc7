"""Folds keep groups whole, and labels play no part in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condmis_interp.errors import CheckError, UserError
from condmis_interp.stats import check_folds, grouped_folds


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=5, max_size=20), st.integers(2, 5), st.integers(0, 2**31))
def test_a_group_lies_in_one_fold_and_folds_are_balanced(sizes, count, seed):
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    folds = grouped_folds(groups, count, np.random.default_rng(seed))
    check_folds(folds, groups)
    filled = np.bincount(folds, minlength=count)
    assert filled.min() > 0
    assert filled.max() - filled.min() <= max(sizes)


def test_the_order_of_rows_does_not_matter():
    groups = [f"g{i % 7}" for i in range(21)]
    folds = grouped_folds(groups, 3, np.random.default_rng(0))
    by_group = dict(zip(groups, folds.tolist(), strict=True))
    again = grouped_folds(sorted(groups, key=groups.index), 3, np.random.default_rng(0))
    assert [by_group[g] for g in sorted(groups, key=groups.index)] == again.tolist()


def test_folds_that_part_a_group_are_found():
    with pytest.raises(CheckError, match="group 'a' lies in folds 0 and 1"):
        check_folds(np.array([0, 1, 1]), ["a", "a", "b"])
    with pytest.raises(UserError, match="2 groups cannot be dealt into 3 folds"):
        grouped_folds(["a", "b"], 3, np.random.default_rng(0))
