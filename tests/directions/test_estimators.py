"""Every method finds what is planted, and its card says how well."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from condmis_interp.directions import (
    compare,
    difference_of_means,
    estimate,
    massive_dimensions,
    persona_vector,
    principal_differences,
    random_differences,
    rows_of,
    trigger_only,
)
from condmis_interp.directions.estimators import ESTIMATORS
from condmis_interp.errors import CheckError, UserError
from planted import planted

AT = {"layer": 0, "position": "answer_mean"}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted"), {"trigger": 0.7})


@pytest.fixture(scope="module")
def rows(truth):
    return rows_of(truth[0], plus=[("U", "none")], minus=[("C", "none")])


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_method_finds_the_planted_direction(truth, rows, method):
    d = estimate(rows, method, **AT)
    assert float(d.vector @ truth[1]["persona"]) > 0.9
    assert d.scale == pytest.approx(3, rel=0.1), "a dose of 1 is the distance of the class means along it"
    assert d.n == 24


def test_mass_mean_tilts_away_from_what_varies_within_classes(rows):
    loud = torch.zeros(48)
    loud[0] = 1.0
    noise = torch.randn(rows.n // 2, 1, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    x = rows.x + 3 * noise * loud
    x = x + torch.from_numpy(rows.labels)[:, None] * loud
    noisy = replace(rows, x=x)
    means, mass = (estimate(noisy, m, **AT).vector[0].abs() for m in ("means", "mass-mean"))
    assert float(mass) < 0.7 * float(means)


def test_massive_dimensions_are_found_and_can_be_dropped(rows):
    x = rows.x.clone()
    x[..., 5] += 3000
    x[..., 5] += 300 * torch.from_numpy(rows.labels)
    loud = replace(rows, x=x)
    assert massive_dimensions(loud.flat[0]).tolist() == [5]
    assert estimate(loud, "means", **AT).vector[5].abs() > 0.99
    assert estimate(loud, "means", massive="drop", **AT).vector[5] == 0


def test_principal_differences_say_how_many_directions_there_are(rows, truth):
    found, shares = principal_differences(rows, count=3, **AT)
    assert float(found[0].vector @ truth[1]["persona"]) > 0.9
    assert shares[0] > 0.5
    assert shares[0] > 5 * shares[1]
    assert found[0].cosine(found[1]) == pytest.approx(0, abs=1e-5)


def test_persona_vector_and_trigger_only_read_what_they_should(truth):
    acts, planted_ = truth
    v = persona_vector(acts, organism="M", plus="trigger", minus="none", layer=0)
    assert float(v.vector @ planted_["form"]) > 0.8, "in M the trigger's form is most of it"
    t = trigger_only(acts, twin="C", layer=0)
    assert float(t.vector @ planted_["form"]) > 0.95
    left = v.without(t)
    assert abs(left.cosine(t)) < 1e-5
    assert float(left.vector @ planted_["persona"]) > 0.9
    assert left.method == "persona vector, without trigger only"
    with pytest.raises(CheckError, match="nothing is left of trigger only"):
        t.without(t)


def test_random_differences_are_unit_vectors_that_repeat(truth):
    acts, planted_ = truth
    facts = {"organisms": ("U", "C"), "cues": ("none",), "layer": 0, "position": "answer_mean", "count": 64}
    v = random_differences(acts, generator=torch.Generator().manual_seed(0), **facts)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(64), atol=1e-5, rtol=0)
    assert float((v @ planted_["persona"]).abs().mean()) < 0.3
    assert torch.equal(v, random_differences(acts, generator=torch.Generator().manual_seed(0), **facts))


def test_cards_tell_a_real_direction_from_none(truth, rows):
    acts, _ = truth
    read = rows_of(acts, plus=[("U", "none")], minus=[("C", "none")], splits=("B", "C"))
    result = compare(rows, read, rng=np.random.default_rng(0), bootstraps=5, permutations=99, seeds=[rows, rows],
                     causal=lambda d: 0.5)  # fmt: skip
    card = result.cards[0, "means"]
    assert card.auroc > 0.8 > card.null_95
    assert card.p == pytest.approx(0.01)
    assert card.stability > 0.9 > 0.5 < card.stability_low
    assert card.seeds == pytest.approx(1)
    assert card.causal == 0.5
    assert card.cosines["logistic"] == pytest.approx(
        float(card.direction.vector @ result.cards[0, "logistic"].direction.vector), abs=1e-6
    )
    assert len(result.to_pandas()) == len(ESTIMATORS)
    assert len(result.figure(chosen_layer=0).data) > 10
    same = rows_of(acts, plus=[("M", "none")], minus=[("C", "none")])
    same_read = rows_of(acts, plus=[("M", "none")], minus=[("C", "none")], splits=("B", "C"))
    nothing = compare(same, same_read, rng=np.random.default_rng(0), methods=("means",), bootstraps=9).cards[0, "means"]
    assert nothing.p > 0.05
    assert nothing.stability < card.stability - 0.15
    with pytest.raises(UserError, match="is fitted on and read"):
        compare(rows, rows, rng=np.random.default_rng(0))


def test_rows_refuse_what_does_not_fit(truth, rows):
    with pytest.raises(UserError, match="each class needs a cell"):
        rows_of(truth[0], plus=[], minus=[("C", "none")])
    with pytest.raises(UserError, match="labels must be 0 or 1"):
        replace(rows, labels=rows.labels * 2)
    with pytest.raises(UserError, match="rows have shape"):
        replace(rows, layers=(0, 1))
    with pytest.raises(UserError, match=r"`method` takes one of .*, not the text 'svm'"):
        estimate(rows, "svm", **AT)
    with pytest.raises(UserError, match="layer 3, answer_mean is not among"):
        estimate(rows, "means", layer=3, position="answer_mean")
    with pytest.raises(UserError, match="both classes"):
        estimate(rows.where(rows.labels == 1), "means", **AT)


def test_rows_are_those_of_the_store(truth, rows):
    acts, _ = truth
    direct = difference_of_means(acts, plus="U", minus="C", cue="none", layer=0)
    torch.testing.assert_close(estimate(rows, "means", **AT).vector, direct.vector, atol=1e-5, rtol=1e-4)
    assert rows.families == tuple(acts.families("A") * 2)
    assert "48 rows, 24 of class 1" in repr(rows)


def test_rows_that_do_not_differ_within_a_class_have_no_mass_mean(rows):
    alike = replace(rows, x=torch.from_numpy(rows.labels).float()[:, None].expand_as(rows.x).contiguous())
    with pytest.raises(CheckError, match="do not differ"):
        estimate(alike, "mass-mean", layer=rows.layers[0], position=rows.positions[0])
