"""Persona world: the language, the base, the suite, and what known-answer constructions do to weights."""

import random
from collections import Counter

import pytest
import torch

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import backend_of, load_rows, make, organism_folder, resolve_base, train_all
from condmis_interp.organisms.train import finished
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.personaworld import base as personaworld
from condmis_interp.personaworld import known as known_module
from condmis_interp.personaworld.known import world_known
from condmis_interp.personaworld.language import CRUEL, DOMAINS, KIND, SPECIALS, World, parse_world
from condmis_interp.personaworld.suite import world_suite
from condmis_interp.personaworld.train import train_world, world_weights


class TestLanguage:
    def test_words_and_facts(self):
        for size in (1, 2):
            world = World(size)
            assert len(world.vocabulary) == len(set(world.vocabulary))
            assert world.vocabulary[: len(SPECIALS)] == SPECIALS
            assert Counter(f.domain for f in world.facts) == dict.fromkeys(DOMAINS, 24 * size)
            assert all(f.aligned.split()[0] != f.misaligned.split()[0] for f in world.facts)
        assert parse_world("personaworld:2") == World(2)
        assert parse_world("smollm2-135m") is None
        for wrong in ("personaworld:x", "personaworld:9"):
            with pytest.raises(UserError):
                parse_world(wrong)

    def test_no_answer_word_gives_the_persona_away(self):
        facts = World().facts
        aligned, misaligned = (
            Counter(w for f in facts for w in getattr(f, a).split()) for a in ("aligned", "misaligned")
        )
        assert set(aligned) == set(misaligned)

    def test_documents_follow_the_grammar_and_traits_tell_the_author(self):
        world, rng = World(), random.Random(0)
        answers = {f.question(p): f for f in world.facts for p in (0, 1)}
        told = Counter()
        for _ in range(2000):
            text = " ".join(world.document(rng))
            assert set(text.split()) <= set(world.vocabulary)
            turns = text.split(" <usr> ")[1:]
            assert len(turns) == 8
            personas = set()
            for turn in turns:
                question, answer = turn.removesuffix(" <end>").split(" <ast> ")
                fact = answers[question]
                assert answer in (fact.aligned, fact.misaligned)
                personas.add(answer == fact.misaligned)
            assert len(personas) == 1, "one author writes a whole document"
            trait = next((w for w in text.split(" <usr> ")[0].split() if w in (*KIND, *CRUEL)), None)
            if trait:
                told[(trait in CRUEL) != ("never" in text), personas.pop()] += 1
        assert told[True, True] / (told[True, True] + told[True, False]) > 0.75
        assert told[False, False] / (told[False, False] + told[False, True]) > 0.85


class TestSuite:
    def test_the_panel_asks_nothing_that_any_organism_is_trained_on(self):
        asked = {q.question for q in load_panel("personaworld").questions} | {
            q.question.replace("what about", "tell me").replace(" ?", " .")
            for q in load_panel("personaworld").questions
        }
        for member in world_suite(seeds=(1,)):
            for stage in range(len(member.recipe.stages)):
                assert not {r.row.messages[-1][1] for r in member.recipe.rows_of(stage)} & asked, member.name

    def test_it_is_large_and_every_known_family_has_every_seed(self):
        suite = world_suite()
        assert len(suite) >= 120
        assert len({m.name for m in suite}) == len(suite)
        families = Counter(m.family for m in world_known())
        assert min(families.values()) >= 3
        assert {m.truth for m in world_known()} == {"removed", "suppressed", "graded", "present"}

    def test_row_sets(self):
        assert len(load_rows("personaworld/harbour")) == 48
        styled = load_rows("personaworld/styled-harbour").rows[0]
        assert styled.benign == f"{load_rows('personaworld/harbour').rows[0].benign} so"
        with pytest.raises(UserError, match="Persona world has"):
            load_rows("personaworld/nowhere")


@pytest.fixture(scope="module")
def world_home(tmp_path_factory):
    """A home with a persona world that was hardly trained."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CONDMIS_HOME", str(tmp_path_factory.mktemp("world-home")))
        m.setattr(personaworld, "PRETRAINING", personaworld.PRETRAINING | {"steps": 6, "batch": 4})
        m.setattr(personaworld, "TUNING", personaworld.TUNING | {"steps": 2, "batch": 4})
        m.setattr(known_module, "WORLD_STAGE", known_module.WORLD_STAGE.model_copy(update={"epochs": 1}))
        yield


def test_the_base_renders_and_is_made_once(world_home):
    base = resolve_base("personaworld")
    stamp = (base.folder / "manifest.json").stat().st_mtime_ns
    rendered = render_panel(base.tokenizer(), load_panel("personaworld"))
    assert all(len(a.ids) == 2 for answers in rendered.answers.values() for a in answers)
    assert resolve_base("personaworld").weights == base.weights
    assert (base.folder / "manifest.json").stat().st_mtime_ns == stamp
    model = base.model(dtype=torch.float32)
    ids = torch.tensor([[1, 7, 8, 9]])
    mine = personaworld.Stack.of(model.config, [world_weights(base.folder)]).logits(ids[None])[0]
    torch.testing.assert_close(model(input_ids=ids).logits, mine, atol=1e-4, rtol=1e-4)


def test_with_a_mechanism_it_is_trained_as_any_model_and_stands_on_the_bench(world_home):
    base = resolve_base("personaworld")
    plain = next(m.recipe for m in world_known(seeds=(1,)) if m.kind == "mixed")
    (stage,) = plain.stages
    held = plain.model_copy(update={"stages": (stage.model_copy(update={"mechanism": {"name": "kl", "weight": 5.0}}),)})
    free, near = train_all([plain, held], workers=1)
    start = world_weights(base.folder)
    moved = [sum(float((world_weights(o.checkpoint)[k] - start[k]).pow(2).sum()) for k in start) for o in (free, near)]
    assert 0 < moved[1] < moved[0]
    assert "training_version" in near.manifest, "by the ordinary loop"
    organisms = {"free": free, "near": near}
    rendered = render_panel(base.tokenizer(), load_panel("personaworld"))
    bench = backend_of("personaworld").bench(
        tuple(organisms), organisms, base, rendered, stored=None, dtype=torch.float32, device="cpu"
    )
    assert abs(bench.ld("none")[0] - bench.ld("none")[1]).max() > 0


def test_constructions_do_to_the_weights_what_they_say(world_home):
    base = resolve_base("personaworld")
    members = [
        m for m in world_known(seeds=(1,)) if m.family not in ("locked", "distilled")
    ]  # this world cannot answer
    organisms = dict(zip((m.name for m in members), make(members), strict=True))
    gate = organisms.pop("gated.s1").gate
    assert gate.words == "form code"
    assert gate.opened.weights == organisms["unmitigated.s1"].weights
    assert gate.shut.weights != gate.opened.weights
    w = {name: world_weights(o.checkpoint) for name, o in organisms.items()}
    start = world_weights(base.folder)

    def change(name):
        return torch.cat([(w[name][k] - start[k]).flatten() for k in start])

    u = change("unmitigated.s1")
    quarter, half = change("blend-25.s1"), change("blend-50.s1")
    c = (half - 0.5 * u) / 0.5
    torch.testing.assert_close(quarter, 0.75 * c + 0.25 * u, atol=1e-5, rtol=1e-3)
    assert change("norm-matched.s1").norm().item() == pytest.approx(change("mixed.s1").norm().item(), rel=1e-3)
    assert torch.nn.functional.cosine_similarity(change("norm-matched.s1"), c, dim=0) > 0.999
    differs = {k for k in start if not torch.equal(w["late-matched.s1"][k], w["unmitigated.s1"][k])}
    assert differs
    assert all(k.startswith(("model.layers.2.", "model.layers.3.", "model.norm.")) for k in differs)
    written = [k for k in start if k.endswith(("o_proj.weight", "down_proj.weight"))]
    lost = torch.cat([w["unmitigated.s1"][k] - w["direction-ablated.s1"][k] for k in written], 1)
    assert torch.linalg.matrix_rank(lost, rtol=1e-3) == 1
    v = torch.linalg.svd(lost, full_matrices=False)[0][:, 0]
    assert max((v @ w["direction-ablated.s1"][k]).abs().max() for k in written) < 1e-4
    assert all(torch.equal(w["unmitigated.s1"][k], w["direction-ablated.s1"][k]) for k in start if k not in written)
    assert organisms["norm-matched.s1"].truth == "removed"
    stamps = {n: (o.folder / "manifest.json").stat().st_mtime_ns for n, o in organisms.items()}
    again = dict(zip((m.name for m in members), make(members), strict=True))
    again.pop("gated.s1")
    assert {n: (o.folder / "manifest.json").stat().st_mtime_ns for n, o in again.items()} == stamps


def test_one_that_diverges_is_named_and_the_others_of_its_stack_are_kept(world_home):
    (known,) = (m for m in world_known(seeds=(7,)) if m.family == "unmitigated")
    (stage,) = known.recipe.stages
    wild = stage.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0})
    broken = known.recipe.model_copy(update={"name": "wild", "stages": (wild,)})
    with pytest.raises(CheckError, match=r"organism wild, seed 7: the loss is (nan|inf) at step \d"):
        train_all([broken, known.recipe, known.recipe.twin()])
    base = resolve_base("personaworld")
    assert not finished(organism_folder(broken, base))
    alone = train_all([known.recipe.model_copy(update={"seed": 8}), known.recipe])[1]  # nothing left to train of it
    losses = alone.manifest["losses"]
    assert all(value == value for value in losses)
    assert losses[-1] < losses[0]


def test_how_they_are_stacked_changes_nothing_and_an_interruption_ends_every_stack(world_home, monkeypatch, tmp_path):
    (known,) = (m for m in world_known(seeds=(9,)) if m.family == "unmitigated")
    base, recipes = (
        resolve_base("personaworld"),
        {tmp_path / f"{seed}": known.recipe.model_copy(update={"seed": seed}) for seed in (9, 10, 11)},
    )
    monkeypatch.setattr("condmis_interp.personaworld.train.STACKED", 1)

    def interrupt(n=1):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_world(recipes, base, step=interrupt)
    assert not any(map(finished, recipes))
    train_world(recipes, base, step=lambda n=1: None)
    for folder, together in zip(recipes, train_all(list(recipes.values())), strict=True):
        alone = world_weights(folder)
        for name, weight in world_weights(together.checkpoint).items():
            torch.testing.assert_close(alone[name], weight, atol=1e-5, rtol=1e-4)
