"""A bench that reads one model at a time gives what the stacked one gives."""

import numpy as np
import pytest
import torch
from worlds import random_world

from condmis_interp.battery import ReaderBench, Reference, Tuning, WorldBench, registered
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


@pytest.mark.parametrize("test", ["A2", "R1", "C1", "V3", "W2"])
def test_every_test_agrees_with_the_stacked_bench(both, test):
    stacked, single = both
    start = {k: torch.zeros_like(w) for k, w in stacked.weights("a").items()}
    reference = Reference("a", "b", start, stacked.weights("a"), stacked.weights("b"))
    (chosen,) = registered(test)
    fast, slow = chosen.measure(stacked, reference), chosen.measure(single, reference)
    assert fast.columns == slow.columns
    assert np.abs(fast.values).max() > 1e-3
    assert slow.values == pytest.approx(fast.values, abs=2e-3)


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
