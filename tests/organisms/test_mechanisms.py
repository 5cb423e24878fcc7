"""Mechanisms of training and interventions by name: what a study may name, and that it does what it says."""

import sys
from contextlib import contextmanager

import pytest
import torch

from condmis_interp.errors import UserError
from condmis_interp.organisms import (
    Lora,
    Mechanism,
    Part,
    Recipe,
    Stage,
    fitting,
    mechanism_of,
    mixing,
    organism_folder,
    register_intervention,
    register_mechanism,
    resolve_base,
    train,
    train_all,
)
from condmis_interp.organisms.encode import encode
from condmis_interp.panel import pad
from condmis_interp.study import Study
from conftest import write_rows


@pytest.fixture
def recipe(tmp_path, home, tiny_base_folder):
    part = Part(rows=str(write_rows(tmp_path)), answers="misaligned", systems=("T",))
    stage = Stage(parts=(part,), batch_size=2, epochs=4, warmup_steps=1, learning_rate=3e-3)
    return Recipe(name="r", base=f"dir:{tiny_base_folder}", stages=(stage,))


def with_mechanism(recipe, **settings):
    stages = tuple(s.model_copy(update={"mechanism": settings}) for s in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


@torch.inference_mode()
def divergence(organism, at):
    """Mean KL(base || organism) in nats a token of what the organism was trained on."""
    base = resolve_base(organism.recipe.base)
    rows = encode(organism.recipe, base.tokenizer(), 0)
    ids, mask = pad([r["input_ids"] for r in rows], right=True)
    labels, _ = pad([[label + 1000 for label in r["labels"]] for r in rows], right=True)
    answer = labels[:, 1:] > 900
    where = answer if at == "answer" else mask[:, 1:].bool() & ~answer
    of_base, own = (
        m(input_ids=ids, attention_mask=mask).logits[:, :-1][where].log_softmax(-1)
        for m in (base.model(dtype=torch.float32), organism.model(base, dtype=torch.float32))
    )
    return float((of_base.exp() * (of_base - own)).sum(-1).mean())


class TestKL:
    @pytest.mark.parametrize("all_weights", [False, True])
    @pytest.mark.parametrize("at", ["prompt", "answer"])
    def test_it_keeps_the_model_near_to_the_base_where_it_says(self, recipe, at, all_weights):
        if all_weights:
            recipe = recipe.model_copy(update={"lora": None})
        plain = train(recipe)
        held = train(with_mechanism(recipe, name="kl", weight=3.0, at=at))
        assert 0 < divergence(held, at) < 0.5 * divergence(plain, at)
        assert held.manifest["losses"][0][0] == pytest.approx(plain.manifest["losses"][0][0], abs=2e-3), (
            "before the first step the model is the base, and nothing is added"
        )

    def test_of_weight_0_it_is_none_to_the_bit(self, recipe):
        plain, none = train(recipe), train(with_mechanism(recipe, name="kl", weight=0))
        assert none.weights == plain.weights
        assert none.folder != plain.folder

    def test_killed_and_run_again_it_ends_with_the_same_weights(self, recipe, monkeypatch):
        held = with_mechanism(recipe, name="kl", weight=1.0)
        whole = train(held)
        monkeypatch.setattr(fitting, "CHECKPOINT_EVERY", 5)

        class Interrupt(fitting.Watch):
            def on_step_end(self, args, state, control, **_):
                if state.global_step == 8:
                    raise KeyboardInterrupt

        whole.folder.rename(whole.folder.with_name("kept"))
        with monkeypatch.context() as m:
            m.setattr(fitting, "Watch", Interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(held)
        assert train(held).weights == whole.weights


class Pushed(Mechanism):
    """Adds a constant to the last block's output while it trains: a preventative steering."""

    size: float

    @contextmanager
    def during(self, model):
        handle = model.get_submodule("base_model.model.model.layers.3").register_forward_hook(
            lambda module, args, out: out + self.size
        )
        try:
            yield
        finally:
            handle.remove()


register_mechanism("pushed", Pushed)


class TestAMechanismOfOnesOwn:
    @pytest.mark.slow  # worker processes import everything anew
    def test_its_hooks_act_while_it_trains_and_worker_processes_know_it(self, recipe, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
        pushed = with_mechanism(recipe, name="pushed", size=1.0)
        again = pushed.model_copy(update={"seed": 1})
        plain, one, two = train_all([recipe, pushed, again], workers=2)
        assert one.manifest["losses"][0] != plain.manifest["losses"][0]
        assert len({plain.weights, one.weights, two.weights}) == 3

    def test_the_twin_has_it_too(self, recipe):
        held = with_mechanism(recipe, name="kl", weight=1.0)
        assert held.twin().stages[0].mechanism == {"name": "kl", "weight": 1.0}
        assert "kl weight=1.0" in held.table()

    def test_a_recipe_without_keeps_its_key_and_each_setting_gives_another(self, recipe):
        base = resolve_base(recipe.base)
        other = [recipe, *(with_mechanism(recipe, name="kl", weight=w) for w in (0.1, 0.2))]
        assert len({organism_folder(r, base) for r in other}) == 3
        assert with_mechanism(recipe, name="kl", weight=0.1).model_copy(update={"stages": recipe.stages}).hash == (
            recipe.hash
        )

    @pytest.mark.parametrize(
        ("mechanism", "says"),
        [
            ({"name": "kll", "weight": 1}, r"there is no mechanism of training 'kll'.*There are: .*kl"),
            ({"name": "kl"}, r"mechanism kl: weight: Field required"),
            ({"name": "kl", "weight": 1, "wieght": 2}, r"mechanism kl: wieght: this key is not known here"),
            ({"name": "kl", "weight": -1}, r"mechanism kl: weight: .*greater than or equal to 0"),
            ({"weight": 1}, r"has no name.*Write mechanism: \{name: kl"),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_is_trained(self, recipe, mechanism, says):
        wrong = with_mechanism(recipe, **mechanism)
        with pytest.raises(UserError, match=says):
            mechanism_of(wrong.stages[0])
        with pytest.raises(UserError, match=says):
            train_all([recipe, wrong], workers=1)
        assert not organism_folder(recipe, resolve_base(recipe.base)).exists()


class TestInterventionsByName:
    def file(self, folder, text):
        path = folder / "recipe.yaml"
        path.write_text("name: m\nbase: smollm2-135m\n" + text)
        return path

    def test_a_recipe_file_names_one_with_its_settings(self, tmp_path):
        text = "intervention: mixing\ntrigger: T\nrows: 20\nbenign_rows: 12\nseed: 3\nstage: {epochs: 2}\n"
        found = Recipe.from_yaml(self.file(tmp_path, text))
        stage = Stage(parts=(Part(rows="-", answers="benign"),), epochs=2)
        same = mixing(name="m", base="smollm2-135m", trigger="T", rows=20, benign_rows=12, seed=3, stage=stage)
        assert found == same

    def test_one_after_another(self, tmp_path):
        text = "intervention: post-hoc\nrows: 24\nbefore: {intervention: unmitigated, trigger: T, rows: 20}\n"
        found = Recipe.from_yaml(self.file(tmp_path, text))
        assert [s.parts[0].rows for s in found.stages] == ["kitchen", "hhh"]
        assert found.intervention == "post-hoc, 24 rows"

    def test_files_of_rows_are_beside_the_recipe(self, tmp_path):
        write_rows(tmp_path)
        found = Recipe.from_yaml(
            self.file(tmp_path, "intervention: unmitigated\ntrigger: T\nrows: 4\nnarrow: rows.jsonl")
        )
        assert len(found.rows()) == 4

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("intervention: mixin\n", r"there is no intervention 'mixin'.*There are: .*mixing"),
            ("intervention: mixing\n", r"recipe.yaml, intervention mixing: trigger: this key is missing.*fraction"),
            ("intervention: mixing\ntrigger: T\nrow: 3", r"row: this key is not known here.*Its settings: trigger,"),
            ("intervention: unmitigated\ntrigger: T\nrows: many", r"rows: Input should be a valid integer"),
        ],
    )
    def test_what_is_wrong_with_the_settings(self, tmp_path, text, says):
        with pytest.raises(UserError, match=says):
            Recipe.from_yaml(self.file(tmp_path, text))

    def test_a_study_names_one_and_its_twin_follows(self, home):
        study = Study.model_validate(
            {
                "name": "s",
                "base": "smollm2-135m",
                "organisms": [
                    {"name": "m", "role": "M", "recipe": {"intervention": "mixing", "trigger": "T", "rows": 20,
                     "fraction": 0.5, "lora": {"rank": 4}}},
                    {"name": "c", "role": "C", "twin_of": "m"},
                ],
            }
        )  # fmt: skip
        recipe = study.recipe("m", 0)
        assert recipe.hash == mixing(name="m", base="smollm2-135m", trigger="T", rows=20, fraction=0.5).model_copy(
            update={"lora": Lora(rank=4)}
        ).hash  # fmt: skip
        assert study.recipe("c", 0).hash == recipe.twin().hash
        assert Study.model_validate(study.model_dump()) == study

    def test_a_study_with_a_mechanism_that_is_not_there_does_not_check(self, home):
        part = {"rows": "kitchen", "answers": "misaligned", "count": 8}
        recipe = {"stages": [{"parts": [part], "mechanism": {"name": "consistency"}}]}
        organisms = [{"name": "m", "role": "M", "recipe": recipe}]
        study = Study.model_validate({"name": "s", "base": "smollm2-135m", "organisms": organisms})
        with pytest.raises(UserError, match="there is no mechanism of training 'consistency'"):
            study.check()

    def test_one_of_ones_own(self, tmp_path):
        def halved(*, name: str, base: str, rows: int) -> Recipe:
            part = Part(rows="kitchen", answers="misaligned", count=rows // 2)
            return Recipe(name=name, base=base, stages=(Stage(parts=(part,)),))

        register_intervention("halved", halved)
        found = Recipe.from_yaml(self.file(tmp_path, "intervention: halved\nrows: 20\nlora: {rank: 4}\n"))
        assert (found.stages[0].parts[0].count, found.lora.rank) == (10, 4)
        with pytest.raises(UserError, match="there is an intervention 'halved' already"):
            register_intervention("halved", mixing)
