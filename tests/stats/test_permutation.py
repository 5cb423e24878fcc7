"""Permutations keep the design; p-values are exact where they can be."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from condmis_interp.errors import UserError
from condmis_interp.stats import auroc, labellings, permutation_p


def within(units, each=2):
    labels = np.array([1, 0] * each * units)
    return labels, [u for u in range(units) for _ in range(2 * each)]


def test_few_units_are_enumerated_each_once():
    labels, units = within(6)
    found = labellings(labels, units, count=100, rng=np.random.default_rng(0))
    assert found.exhaustive
    assert found.labels.shape == (2**5, 24)
    assert (found.labels[0] == labels).all()
    everything = {tuple(row) for row in found.labels.tolist()}
    assert len(everything) == 2**5
    assert not any(tuple(1 - v for v in row) in everything for row in everything), "a mirror image is there twice"
    assert len(labellings(labels, units, count=100, rng=np.random.default_rng(0), mirrored=False).labels) == 2**6


def test_labels_of_units_are_permuted_and_class_sizes_kept():
    units = [u for u in range(8) for _ in range(3)]
    labels = np.repeat([1, 1, 1, 1, 0, 0, 0, 0], 3)
    found = labellings(labels, units, count=100, rng=np.random.default_rng(0))
    assert found.exhaustive
    assert found.design == "between"
    assert len(found.labels) == math.comb(8, 4) // 2
    assert (found.labels.sum(1) == 12).all()
    drawn = labellings(labels, units, count=20, rng=np.random.default_rng(0))
    assert not drawn.exhaustive
    assert drawn.labels.shape == (21, 24)
    for row in drawn.labels:
        assert all(len(set(row[3 * u : 3 * u + 3].tolist())) == 1 for u in range(8))
    uneven = labellings(np.repeat([1, 0, 0, 0, 0], 2), np.repeat(range(5), 2).tolist(), count=9, rng=drawn_rng())
    assert len(uneven.labels) == 5, "classes of unlike sizes have no mirror images"


def drawn_rng():
    return np.random.default_rng(1)


def test_swaps_keep_every_unit_balanced():
    labels, units = within(30)
    found = labellings(labels, units, count=50, rng=np.random.default_rng(0))
    for row in found.labels:
        for u in range(30):
            own = row[[i for i, v in enumerate(units) if v == u]]
            assert own.tolist() in ([1, 0, 1, 0], [0, 1, 0, 1]), "a unit is swapped as a whole"


def test_designs_without_a_permutation_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="unit 'b' mixes the classes"):
        labellings(np.array([1, 0, 1, 1, 0]), ["a", "a", "b", "b", "b"], count=9, rng=rng)
    with pytest.raises(UserError, match="unit 'a' mixes the classes"):
        labellings(np.array([1, 0, 1, 1]), ["a", "a", "b", "b"], count=9, rng=rng)
    with pytest.raises(UserError, match="both must occur"):
        labellings(np.ones(4), list("aabb"), count=9, rng=rng)


def test_p_values_count_the_observed_labelling():
    rng = np.random.default_rng(0)
    p = permutation_p(np.array([3.0, 1, 2, 3, 0]), exhaustive=True, rng=rng)
    assert p.p == pytest.approx(2 / 5)
    assert p.least == pytest.approx(1 / 5)
    assert 0 <= p.randomised <= 2 / 5
    assert p.attainable(0.05) == 0, "no test at 5 % can reject with five labellings"
    assert permutation_p(np.arange(35.0), exhaustive=True, rng=rng).attainable(0.05) == pytest.approx(1 / 35)
    with pytest.raises(UserError, match="finite"):
        permutation_p(np.array([np.nan, 1.0]), exhaustive=True, rng=rng)


def test_randomised_p_values_are_uniform_under_heavy_ties():
    rng = np.random.default_rng(0)
    p = [permutation_p(rng.integers(0, 3, 20).astype(float), exhaustive=True, rng=rng).randomised for _ in range(4000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.011)


def test_auroc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (4, 30)).astype(float)
    labels = rng.integers(0, 2, 30)
    expected = [roc_auc_score(labels, s) for s in scores]
    np.testing.assert_allclose(auroc(scores, labels), expected, atol=1e-12)
    assert np.isnan(auroc(scores, np.zeros(30))).all()
