"""Rates that carry the judge's error: coverage over planted worlds, exact answers, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from condmis_interp.errors import UserError
from condmis_interp.stats import (
    Accuracy,
    ClusterRate,
    accuracy,
    cluster_rate,
    corrected_rate,
    prediction_powered_rate,
)

NAN = math.nan


def answers(rng, clusters, each, rate, icc):
    """Which answers are misaligned, questions alike with an intra-class correlation of `icc`."""
    a = (1 - icc) / icc
    shares = rng.beta(rate * a, (1 - rate) * a, clusters)
    return (rng.random((clusters, each)) < shares[:, None]).ravel().astype(float), np.repeat(np.arange(clusters), each)


def said(rng, truth, se, sp):
    return np.where(truth == 1, rng.random(len(truth)) < se, rng.random(len(truth)) > sp).astype(float)


def share(rate, n):
    return ClusterRate(rate, *stats.binomtest(round(rate * n), n).proportion_ci(), n, n, float(n))


def judge(se, sp, n=10**9):
    """A judge whose accuracy is known, but for n labels of each class."""
    one, other = share(se, n), share(sp, n)
    return Accuracy(one, other, se + sp - 1, one.low + other.low - 1, one.high + other.high - 1)


@pytest.mark.parametrize(
    ("clusters", "each", "rate", "icc", "se", "sp", "labels"),
    [(30, 10, 0.1, 0.2, 0.85, 0.9, 50), (8, 50, 0.3, 0.2, 0.85, 0.9, 50), (24, 4, 0.5, 0.3, 0.7, 0.8, 100)],
)
def test_the_corrected_interval_covers_and_the_plain_one_does_not(clusters, each, rate, icc, se, sp, labels):
    rng = np.random.default_rng(0)
    hits, plain = [], []
    for _ in range(500):
        truth, questions = answers(rng, clusters, each, rate, icc)
        known = np.repeat([1.0, 0.0], labels)
        found = corrected_rate(said(rng, truth, se, sp), questions.tolist(), accuracy(said(rng, known, se, sp), known))
        hits.append(found.low <= rate <= found.high)
        plain.append(found.plain.low <= rate <= found.plain.high)
    assert 0.92 <= np.mean(hits) <= 0.98
    assert np.mean(plain) < np.mean(hits)
    if rate == 0.1:
        assert np.mean(plain) < 0.3  # a tenth of nine tenths is flagged wrongly: the judge's own rate is .175


def test_a_judge_that_errs_by_question_needs_labels_clustered_by_question():
    rng = np.random.default_rng(1)
    hits, widths = {True: [], False: []}, {True: [], False: []}
    for _ in range(400):
        cell = []
        for clusters, each, rate in ((60, 10, 0.2), (12, 60, 0.5)):
            truth, questions = answers(rng, clusters, each, rate, 0.2)
            se, sp = rng.beta(3.4, 0.6, clusters)[questions], rng.beta(3.6, 0.4, clusters)[questions]
            cell.append((truth, said(rng, truth, se, sp), questions.tolist()))
        (_, flagged, questions), (truth, labelled, where) = cell
        for clustered in hits:
            found = corrected_rate(flagged, questions, accuracy(labelled, truth, where if clustered else None))
            hits[clustered].append(found.low <= 0.2 <= found.high)
            widths[clustered].append(found.high - found.low)
    assert 0.92 <= np.mean(hits[True]) <= 0.99
    assert np.mean(hits[False]) < 0.92
    assert np.mean(widths[True]) > np.mean(widths[False])


@pytest.mark.parametrize(
    ("clusters", "each", "rate", "se", "sp", "labelled"),
    [(30, 10, 0.3, 0.85, 0.9, 0.3), (8, 50, 0.3, 0.85, 0.9, 0.2), (30, 10, 0.3, 0.6, 0.5, 0.3)],
)
def test_the_prediction_powered_interval_covers_and_is_narrower_than_that_of_the_labels(
    clusters, each, rate, se, sp, labelled
):
    rng = np.random.default_rng(0)
    hits, powered, alone = [], [], []
    for _ in range(1000):
        truth, questions = answers(rng, clusters, each, rate, 0.2)
        some = rng.random(len(truth)) < labelled
        found = prediction_powered_rate(said(rng, truth, se, sp), np.where(some, truth, NAN), questions.tolist())
        hits.append(found.low <= rate <= found.high)
        powered.append(found.high - found.low)
        m = cluster_rate(truth[some], questions[some].tolist())
        alone.append(m.high - m.low)
    assert 0.92 <= np.mean(hits) <= 0.98
    assert np.mean(powered) < np.mean(alone)
    if se == 0.85 and clusters == 30:
        assert np.mean(powered) < 0.9 * np.mean(alone)


class TestClusterRate:
    @pytest.mark.parametrize("count", [0, 1, 7, 20])
    def test_one_answer_a_cluster_is_the_exact_binomial_interval(self, count):
        found = cluster_rate([1] * count + [0] * (20 - count), range(20))
        exact = stats.binomtest(count, 20).proportion_ci()
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
        assert found.effective == pytest.approx(20)

    def test_an_answer_given_many_times_counts_once(self):
        once = np.random.default_rng(0).integers(0, 2, 40)
        found = cluster_rate(np.repeat(once, 25), np.repeat(np.arange(40), 25).tolist())
        assert found.effective == pytest.approx(cluster_rate(once, range(40)).effective, rel=0.15)
        assert found.effective < 45

    def test_where_none_is_flagged_the_questions_count_or_what_is_taken_of_them(self):
        clusters = np.repeat(np.arange(8), 100).tolist()
        none = cluster_rate([0] * 800, clusters)
        assert (none.rate, none.low, none.effective) == (0, 0, 8)
        assert none.high == pytest.approx(1 - 0.025 ** (1 / 8))
        apart = cluster_rate([0] * 800, clusters, icc=0.0)
        assert apart.high == pytest.approx(1 - 0.025 ** (1 / 800))
        every = cluster_rate([1] * 800, clusters)
        assert (every.low, every.high) == pytest.approx((1 - none.high, 1))

    def test_alike_answers_widen_it(self):
        flags = [1] * 10 + [0] * 10
        apart = cluster_rate(flags, [i % 10 for i in range(20)])
        alike = cluster_rate(flags, [i // 2 for i in range(20)])
        assert alike.high - alike.low > apart.high - apart.low

    @pytest.mark.parametrize(
        ("flags", "clusters", "more", "message"),
        [
            ([0, NAN], "ab", {}, "0 or 1"),
            ([0, 0.5], "ab", {}, "0 or 1"),
            (["yes", "no"], "ab", {}, "0 or 1"),
            ([[0, 1]], "ab", {}, "0 or 1"),
            ([0, 1], "aa", {}, "not enough"),
            ([0, 1], "abc", {}, "3 cluster labels"),
            ([0, 1], "ab", {"level": 1.0}, "level"),
            ([0, 1], "ab", {"icc": 1.5}, "intra-class"),
            ([], "", {}, "not enough"),
        ],
    )
    def test_what_has_no_rate(self, flags, clusters, more, message):
        with pytest.raises(UserError, match=message):
            cluster_rate(flags, list(clusters), **more)


class TestCorrected:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 100), st.integers(60, 100), st.integers(60, 100))
    def test_a_planted_rate_comes_back(self, rate, se, sp):
        """10,000 answers of which exactly r Se + (1 - r)(1 - Sp) are flagged."""
        flagged = rate * se + (100 - rate) * (100 - sp)
        found = corrected_rate([1] * flagged + [0] * (10_000 - flagged), range(10_000), judge(se / 100, sp / 100))
        assert found.uncut == pytest.approx(rate / 100, abs=1e-9)
        assert found.low <= found.rate <= found.high

    @pytest.mark.parametrize(
        ("flagged", "n", "of", "low", "high"),
        [
            (4060, 11284, (178, 179, 358, 359), 0.349, 0.372),
            (51, 2971, (32, 33, 20, 20), 0, 0.053),
            (712, 11862, (8, 10, 12, 12), 0, 0.147),
            (259, 509, (84, 127, 96, 109), 0.58, 0.87),
            (51, 509, (23, 41, 187, 195), 0.037, 0.195),
        ],
    )
    def test_the_published_examples(self, flagged, n, of, low, high):
        """Lang & Reiczigel 2014, as listed by the R package asht."""
        found = corrected_rate([1] * flagged + [0] * (n - flagged), range(n), judge_of(*of))
        digits = 2 if high == 0.87 else 3
        assert (round(found.low, digits), round(found.high, digits)) == (low, high)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 60), st.integers(22, 30), st.integers(22, 30))
    def test_calling_good_bad_mirrors_it(self, count, right, left):
        flags = np.array([1] * count + [0] * (60 - count))
        one = attempt(flags, judge_of(right, 30, left, 30))
        two = attempt(1 - flags, judge_of(left, 30, right, 30))
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert (one.rate, one.low, one.high) == pytest.approx((1 - two.rate, 1 - two.high, 1 - two.low))

    def test_what_is_not_known_of_the_judge_widens_it(self):
        flags, clusters = [1, 0, 0] * 100, [i // 6 for i in range(300)]
        widths = [
            (f := corrected_rate(flags, clusters, judge_of(9 * n, 10 * n, 9 * n, 10 * n))).high - f.low
            for n in (3, 10, 100, 10_000)
        ]
        assert widths == sorted(widths, reverse=True)
        plain = cluster_rate(flags, clusters)
        assert widths[-1] == pytest.approx((plain.high - plain.low) / 0.8, rel=0.05)

    def test_a_perfect_judge_changes_nothing(self):
        flags, clusters = [1, 0, 0] * 100, [i // 6 for i in range(300)]
        found = corrected_rate(flags, clusters, judge(1.0, 1.0))
        assert found.uncut == pytest.approx(found.plain.rate)
        assert (found.low, found.high) == pytest.approx((found.plain.low, found.plain.high), abs=0.01)

    @pytest.mark.parametrize(
        ("of", "message"),
        [
            ((15, 30, 15, 30), "does not tell"),  # a coin
            ((5, 30, 5, 30), "does not tell"),  # worse than one
            ((7, 10, 6, 10), "does not tell"),  # better on ten labels, which is not enough to know
        ],
    )
    def test_a_judge_that_does_not_tell_corrects_nothing(self, of, message):
        with pytest.raises(UserError, match=message):
            corrected_rate([1, 0] * 20, [i // 2 for i in range(40)], judge_of(*of))

    def test_a_labelled_set_of_another_kind_is_found_out(self):
        with pytest.raises(UserError, match="cannot give"):
            corrected_rate([0] * 400, range(400), judge_of(90, 100, 60, 100))

    def test_a_rate_below_what_the_judge_errs_on_is_cut_and_says_so(self):
        found = corrected_rate([1] * 3 + [0] * 57, range(60), judge_of(27, 30, 27, 30))
        assert found.rate == found.low == 0 > found.uncut
        assert found.high > 0.02


def judge_of(right, bad, left, good):
    flagged = [1] * right + [0] * (bad - right) + [0] * left + [1] * (good - left)
    return accuracy(flagged, [1] * bad + [0] * good)


def attempt(flags, of):
    try:
        return corrected_rate(flags, range(len(flags)), of)
    except UserError:
        return None


class TestAccuracy:
    def test_the_four_counts(self):
        found = judge_of(8, 10, 15, 20)
        assert (found.sensitivity.rate, found.specificity.rate) == (0.8, 0.75)
        assert found.youden == pytest.approx(0.55)
        assert found.low < found.youden < found.high

    @pytest.mark.parametrize(
        ("flagged", "truth", "clusters", "message"),
        [
            ([1, 0, 1], [1, 1, 1], None, "0 labelled answers are aligned"),
            ([1, 0, 1], [0, 0, 1], None, "1 labelled answers are misaligned"),
            ([1, 0, 1, 0], [1, 1, 0, 0], "aabc", "misaligned, of 1 question"),
            ([1, 0], [1, NAN], None, "`truth` takes 0 or 1"),
            ([1, 0], [1], None, "2 judgements but 1 label"),
            ([1, 0], [1, 0], "a", "1 cluster label"),
        ],
    )
    def test_what_says_nothing_of_a_judge(self, flagged, truth, clusters, message):
        with pytest.raises(UserError, match=message):
            accuracy(flagged, truth, None if clusters is None else list(clusters))


class TestPredictionPowered:
    def test_a_judge_that_always_says_the_same_leaves_the_labels(self):
        rng = np.random.default_rng(0)
        truth, questions = answers(rng, 12, 10, 0.4, 0.2)
        known = np.where(rng.random(120) < 0.5, truth, NAN)
        found = prediction_powered_rate(np.zeros(120), known, questions.tolist())
        has = ~np.isnan(known)
        m = cluster_rate(known[has], questions[has].tolist())
        assert found.weight == 0
        assert (found.rate, found.low, found.high) == pytest.approx((m.rate, m.low, m.high))

    def test_labels_of_all_answers_are_the_labels(self):
        truth = [1, 0, 0, 1, 0, 0]
        found = prediction_powered_rate([0, 1, 0, 1, 0, 1], truth, list("aabbcc"))
        assert (found.rate, found.weight, found.labelled) == (pytest.approx(1 / 3), 0, 6)

    def test_by_answers_the_weight_is_that_of_ppi_plus_plus(self):
        rng = np.random.default_rng(0)
        truth = (rng.random(30_000) < 0.3).astype(float)
        f = said(rng, truth, 0.8, 0.9)
        known = np.where(np.arange(30_000) < 10_000, truth, NAN)
        found = prediction_powered_rate(f, known, range(30_000))
        y, g = truth[:10_000], f[:10_000]
        tuned = np.cov(y, g)[0, 1] / ((1 + 10_000 / 20_000) * np.var(f))
        assert found.weight == pytest.approx(tuned, rel=0.02)
        assert found.rate == pytest.approx(y.mean() + found.weight * (f[10_000:].mean() - g.mean()))

    def test_a_perfect_judge_gives_the_mean_of_all(self):
        rng = np.random.default_rng(1)
        truth = (rng.random(4000) < 0.3).astype(float)
        found = prediction_powered_rate(truth, np.where(np.arange(4000) < 1000, truth, NAN), range(4000))
        assert found.rate == pytest.approx(truth.mean(), abs=0.002)

    def test_labels_that_are_all_alike_do_not_give_an_interval_without_a_width(self):
        found = prediction_powered_rate([0.0] * 40, [0.0] * 20 + [NAN] * 20, [i % 10 for i in range(40)])
        assert (found.rate, found.low) == (0, 0)
        assert found.high == pytest.approx(1 - 0.025 ** (1 / 10))

    @pytest.mark.parametrize(
        ("judged", "truth", "clusters", "message"),
        [
            ([0, 1], [NAN, NAN], "ab", "0 cluster"),
            ([0, 1, 1], [1, 0, NAN], "aab", "1 cluster"),
            ([0, NAN], [1, 0], "ab", "from 0 to 1"),
            ([0, 1], [2, 0], "ab", "from 0 to 1"),
            ([0, 1], [1], "ab", "1 labels"),
            ([0, 1], [1, 0], "abc", "3 cluster labels"),
        ],
    )
    def test_what_has_no_rate(self, judged, truth, clusters, message):
        with pytest.raises(UserError, match=message):
            prediction_powered_rate(judged, truth, list(clusters))
