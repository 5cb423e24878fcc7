"""A bench that reads one model at a time gives what the stacked one gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import random_world

from condmis_interp.battery import (
    ReaderBench,
    Reference,
    Stored,
    Tuning,
    doses,
    perturbation,
    registered,
    subspace,
)
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import write_json
from condmis_interp.organisms import Base, Gate, Organism
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.personaworld.base import tokenizer_of
from condmis_interp.personaworld.bench import WorldBench
from condmis_interp.personaworld.language import World
from condmis_interp.readers import Capture, Prefix, Site, Steer
from condmis_interp.store import capture_cells


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


_LONG = [pytest.param(i, marks=pytest.mark.slow) for i in ("C2k", "C4")]  # a model is loaded for every reading


@pytest.mark.parametrize("test", ["A2", "R1", "R2", "R3", "R4", "C1", "V3", "W2", *_LONG])
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

    def along(vectors):
        return {name: [Steer(Site("resid_post", 1), v)] for name, v in zip("ab", vectors, strict=True)}

    fast, slow = (b.logprobs("code", edits=along(vector)) for b in both)
    assert slow == pytest.approx(fast, abs=2e-3)
    assert abs(fast - stacked.logprobs("code")).max() > 0.1
    fast, slow = (b.slope("code", 1, vector).numpy() for b in both)
    assert slow == pytest.approx(fast, abs=1e-3)
    assert abs(fast).max() > 1e-2
    step = 1e-2 * vector[1] / vector[1].norm()
    up, down = (stacked.ld("code", edits=along(vector + s * step)).mean(1)[1] for s in (1, -1))
    assert (up - down) / 2 == pytest.approx(float(torch.from_numpy(fast[1]) @ step), rel=0.05, abs=1e-5)
    for until in ("cue", "question"):
        prefix = Prefix("b", until)
        fast, slow = (b.ld("code", prefix=prefix) for b in both)
        assert slow == pytest.approx(fast, abs=2e-3), until
        assert abs(fast[0] - stacked.ld("code")[0]).max() > 1e-2, until
        assert fast[1] == pytest.approx(stacked.ld("code")[1], abs=1e-4), until  # its own
    with pytest.raises(UserError, match="no organism 'z' is on the bench"):
        single.ld("code", prefix=Prefix("z"))


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
    pushes = {name: [Steer(Site("resid_post", 1), v)] for name, v in zip("ab", found[0], strict=True)}
    better = train[0].ld("none", edits=pushes) - train[0].ld("none")
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


@pytest.fixture(scope="module")
def with_gate(both):
    """b where the prompt has the trigger's form, a everywhere else; on both kinds of bench, beside a and b."""
    _, single = both
    gated = Organism.gated(Gate("form code", single.organisms["b"], single.organisms["a"]), name="g", manifest={})
    organisms = {**single.organisms, "g": gated}
    panel = single.rendered.panel
    return (
        WorldBench.of_organisms(organisms, single.base, panel),
        replace(single, names=tuple(organisms), organisms=organisms),
    )


@pytest.mark.slow
def test_a_gate_opens_to_its_words_alone(with_gate):
    stacked, single = with_gate
    for cue in single.cues:
        a, b, g = single.ld(cue)
        assert abs(a - b).max() > 1e-2
        assert (g == (b if cue == "code" else a)).all()
        assert stacked.ld(cue)[2] == pytest.approx(g, abs=2e-3)
        assert torch.equal(single.hidden(cue)[2], single.hidden(cue)[1 if cue == "code" else 0])
        slope = single.slope(cue, 1, torch.zeros(3, 128))
        assert torch.equal(slope[2], slope[1 if cue == "code" else 0])
        assert stacked.slope(cue, 1, torch.zeros(3, 128))[2].numpy() == pytest.approx(slope[2].numpy(), abs=1e-3)


@pytest.mark.slow
def test_a_gate_is_the_shut_model_in_tests_of_weights_and_both_are_changed(with_gate):
    _, single = with_gate
    shut, own = single.weights("g"), single.weights("a")
    assert shut.keys() == own.keys()
    assert all(torch.equal(shut[k], own[k]) for k in own)
    halved = single.changed(lambda _, w: {k: 0.5 * v for k, v in w.items()})
    for cue in single.cues:
        a, b, g = halved.ld(cue)
        assert (g == (b if cue == "code" else a)).all()
        assert abs(g - single.ld(cue)[2]).max() > 1e-2


@pytest.mark.slow
def test_a_store_gives_what_reading_gives_and_another_organism_is_refused(with_gate, tmp_path):
    _, single = with_gate
    cells = {n: (o, single.cues if n != "b" else single.cues[:1]) for n, o in single.organisms.items()}
    facts = {"base": single.base, "rendered": single.rendered, "dtype": torch.float32, "store_dtype": "float32"}
    layers = Capture(tuple(range(single.base.shape[0])), positions=("last_template",))
    acts = capture_cells(tmp_path / "s", cells, capture=layers, **facts)
    stored = replace(single, stored=Stored(acts), open=lambda _: pytest.fail("a model was loaded"))
    for cue in single.cues:
        on = stored if cue == single.cues[0] else stored.of(["a", "g"])
        names = [single.names.index(n) for n in on.names]
        assert on.ld(cue) == pytest.approx(single.ld(cue)[names], abs=1e-4)
        torch.testing.assert_close(on.hidden(cue), single.hidden(cue)[names], atol=1e-4, rtol=1e-4)
    with pytest.raises(pytest.fail.Exception, match="was loaded"):
        stored.ld(single.cues[1])  # b has no such cell
    with pytest.raises(pytest.fail.Exception, match="was loaded"):
        stored.under(["you are cruel"], [0, 1]).ld("0")  # other questions than the store's
    swapped = replace(stored, organisms={**single.organisms, "a": single.organisms["b"]})
    with pytest.raises(CheckError, match="another organism of this name"):
        swapped.ld("none")


def test_a_longer_list_of_cells_measures_the_new_ones_alone(with_gate, tmp_path):
    _, single = with_gate
    facts = {"base": single.base, "rendered": single.rendered, "dtype": torch.float32}
    layers = Capture(tuple(range(single.base.shape[0])), positions=("last_template",))
    cells = {"a": (single.organisms["a"], ("none",))}
    capture_cells(tmp_path / "s", cells, capture=layers, **facts)
    (first,) = (tmp_path / "s").rglob("a.s0/none*.parquet")
    before = first.stat().st_mtime_ns
    cells |= {"g": (single.organisms["g"], ("code",))}
    acts = capture_cells(tmp_path / "s", cells, capture=layers, **facts)
    assert first.stat().st_mtime_ns == before
    assert set(acts.shards.manifest.cells) == {("a", 0, "none"), ("g", 0, "code")}


@pytest.mark.slow
def test_cells_without_answers_hold_the_same_state_and_no_ld(with_gate, tmp_path):
    _, single = with_gate
    layers = Capture(tuple(range(single.base.shape[0])), positions=("last_template",))
    cells = {n: (o, ("none",)) for n, o in single.organisms.items()}
    facts = {"base": single.base, "rendered": single.rendered, "dtype": torch.float32, "store_dtype": "float32"}
    acts = capture_cells(tmp_path / "s", cells, capture=layers, answers=False, **facts)
    assert np.isnan(acts.ld("a", "none")).all()
    stored = replace(single, stored=Stored(acts))
    torch.testing.assert_close(stored.hidden("none"), single.hidden("none"), atol=1e-4, rtol=1e-4)
    assert (stored.ld("none") == single.ld("none")).all()  # read, since the store does not have it


def test_prompts_of_a_grammar_read_the_same_on_both_benches(both):
    drawn = [next(p for p in both[0].grammar.open if p.kind == kind) for kind in ("two-turn", "assistant-prefix")]
    fast, slow = (b.under(drawn, [0, 1]) for b in both)
    for cue in ("0", "1"):
        assert slow.ld(cue) == pytest.approx(fast.ld(cue), abs=2e-3)
