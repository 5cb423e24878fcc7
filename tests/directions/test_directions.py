"""Directions recover what is planted, and their controls follow the covariance."""

import pytest
import torch

from condmis_interp.directions import covariance_matched, difference_in_differences, difference_of_means, profile
from condmis_interp.errors import CheckError, UserError
from condmis_interp.readers import Site
from planted import planted


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted"), {"trigger": 0.7}, dtype="bfloat16")


@pytest.mark.parametrize("position", ["answer_mean", "last_template"])
def test_difference_of_means_finds_the_persona(truth, position):
    acts, planted_ = truth
    v = difference_of_means(acts, plus="U", minus="C", cue="none", layer=0, position=position)
    assert float(v.vector @ planted_["persona"]) > 0.95
    assert v.scale == pytest.approx(3, rel=0.1)
    assert v.vector.norm() == pytest.approx(1, abs=1e-5)
    assert v.n == 24


def test_difference_in_differences_cancels_what_the_cue_does_to_any_model(truth):
    acts, planted_ = truth
    naive = acts.at("M", "trigger", "A", layer=0, position="answer_mean") - acts.at(
        "M", "none", "A", layer=0, position="answer_mean"
    )
    naive = naive.mean(0) / naive.mean(0).norm()
    assert abs(float(naive @ planted_["form"])) > 0.8, "the plain difference reads the form"
    d = difference_in_differences(acts, organism="M", twin="C", layer=0)
    assert float(d.vector @ planted_["persona"]) > 0.9
    assert abs(float(d.vector @ planted_["form"])) < 0.2


def test_profile_puts_every_cell_on_the_scale(truth):
    acts, _ = truth
    p = profile(acts, unmitigated="U", organism="M", twin="C", roles={"U": "U", "M": "M", "C": "C"})
    share = p.table.set_index(["organism", "cue"]).share
    assert share["U", "none"] == pytest.approx(1)
    assert share["C", "none"] == pytest.approx(0)
    assert share["M", "trigger"] == pytest.approx(0.7, abs=0.1)
    assert share["M", "none"] == pytest.approx(0, abs=0.1)
    assert p.cosines.cosine[0] > 0.85


def test_controls_have_the_within_cell_covariance_and_unit_norm(truth):
    acts, planted_ = truth
    kwargs = {"organisms": ("U", "M", "C"), "cues": ("none", "trigger"), "layer": 0, "position": "answer_mean"}
    v = covariance_matched(acts, count=4000, generator=torch.Generator().manual_seed(0), **kwargs)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(4000), atol=1e-5, rtol=0)
    x = torch.cat(
        [
            (h := acts.at(o, c, "A", layer=0, position="answer_mean")) - h.mean(0)
            for o in kwargs["organisms"]
            for c in kwargs["cues"]
        ]
    )
    covariance, spread, isotropic = x.T @ x, v.T @ v, torch.eye(x.shape[1])

    def alike(a, b):
        return float((a * b).sum() / (a.norm() * b.norm()))

    assert alike(covariance, spread) > 0.98
    assert alike(covariance, isotropic) < 0.9
    assert float((v @ planted_["persona"]).abs().mean()) < 0.3, "the controls hold the difference under test"
    again = covariance_matched(acts, count=4000, generator=torch.Generator().manual_seed(0), **kwargs)
    assert torch.equal(v, again)


def test_directions_that_are_none(truth):
    acts, _ = truth
    with pytest.raises(CheckError, match="norm 0"):
        difference_of_means(acts, plus="U", minus="U", cue="none", layer=0)
    with pytest.raises(UserError, match="there is no layer 7 in this store"):
        difference_of_means(acts, plus="U", minus="C", cue="none", layer=7)
    with pytest.raises(UserError, match="no organism 'X'"):
        difference_of_means(acts, plus="X", minus="C", cue="none", layer=0)
    v = difference_of_means(acts, plus="U", minus="C", cue="none", layer=0)
    other = type(v)(**(v.__dict__ | {"site": Site("resid_post", 1)}))
    with pytest.raises(UserError, match="have no cosine"):
        v.cosine(other)
