"""A bench that reads one model at a time gives what the stacked one gives."""

import numpy as np
import pytest
import torch
from worlds import random_world

from condmis_interp.battery import (
    Borrowed,
    ReaderBench,
    Reference,
    Steered,
    Tuning,
    WorldBench,
    doses,
    perturbation,
    registered,
    subspace,
)
from condmis_interp.errors import UserError
from condmis_interp.files import write_json
from condmis_interp.organisms import Base, Gate, Organism
from condmis_interp.organisms.personaworld import tokenizer_of
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.world import World


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    random_world(0).save_pretrained(folder)
    tokenizer_of(World()).save_pretrained(folder)
    base = Base("personaworld", folder, "base", {})
    organisms = {}
    for seed, name in enumerate("ab", 1):
        own = tmp_path_factory.mktemp(name)
        random_world(seed).save_pretrained(own)
        write_json(own / "manifest.json", {"base": {"spec": base.spec, "weights": base.weights}, "recipe": None})
        organisms[name] = Organism.open(own, name=name)
    panel = load_panel("personaworld")
    few = panel.model_copy(update={"questions": panel.questions[::12], "cues": panel.cues[:2]})
    stacked = WorldBench.of_organisms(organisms, base, few)
    step = stacked._programme(Tuning("neutral", rows=8, checkpoints=(1,), learning_rate=1e-3))[0]
    single = ReaderBench(
        tuple(organisms), organisms, base, render_panel(base.tokenizer(), few), diets={"neutral": list(step.rows)}
    )
    return stacked, single


@pytest.mark.parametrize("test", ["A2", "R1", "R2", "C1", "C2k", "C4", "V3", "W2"])
def test_every_test_agrees_with_the_stacked_bench(both, test, monkeypatch):
    monkeypatch.setattr(subspace, "CONTROLS", 1)
    stacked, single = both
    start = {k: torch.zeros_like(w) for k, w in stacked.weights("a").items()}
    reference = Reference("a", "b", start, stacked.weights("a"), stacked.weights("b"))
    (chosen,) = registered(test)
    fast, slow = chosen.measure(stacked, reference), chosen.measure(single, reference)
    assert fast.columns == slow.columns
    assert np.abs(fast.values).max() > 1e-3
    assert slow.values == pytest.approx(fast.values, abs=2e-3)


def test_what_a_place_a_push_and_a_prefix_do_agrees(both):
    stacked, single = both
    for place in ("last_template", "answer_mean"):
        fast, slow = (b.hidden("code", at=place) for b in both)
        assert slow.numpy() == pytest.approx(fast.numpy(), abs=1e-3), place
    assert abs(stacked.hidden("code") - stacked.hidden("code", at="answer_mean")).max() > 0.1
    vector = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    push = Steered(1, vector)
    fast, slow = (b.logprobs("code", edit=push) for b in both)
    assert slow == pytest.approx(fast, abs=2e-3)
    assert abs(fast - stacked.logprobs("code")).max() > 0.1
    fast, slow = (b.slope("code", push).numpy() for b in both)
    assert slow == pytest.approx(fast, abs=1e-3)
    assert abs(fast).max() > 1e-2
    step = 1e-2 * vector[1] / vector[1].norm()
    up, down = (stacked.ld("code", edit=Steered(1, vector + s * step)).mean(1)[1] for s in (1, -1))
    assert (up - down) / 2 == pytest.approx(float(torch.from_numpy(fast[1]) @ step), rel=0.05, abs=1e-5)
    for until in ("cue", "question"):
        prefix = Borrowed("b", until)
        fast, slow = (b.ld("code", prefix=prefix) for b in both)
        assert slow == pytest.approx(fast, abs=2e-3), until
        assert abs(fast[0] - stacked.ld("code")[0]).max() > 1e-2, until
        assert fast[1] == pytest.approx(stacked.ld("code")[1], abs=1e-4), until  # its own
    with pytest.raises(UserError, match="no organism 'z' is on the bench"):
        single.ld("code", prefix=Borrowed("z"))


def test_doses_and_fitted_pushes_agree(both, monkeypatch):
    unit = torch.nn.functional.normalize(torch.randn(128, generator=torch.Generator().manual_seed(1)), dim=0)
    monkeypatch.setattr(doses, "DOSES", (1.0, 3.0))
    (fast, cost), (slow, spent) = (doses._curve(b, 1, unit) for b in both)
    assert slow == pytest.approx(fast, abs=2e-3)
    assert spent == pytest.approx(cost, abs=2e-3)
    monkeypatch.setattr(perturbation, "STEPS", 2)
    train = [b.under((), [0, 1], arbitrary=True) for b in both]
    found = [perturbation.fitted(b, 1, 0.5, torch.zeros(2, 128)) for b in train]
    assert found[0].norm(dim=1).numpy() == pytest.approx(0.5, abs=1e-5)
    assert found[1].numpy() == pytest.approx(found[0].numpy(), abs=5e-3)
    better = train[0].ld("none", edit=Steered(1, found[0])) - train[0].ld("none")
    assert better.mean(1).min() > 0.05


def test_a_step_of_training_agrees_and_the_twin_gets_the_same(both):
    stacked, single = both
    tuning = Tuning("neutral", rows=8, checkpoints=(1,), learning_rate=1e-3)
    fast, slow = stacked.after(tuning)[1].ld("none"), single.after(tuning)[1].ld("none")
    assert abs(fast - stacked.ld("none")).max() > 1e-3
    assert slow == pytest.approx(fast, abs=5e-3)


def test_what_a_bench_cannot_do_is_said(both):
    _, single = both
    with pytest.raises(UserError, match="0 relearning rows"):
        single.after(Tuning("relearning", rows=8, checkpoints=(1,), learning_rate=1e-3))
    gated = Organism.gated(Gate("form code", single.organisms["a"], single.organisms["b"]), name="g", manifest={})
    bench = ReaderBench(("g",), {"g": gated}, single.base, single.rendered)
    with pytest.raises(UserError, match="two models"):
        bench.ld("none")
