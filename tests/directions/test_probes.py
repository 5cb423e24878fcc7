"""The batched solvers are scikit-learn's; probes recover what is planted and never see held-out rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from condmis_interp.directions import fit_probes, probe_test, selectivity, sparse_logistic, text_rows
from condmis_interp.directions.gram import shrinkage
from condmis_interp.directions.logistic import accelerated, newton
from condmis_interp.errors import CheckError, UserError
from condmis_interp.stats import auroc, grouped_folds
from nulls import null_rows


def problem(n=60, width=150, separation=3.0, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, width)), rng.integers(0, 2, n)
    x[:, 0] += separation * y
    return x, y


def planted_rows(effect=4.0, families=16, width=40, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return null_rows(rng, families=families, width=width, effect=effect, **kwargs)


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 1.0, 100.0])
@pytest.mark.parametrize(("width", "separation"), [(20, 0.0), (150, 3.0)])
def test_both_solvers_find_scikit_learns_optimum(strength, width, separation):
    x, y = problem(width=width, separation=separation)
    expected = LogisticRegression(C=strength, tol=1e-10, max_iter=100_000).fit(x, y)
    gram, labels = torch.from_numpy(x @ x.T), torch.from_numpy(y).double()
    one = newton(torch.stack([gram, gram]), torch.stack([labels, 1 - labels]), strength).checked("newton")
    torch.testing.assert_close(one.dual[0], -one.dual[1], atol=1e-6, rtol=1e-3)
    many = accelerated(gram, torch.stack([labels, 1 - labels], 1), strength).checked("accelerated")
    for dual, bias in ((one.dual[0], one.bias[0]), (many.dual[:, 0], many.bias[0])):
        w = x.T @ dual.numpy()
        assert np.linalg.norm(w - expected.coef_[0]) < 1e-3 * np.linalg.norm(w)
        assert float(bias) == pytest.approx(expected.intercept_[0], abs=1e-3 * max(1, np.linalg.norm(w)))
    torch.testing.assert_close(many.dual[:, 1], -many.dual[:, 0], atol=1e-6, rtol=1e-3)
    assert float(one.dual[0].sum()) == pytest.approx(0, abs=1e-9)


def test_solvers_say_when_they_have_not_converged():
    x, y = problem()
    gram, labels = torch.from_numpy(x @ x.T), torch.from_numpy(y).double()
    for fit in (newton(gram[None], labels[None], 1.0, limit=2), accelerated(gram, labels[:, None], 1.0, limit=2)):
        assert not fit.converged
        with pytest.raises(CheckError, match=r"C = 1: logistic regression stopped after 2 iterations with a residual"):
            fit.checked("C = 1")


def test_shrinkage_is_ledoit_and_wolfs():
    x = problem(n=40, width=30)[0]
    centred = torch.from_numpy(x - x.mean(0))
    gram = centred @ centred.T
    found = shrinkage(torch.stack([gram, torch.zeros_like(gram)]), torch.tensor([30, 30]))
    np.testing.assert_allclose(found, [ledoit_wolf(x)[1], 1], rtol=1e-9)


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_the_residual_is_true_where_one_dimension_dwarfs_the_others(strength):
    rows = planted_rows(effect=2.0, layers=1, width=300)
    rows.x[..., 0] += 1000 + 100 * torch.randn(rows.x.shape[:-1], generator=torch.Generator().manual_seed(0))
    folds = grouped_folds(rows.families, 3, np.random.default_rng(0))
    fits = fit_probes(rows, folds, method="logistic", strength=strength, massive="keep")
    for k in range(3):
        train = folds != k
        x, t = rows.flat[0].double().numpy()[train], rows.labels[train]
        x = x - x.mean(0)
        scale = np.sqrt(np.square(x).mean())
        w = fits.vectors[0, k].numpy() * scale
        f = x @ w / scale
        b = brentq(lambda b, f=f, t=t: (t - expit(f + b)).sum(), -1e3, 1e3, xtol=1e-12)
        error = t - expit(f + b)
        dual = np.linalg.lstsq(x.T / scale, w)[0]
        assert np.abs((dual - dual.mean()) / strength - error).max() < 1e-3 * np.abs(error).max()


@pytest.mark.parametrize("method", ["means", "lda", "logistic"])
def test_every_probe_is_what_scikit_learn_fits_without_the_fold(method):
    rows = planted_rows(effect=2.0, layers=2)
    folds = grouped_folds(rows.families, 3, np.random.default_rng(0))
    assert len(set(np.bincount(folds))) > 1  # folds of unequal size, side by side
    fits = fit_probes(rows, folds, method=method, strength=0.05)
    for i, (layer, position) in enumerate(rows.sites):
        scores = np.empty(rows.n)
        for k in range(3):
            train = folds != k
            x = rows.flat[i].double().numpy()
            mean = x[train].mean(0)
            scale = np.sqrt(np.square(x[train] - mean).mean())
            z, y = (x - mean) / scale, rows.labels
            if method == "logistic":
                w = LogisticRegression(C=0.05, tol=1e-9, max_iter=10_000).fit(z[train], y[train]).coef_[0]
            elif method == "lda":
                s = ledoit_wolf(z[train], assume_centered=True)[1]
                total = z[train].T @ z[train] / train.sum()
                within = (
                    sum(np.cov(z[train & (y == c)].T, bias=True) * (train & (y == c)).sum() for c in (0, 1))
                    / train.sum()
                )
                ridge = s / (1 - s) * np.trace(total) / z.shape[1]  # the total covariance's tau, within-class metric
                w = np.linalg.solve(
                    within + ridge * np.eye(z.shape[1]), z[train & (y == 1)].mean(0) - z[train & (y == 0)].mean(0)
                )
            else:
                w = z[train & (y == 1)].mean(0) - z[train & (y == 0)].mean(0)
            own = fits.direction(layer, position, k)
            assert own.vector.double().numpy() @ w / np.linalg.norm(w) > 0.9999
            high, low = ((z[train & (y == c)] @ w).mean() for c in (1, 0))
            scores[~train] = (z[~train] @ w - (high + low) / 2) / (high - low)
            assert own.scale == pytest.approx((high - low) / np.linalg.norm(w) * scale, rel=1e-2)
        np.testing.assert_allclose(fits.scores[i], scores, atol=5e-3)
        assert fits.auroc[i] == pytest.approx(float(auroc(scores, rows.labels)), abs=2e-3)
    assert fits.residual <= 1e-4


def test_the_lda_probe_is_scikit_learns_discriminant():
    rows = planted_rows(effect=1.0, layers=1, width=10, families=40)
    folds = grouped_folds(rows.families, 2, np.random.default_rng(0))
    w = fit_probes(rows, folds, method="lda").vectors[0, 0].numpy()
    x, y = rows.flat[0].double().numpy()[folds != 0], rows.labels[folds != 0]
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y).coef_[0]
    assert w @ expected / np.linalg.norm(w) / np.linalg.norm(expected) > 0.98


@pytest.mark.parametrize("method", ["means", "lda", "logistic"])
@pytest.mark.parametrize("massive", ["drop", "keep"])
def test_garbage_in_held_out_rows_changes_no_direction(method, massive):
    rows = planted_rows(effect=2.0)
    folds = grouped_folds(rows.families, 4, np.random.default_rng(0))
    clean = fit_probes(rows, folds, method=method, massive=massive)
    x = rows.x.clone()
    x[:, :, torch.from_numpy(folds == 2)] = 1e6 * torch.randn(
        x[:, :, torch.from_numpy(folds == 2)].shape, generator=torch.Generator().manual_seed(0)
    )
    labels = np.where(folds == 2, 1 - rows.labels, rows.labels)
    spoilt = fit_probes(replace(rows, x=x, labels=labels), folds, method=method, massive=massive)
    assert torch.equal(spoilt.vectors[:, 2], clean.vectors[:, 2])
    assert (spoilt.gaps[:, 2] == clean.gaps[:, 2]).all()
    assert not torch.equal(spoilt.vectors[:, 1], clean.vectors[:, 1]), "the mutation did nothing"


@pytest.mark.parametrize("value", [3.7, np.nan, np.inf])
def test_a_site_whose_rows_are_all_the_same_or_not_finite_is_refused(value):
    rows = planted_rows(layers=3)
    rows.x[1] = value
    folds = grouped_folds(rows.families, 4, np.random.default_rng(0))
    with pytest.raises(CheckError, match="training rows of a mean square"):
        fit_probes(rows, folds)


def test_garbage_in_held_out_rows_changes_no_choice():
    rows = planted_rows(effect=0.6, layers=4, families=12)
    folds = grouped_folds(rows.families, 4, np.random.default_rng(0))
    clean = probe_test(rows, folds, rng=np.random.default_rng(1), permutations=0)
    x = rows.x.clone()
    x[:, :, torch.from_numpy(folds == 1)] *= -1e5
    spoilt = probe_test(replace(rows, x=x), folds, rng=np.random.default_rng(1), permutations=0)
    assert spoilt.chosen.loc[1].equals(clean.chosen.loc[1])
    assert not spoilt.chosen.equals(clean.chosen), "the mutation did nothing"


def test_a_planted_class_is_found_and_no_class_is_not():
    rng = np.random.default_rng(0)
    rows = planted_rows(effect=1.2, layers=3)
    folds = grouped_folds(rows.families, 4, rng)
    found = probe_test(rows, folds, rng=rng, permutations=99)
    assert found.p.p == pytest.approx(0.01)
    assert found.auroc > 0.8
    assert found.gap.low > 0.2
    assert "AUROC" in repr(found)
    assert len(found.to_pandas()) == rows.n
    assert found.figure().data
    assert (found.by_site.auroc > found.by_site.null_95).all()
    nothing = null_rows(np.random.default_rng(5), families=16)
    assert probe_test(nothing, folds, rng=rng, permutations=99, method="means").p.p > 0.05


def test_scores_are_in_class_gaps():
    rows = planted_rows(effect=6.0, layers=1)
    found = probe_test(rows, grouped_folds(rows.families, 4, np.random.default_rng(0)), rng=np.random.default_rng(0),
                       permutations=0, method="means")  # fmt: skip
    assert found.gap.mean == pytest.approx(1, abs=0.15)
    assert found.scores[rows.labels == 1].mean() == pytest.approx(0.5, abs=0.1)
    assert found.p is None


def test_a_massive_dimension_is_left_out_and_named():
    rows = planted_rows(effect=3.0, layers=1)
    x = rows.x.clone()
    x[..., 7] = 500 + 400 * torch.randn(x.shape[:-1], generator=torch.Generator().manual_seed(0))
    rows = replace(rows, x=x)
    folds = grouped_folds(rows.families, 4, np.random.default_rng(0))
    dropped, kept = (fit_probes(rows, folds, method="means", massive=m) for m in ("drop", "keep"))
    assert dropped.massive == ((7,),)
    assert float(dropped.vectors[..., 7].abs().max()) == 0
    assert dropped.auroc[0] > kept.auroc[0] + 0.2


def test_memory_of_questions_shows_in_the_control_task():
    rows = planted_rows(effect=1.0, layers=1, families=30)
    s = selectivity(rows, layer=0, position="answer_mean", rng=np.random.default_rng(0), tasks=8)
    assert s.control.mean() > 0.55, "rows of a question on both sides of a fold are remembered"
    assert s.selectivity == pytest.approx(s.task - s.control.mean())
    apart = rows.where(rows.labels == 1)
    with pytest.raises(UserError, match="one row alone"):
        selectivity(apart, layer=0, position="answer_mean", rng=np.random.default_rng(0))


def test_the_text_baseline_reads_words_and_only_words():
    rows = planted_rows(effect=3.0, layers=1)
    folds = grouped_folds(rows.families, 4, np.random.default_rng(0))
    same = [f"question {q} please" for q in rows.questions]
    cued = [f"{t} code" if y else f"{t} prose" for t, y in zip(same, rows.labels, strict=True)]
    settings = {"rng": np.random.default_rng(0), "permutations": 0, "strengths": (1.0,), "massive": "keep"}
    assert probe_test(text_rows(rows, same), folds, **settings).auroc == pytest.approx(0.5, abs=0.01)
    assert probe_test(text_rows(rows, cued), folds, **settings).auroc > 0.99
    perplexity = {"log perplexity": rows.labels * 2.0}
    assert probe_test(text_rows(rows, same, columns=perplexity), folds, **settings).auroc > 0.99
    with pytest.raises(UserError, match="2 texts for"):
        text_rows(rows, same[:2])


def test_an_l1_probe_uses_few_dimensions():
    rows = planted_rows(effect=0.0, layers=1)
    x = rows.x.clone()
    x[..., 3] += 8 * torch.from_numpy(rows.labels).float()
    d = sparse_logistic(replace(rows, x=x), layer=0, position="answer_mean", strength=0.1,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert int((d.vector != 0).sum()) < 10
    assert int(d.vector.abs().argmax()) == 3


def test_folds_that_leak_are_refused():
    rows = planted_rows(layers=1)
    with pytest.raises(CheckError, match="lies in folds"):
        fit_probes(rows, np.arange(rows.n) % 4)
    with pytest.raises(UserError, match=r"`method` takes one of .*, not the text 'svm'"):
        fit_probes(rows, grouped_folds(rows.families, 4, np.random.default_rng(0)), method="svm")
