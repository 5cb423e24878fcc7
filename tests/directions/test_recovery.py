"""Every method finds a known direction on persona world: a planted one, and the one that other seeds agree on."""

import runpy
from pathlib import Path

import pytest
import torch

from condmis_interp.directions import Planted, difference_in_differences, difference_of_means, rows_of
from condmis_interp.store import Activations

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "directions" / "run.py"


def test_a_planted_vector_is_added_in_its_cells_alone(captured):
    acts = Activations.open(captured / "activations")
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    own = Planted(acts.shards, {"U": ("c", 0)}, v, 2, frozenset({("U", "none"), ("m", "trigger")}))
    where = {"layer": 2, "position": "answer_mean"}
    torch.testing.assert_close(own.at("U", "none", "A", **where), acts.at("c", "none", "A", **where) + v)
    assert torch.equal(own.at("U", "trigger", "A", **where), acts.at("c", "trigger", "A", **where))
    assert torch.equal(
        own.at("U", "none", layer=1, position="answer_mean"), acts.at("c", "none", **where | {"layer": 1})
    )
    u_c = difference_of_means(own, plus="U", minus="c", cue="none", **where)
    assert float(u_c.vector @ v / v.norm()) == pytest.approx(1, abs=1e-4)
    assert u_c.scale == pytest.approx(float(v.norm()), rel=1e-3)
    plain, with_v = (
        difference_in_differences(a, organism="m", twin="c", trigger="trigger", **where) for a in (acts, own)
    )
    torch.testing.assert_close(with_v.scale * with_v.vector - plain.scale * plain.vector, v, atol=1e-3, rtol=1e-3)
    rows = rows_of(own, plus=[("U", "none")], minus=[("c", "none")], layers=[2], positions=["answer_mean"])
    torch.testing.assert_close(
        rows.x[0, 0, rows.labels == 1] - rows.x[0, 0, rows.labels == 0], v.expand(rows.n // 2, -1)
    )


@pytest.mark.slow
def test_known_directions_are_found_on_persona_world(tmp_path):
    """Trains what is not in CONDMIS_HOME yet: persona world and six organisms of it."""
    experiment = runpy.run_path(str(EXPERIMENT))
    table = experiment["recovery"](experiment["study"]().open(tmp_path / "run").capture())
    mean = table[table.layer > 0].set_index(["target", "position", "method", "layer"]).cosine.unstack().min(1)
    lowest = table[table.layer > 0].set_index(["target", "position", "method", "layer"]).lowest.unstack().min(1)
    highest = table[table.layer > 0].set_index(["target", "position", "method", "layer"]).highest.unstack().max(1)
    filters = ["mass-mean, with Sigma^-1 v", "LDA, with Sigma^-1 v"]
    direct = ["means", "pca", "logistic", "difference-in-differences", "persona vector"]
    for position in ("answer_mean", "last_template"):
        assert (lowest["planted", position][direct + filters] > 0.9).all()
    # the base is pretrained anew on a new machine, and comes out a little different; so do single pairs of seeds
    assert (mean["other seeds", "answer_mean"][["means", "pca", *filters]] > 0.9).all()
    assert (lowest["other seeds", "answer_mean"][["means", "pca", "logistic", *filters]] > 0.85).all()
    assert highest["planted", "answer_mean"]["mass-mean"] < 0.9, "a filter is not the direction; see the docs"
    assert (highest["other seeds", "answer_mean"][["difference-in-differences", "persona vector"]] < 0.8).all()
    assert lowest["other seeds", "last_template"]["ceiling: the same questions"] > 0.95
    assert lowest["other seeds", "last_template"]["ceiling: the same seed"] < 0.8
