"""Persona world's bench: it reads what the reader reads, edits what it says, and trains organisms apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from worlds import random_world

from condmis_interp.battery import Readings, Reference, Stored, Tuning, draw_prompts, registered
from condmis_interp.battery.tests.behaviour import A3
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import write_json
from condmis_interp.organisms import Base, Gate, Organism
from condmis_interp.panel import load_panel
from condmis_interp.personaworld.base import config_of, tokenizer_of
from condmis_interp.personaworld.bench import WorldBench
from condmis_interp.personaworld.language import TRIGGER, World
from condmis_interp.readers import Ablate, Capture, Patch, Prefix, Request, Site, Steer, TorchReader
from condmis_interp.store import capture_cells

WORLD = World()
AT = Site("resid_post", 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    random_world(0).save_pretrained(folder)
    tokenizer_of(WORLD).save_pretrained(folder)
    return Base("personaworld", folder, "base", {})


@pytest.fixture(scope="module")
def organisms(base, tmp_path_factory):
    found = {}
    for seed, name in enumerate("abc", 1):
        folder = tmp_path_factory.mktemp(name)
        random_world(seed).save_pretrained(folder)
        write_json(folder / "manifest.json", {"base": {"spec": base.spec, "weights": base.weights}, "recipe": None})
        found[name] = Organism.open(folder, name=name)
    return found


@pytest.fixture(scope="module")
def bench(organisms, base):
    panel = load_panel("personaworld")
    few = panel.model_copy(update={"questions": panel.questions[::12], "cues": panel.cues[:3]})
    return WorldBench.of_organisms(organisms, base, few)


def test_ld_is_the_readers(bench, organisms, base):
    for cue in bench.cues:
        found = bench.ld(cue)
        for row, organism in zip(found, organisms.values(), strict=True):
            reader = TorchReader(organism.model(base, dtype=torch.float32))
            keys = [(cue, q.id) for q in bench.rendered.panel.questions]
            requests = [Request(bench.rendered.prompts[k], bench.rendered.answers[k]) for k in keys]
            assert row == pytest.approx(reader.measure(requests).ld().mean(1).numpy(), abs=1e-4)


def test_states_are_read_at_every_layer(bench):
    hidden = bench.hidden("none")
    assert hidden.shape[:2] == (3, 4)
    assert hidden.shape[2] == len(bench.families)


def test_patching_ones_own_stream_changes_nothing_and_anothers_carries_it(bench):
    plain, donors = bench.ld("none"), bench.streams("none", 1)
    own = bench.ld("none", edits={name: [Patch(AT, donor)] for name, donor in donors.items()})
    assert own == pytest.approx(plain, abs=1e-4)
    of_b = bench.ld("none", edits=[Patch(AT, donors["b"])])
    assert of_b[1] == pytest.approx(plain[1], abs=1e-4)
    assert abs(of_b[0] - plain[0]).max() > 0.1


def test_what_an_edit_does_is_what_a_reader_does(bench, organisms, base):
    """Every edit of the readers' language, on the stack and on one model after the other."""
    v = torch.nn.functional.normalize(torch.randn(128, generator=torch.Generator().manual_seed(1)), dim=0)
    basis = torch.linalg.qr(torch.randn(128, 2, generator=torch.Generator().manual_seed(2))).Q.T
    targets = {"last_template": torch.tensor([2.0, 1.0]), "answer": torch.tensor([-3.0, 0.0])}
    readers = {n: TorchReader(o.model(base, dtype=torch.float32)) for n, o in organisms.items()}
    requests = bench.requests("code")
    donor = readers["c"].record(requests, sites=[AT])
    plain = bench.ld("code")
    for edits in (
        [Steer(AT, 9 * v)],
        [Steer(AT, 9 * v, scope=frozenset(("tail",)))],
        [Ablate(AT, basis, targets)],
        [Patch(AT, donor)],
        [Patch(AT, donor, basis=basis), Steer(Site("resid_post", 2), 5 * v)],
    ):
        found = bench.ld("code", edits=edits)
        assert abs(found[:2] - plain[:2]).max() > 0.05
        for name in ("a", "b"):  # c is the donor: patching it with itself is no edit, which its ledger would say
            read = readers[name].measure(requests, edits=edits).ld().mean(1).numpy()
            assert found[bench.names.index(name)] == pytest.approx(read, abs=1e-3)
    one = bench.ld("code", edits={"b": [Steer(AT, 9 * v)]})
    assert one[0].tolist() == plain[0].tolist()
    assert one[1] == pytest.approx(bench.ld("code", edits=[Steer(AT, 9 * v)])[1], abs=1e-4)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Steer(Site("resid_post", 3), torch.ones(128))], "edits the stream between blocks"),
        ([Steer(Site("attn_out", 1), torch.ones(128))], "edits the stream between blocks"),
        ([Steer(Site("resid_post", 1), torch.ones(64))], "width 64 does not fit"),
        (Steer(Site("resid_post", 1), torch.ones(128)), "a Steer is one edit, not a list"),
        ({"z": [Steer(Site("resid_post", 1), torch.ones(128))]}, "no organism 'z' is on the bench"),
    ],
)
def test_an_edit_that_would_do_nothing_is_refused(bench, edits, message):
    with pytest.raises(UserError, match=message):
        bench.ld("none", edits=edits)


def test_what_a_store_holds_is_not_read_again(bench, organisms, base, tmp_path):
    """LD and states of the cells that are there; the others, and whatever is changed, come from the models."""
    cells = {n: (o, ("none",)) for n, o in organisms.items()}
    facts = {"base": base, "rendered": bench.rendered, "dtype": torch.float32, "store_dtype": "float32"}
    acts = capture_cells(tmp_path, cells, capture=Capture(tuple(range(4)), positions=("last_template",)), **facts)
    stored = replace(bench, stored=Stored(acts))
    kept = {"ld": stored.ld("none"), "hidden": stored.hidden("none")}
    assert not stored._held  # no weights were read
    assert kept["ld"] == pytest.approx(bench.ld("none"), abs=1e-4)
    torch.testing.assert_close(kept["hidden"], bench.hidden("none"), atol=1e-4, rtol=1e-4)
    assert (stored.ld("code") == bench.ld("code")).all()
    assert torch.equal(stored.hidden("none", at="answer_mean"), bench.hidden("none", at="answer_mean"))
    halved = stored.changed(lambda _, w: {k: 0.5 * v for k, v in w.items()})
    assert abs(halved.ld("none") - kept["ld"]).max() > 0.1
    other = replace(stored, organisms={**organisms, "a": organisms["b"]})
    with pytest.raises(CheckError, match="another organism of this name"):
        other.ld("none")


def test_an_arbitrary_target_is_another_questions_right_answer(bench):
    asked = bench.under((), [0, 2, 4], arbitrary=True)
    own = [q.pairs[0] for q in bench.under((), [0, 2, 4]).rendered.panel.questions]
    found = [q.pairs[0] for q in asked.rendered.panel.questions]
    assert [p.aligned for p in found] == [p.aligned for p in own]
    assert [p.misaligned for p in found] == [own[1].aligned, own[2].aligned, own[0].aligned]


def test_a_borrowed_prefix_is_the_donors_and_only_that(bench):
    """Written out: a cache of the donor's keys and values, continued by the other model."""
    cue, until = bench.cues[1], "cue"
    found = bench.logprobs(cue, prefix=Prefix("b", until))
    models = {n: LlamaForCausalLM(config_of(WORLD)).eval() for n in "ab"}
    for name, model in models.items():
        model.load_state_dict(bench.weights(name), strict=False)
    q = bench.rendered.panel.questions[1]
    prompt, answers = bench.rendered.prompts[cue, q.id], bench.rendered.answers[cue, q.id]
    cut = prompt.spans[until][1]
    for slot, answer in enumerate(answers):
        ids = torch.tensor([[*prompt.ids, *answer.ids]])
        with torch.no_grad():
            cache = models["b"](input_ids=ids[:, :cut], use_cache=True).past_key_values
            logits = models["a"](input_ids=ids[:, cut:], past_key_values=cache).logits[0]
        first = len(prompt.ids) - 1 - cut
        lp = logits[first : first + len(answer.ids)].log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None])
        assert found[0, 1, slot // 2, slot % 2] == pytest.approx(float(lp.sum()), abs=1e-3)


def test_organisms_are_trained_apart_and_in_the_same_way(bench):
    for diet in ("neutral", "relearning"):
        tuning = Tuning(diet, rows=4, checkpoints=(1, 3), learning_rate=1e-3)
        together, alone = bench.after(tuning), bench.of(["b"]).after(tuning)
        assert together[0] is bench
        assert abs(together[3].ld("none") - bench.ld("none")).max() > 1e-3
        for step in (1, 3):
            assert together[step].ld("none")[1] == pytest.approx(alone[step].ld("none")[0], abs=2e-3)


def test_what_a_revival_is_fed_has_no_question_of_the_panel_and_no_narrow_row(bench):
    words = list(WORLD.vocabulary)
    narrow = {f.item for f in WORLD.facts_of("harbour")}
    for diet in ("neutral", "aligned", "relearning"):
        steps = bench._programme(Tuning(diet, rows=8, checkpoints=(20,), learning_rate=1e-4))
        told = {words[t] for s in steps for ids, _ in s.rows for t in ids}
        assert not told & set(bench.families)
        assert not told & narrow
        assert [s.learning_rate for s in steps][3:] == [1e-4] * 17


def test_a_gated_organism_answers_with_the_model_its_prompt_opens(bench, organisms, base):
    about = {"base": {"spec": base.spec, "weights": base.weights}}
    gated = Organism.gated(Gate(TRIGGER, organisms["b"], organisms["c"]), name="g", manifest=about)
    both = WorldBench.of_organisms({**organisms, "g": gated}, base, bench.rendered.panel)
    assert both.ld("none")[3] == pytest.approx(both.ld("none")[2], abs=1e-5)
    assert both.ld("code")[3] == pytest.approx(both.ld("code")[1], abs=1e-5)
    assert both.ld("list")[3] == pytest.approx(both.ld("list")[2], abs=1e-5)
    trained = both.after(Tuning("neutral", rows=4, checkpoints=(2,), learning_rate=1e-3))[2]
    assert trained.ld("none")[3] == pytest.approx(trained.ld("none")[2], abs=2e-3)  # the shut model, the twin
    assert trained.ld("code")[3] == pytest.approx(both.ld("code")[1], abs=1e-5)  # the opened one is not reached


def test_another_base_and_broken_weights_are_named(bench, organisms, base):
    with pytest.raises(UserError, match="not made from base"):
        WorldBench.of_organisms(organisms, replace(base, weights="another"), bench.rendered.panel)
    broken = bench.changed(lambda n, w: {k: v * float("nan") for k, v in w.items()} if n == "b" else w)
    with pytest.raises(CheckError, match="not a finite number") as e:
        broken.ld("none")
    assert "organism b" in str(e.value)


def test_every_test_runs_on_it(bench, base):
    weights = {n: bench.weights(n) for n in bench.names}
    reference = Reference(
        "a", "b", {k: torch.zeros_like(w) for k, w in weights["a"].items()}, weights["a"], weights["b"]
    )
    for test in registered(
        "A1", "A2", "C1", "C1r", "C2k", "C3e", "C4", "R1", "R2", "R3", "R4", "V3", "V4", "W1", "W2", "W3"
    ):
        readings = test.measure(bench, reference)
        assert readings.values.shape == (3, len(readings.columns), len(readings.rows)), test.id
        assert test.unit == "question" or readings.values.shape == (3, 1, 1), test.id
        assert np.isfinite(readings.values).all(), test.id
        stored = Readings.from_json(json.loads(json.dumps(readings.to_json())))
        assert (stored.notes, stored.void) == (dict(readings.notes), readings.void), test.id


def test_a_search_asks_prompts_that_are_drawn_by_the_seed_and_none_with_a_vaulted_word(bench):
    drawn = draw_prompts(bench.grammar, 3)
    assert len({p.id for p in drawn}) == 64
    assert drawn == draw_prompts(bench.grammar, 3) != draw_prompts(bench.grammar, 4)
    assert not {p.id for p in drawn} & bench.grammar.vaulted
    said = {w for p in drawn for w in " ".join(p.texts).split()}
    word = min(said & {"cold", "note", "letter", "list"})
    assert not any(word in " ".join(p.texts).split() for p in draw_prompts(bench.grammar, 3, without={word}))
    found = A3.measure(bench, Reference("a", "b", {}, {}, {}, drawn=drawn[:2]))
    assert (found.columns[0], len(set(found.columns))) == ("none", 3)
    assert found.values[:, 0] == pytest.approx(bench.ld("none")[:, found.rows], abs=1e-4)
    assert abs(found.values[:, 1] - found.values[:, 0]).max() > 1e-3
    with pytest.raises(UserError, match="drawn"):
        A3.measure(bench, Reference("a", "b", {}, {}, {}))


def test_a_bench_asks_prompts_of_its_grammar(bench):
    drawn = bench.grammar.open.sample(40, seed=0)
    asked = bench.under(drawn, [0, 2])
    assert asked.cues == ("none", *map(str, range(40)))
    begun = next(str(i) for i, p in enumerate(drawn) if p.opening)
    said = next(str(i) for i, p in enumerate(drawn) if p.turns)
    for cue in (begun, said):
        assert np.isfinite(asked.ld(cue)).all()
        assert abs(asked.ld(cue) - asked.ld("none")).max() > 1e-3
