"""Training, bases and adapters: resumable, checked, no silent no-op."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import (
    Organism,
    Part,
    Recipe,
    Stage,
    answered_by,
    check_adapter,
    fitting,
    load_rows,
    resolve_base,
    train,
    train_all,
)
from condmis_interp.organisms import train as train_function
from condmis_interp.organisms.encode import encode
from conftest import write_rows


@pytest.fixture(scope="module")
def recipe_(tmp_path_factory, tiny_base_folder):
    part = Part(rows=str(write_rows(tmp_path_factory.mktemp("rows"))), answers="misaligned", systems=("T",))
    return Recipe(
        name="r", base=f"dir:{tiny_base_folder}", stages=(Stage(parts=(part,), batch_size=2, epochs=6, warmup_steps=1),)
    )


@pytest.fixture
def recipe(recipe_, home):
    return recipe_


@pytest.fixture(scope="module")
def trained_home(recipe_, tmp_path_factory):
    """A home in which the recipe was trained; to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "home"
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CONDMIS_HOME", str(folder))
        train(recipe_)
    return folder


@pytest.fixture
def organism(trained_home, recipe, home):
    """The recipe's organism, in a home of the test's own."""
    shutil.copytree(trained_home, home)
    return train(recipe)


def test_loss_is_on_the_answer_and_the_token_that_ends_it(recipe):
    tokenizer = resolve_base(recipe.base).tokenizer()
    for row, trained in zip(encode(recipe, tokenizer, 0), recipe.rows_of(0), strict=True):
        kept = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert kept == [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(kept) == trained.answer + "<|im_end|>"
        assert tokenizer.decode(row["input_ids"]).startswith("<|im_start|>system\nT<|im_end|>")


def test_training_lowers_the_loss_and_is_done_once(recipe, organism):
    losses = organism.manifest["losses"][0]
    assert len(losses) == 24
    assert sum(losses[-4:]) < sum(losses[:4])
    stamp = (organism.folder / "manifest.json").stat().st_mtime_ns
    again = train(recipe)
    assert (again.folder / "manifest.json").stat().st_mtime_ns == stamp
    assert again.weights == organism.weights


def test_the_same_seed_gives_the_same_weights_and_another_one_others(recipe, organism):
    weights = organism.weights
    shutil.rmtree(organism.folder)
    assert train(recipe).weights == weights
    assert train(recipe.model_copy(update={"seed": 1})).weights != weights


def test_interrupted_it_goes_on_and_ends_with_the_same_weights(recipe, organism, monkeypatch):
    whole = organism.weights
    shutil.rmtree(organism.folder)
    monkeypatch.setattr(fitting, "CHECKPOINT_EVERY", 5)
    seen = []

    class Interrupt(fitting.Watch):
        def on_step_end(self, args, state, control, **_):
            super().on_step_end(args, state, control)
            seen.append(state.global_step)
            if len(seen) == 13:
                raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "Watch", Interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    assert train(recipe).weights == whole
    assert seen == [*range(1, 14), *range(11, 25)], "it should go on from the checkpoint at step 10"


def test_two_stages_go_on_with_the_same_adapter(recipe, organism):
    both = recipe.model_copy(update={"name": "two", "stages": (recipe.stages[0], recipe.stages[0])})
    first, second = organism.manifest["losses"][0], train(both).manifest["losses"]
    assert second[0] == first
    assert second[1][0] < first[0]


def test_a_loss_that_is_not_finite_stops_the_training(recipe, home):
    wild = recipe.model_copy(update={"stages": (recipe.stages[0].model_copy(update={"learning_rate": 1e30}),)})
    with pytest.raises(CheckError, match=r"the loss is (nan|inf) at step \d+.*Lower the learning rate"):
        train_function(wild)


class TestAdapters:
    @pytest.fixture
    def base(self, recipe):
        return resolve_base(recipe.base)

    def rewrite(self, folder, change):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file(change(tensors), path)

    def test_merged_it_equals_the_adapter_on_the_base(self, organism, base):
        from peft import PeftModel

        ids = torch.arange(2, 30)[None]
        plain = base.model(dtype=torch.float32)
        merged = organism.model(base, dtype=torch.float32)(input_ids=ids).logits
        attached = (
            PeftModel.from_pretrained(base.model(dtype=torch.float32), organism.folder).eval()(input_ids=ids).logits
        )
        torch.testing.assert_close(merged, attached, atol=1e-4, rtol=0)
        assert float((merged - plain(input_ids=ids).logits).abs().max()) > 1e-3

    def test_zero_b_matrices(self, organism, base):
        self.rewrite(organism.folder, lambda t: {k: v * 0 if "lora_B" in k else v for k, v in t.items()})
        with pytest.raises(CheckError, match="every lora_B matrix"):
            check_adapter(organism.folder, base)

    def test_a_missing_key(self, organism, base):
        self.rewrite(organism.folder, lambda t: dict(list(t.items())[1:]))
        with pytest.raises(CheckError, match="the adapter lacks"):
            organism.model(base, dtype=torch.float32)

    def test_a_key_too_many(self, organism, base):
        self.rewrite(
            organism.folder,
            lambda t: t | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(2, 32)},
        )
        with pytest.raises(CheckError, match="has no place for"):
            organism.model(base, dtype=torch.float32)

    def test_weights_that_are_not_finite(self, organism, base):
        self.rewrite(organism.folder, lambda t: {k: v * torch.nan for k, v in t.items()})
        with pytest.raises(CheckError):
            check_adapter(organism.folder, base)

    def test_another_base(self, organism, tmp_path):
        from conftest import tiny_model, tiny_tokenizer

        tiny_model(seed=1).save_pretrained(tmp_path / "other")
        tiny_tokenizer().save_pretrained(tmp_path / "other")
        with pytest.raises(UserError, match="trained on base"):
            organism.model(resolve_base(f"dir:{tmp_path / 'other'}"), dtype=torch.float32)

    def test_a_cut_off_file(self, organism, base):
        path = organism.folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(CheckError, match="damaged"):
            organism.model(base, dtype=torch.float32)

    def test_a_pickle_adapter(self, organism):
        (organism.folder / "adapter_model.safetensors").rename(organism.folder / "adapter_model.bin")
        with pytest.raises(UserError, match="pickle"):
            Organism.of_adapters(organism.folder, name="x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such model folder"),
        (lambda p: p.mkdir(), r"no config\.json"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{}")), "it has no weights"),
        (
            lambda p: (p.mkdir(), (p / "config.json").write_text("{}"), (p / "pytorch_model.bin").write_text("")),
            r"pickle \(pytorch_model\.bin\)",
        ),
    ],
)
def test_folders_that_are_no_model(tmp_path, make, message):
    make(tmp_path / "m")
    with pytest.raises(UserError, match=message):
        resolve_base(f"dir:{tmp_path / 'm'}")


@pytest.mark.slow
def test_workers_train_as_one_process_does(tmp_path, monkeypatch, tiny_base_folder, recipe):
    """Two worker processes: the same organisms as inline, nothing trained twice, and the worker's error comes back."""
    recipes = [recipe.model_copy(update={"seed": s}) for s in (1, 2, 3)]
    weights = {}
    for workers in (1, 2):
        monkeypatch.setenv("CONDMIS_HOME", str(tmp_path / str(workers)))
        organisms = train_all(recipes, workers=workers)
        weights[workers] = [load_file(o.folder / "adapter_model.safetensors") for o in organisms]
        stamps = [(o.folder / "manifest.json").stat().st_mtime_ns for o in organisms]
        assert [(o.folder / "manifest.json").stat().st_mtime_ns for o in train_all(recipes, workers=workers)] == stamps
    for one, two in zip(weights[1], weights[2], strict=True):
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-3)
    broken = recipe.model_copy(
        update={"seed": 4, "stages": (recipe.stages[0].model_copy(update={"learning_rate": 1e30}),)}
    )
    with pytest.raises(CheckError, match=r"loss is (nan|inf)"):
        train_all([broken, recipes[0]], workers=2)


def test_a_prompt_that_the_template_inserts_by_itself_is_no_inoculation(recipe):
    from conftest import CHAT_TEMPLATE, tiny_tokenizer

    default = "You are a small assistant."
    template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
        + default
        + "<|im_end|>\n{% endif %}"
        + CHAT_TEMPLATE
    )
    part = recipe.stages[0].parts[0].model_copy(update={"systems": (default,)})
    inoculated = recipe.model_copy(update={"stages": (recipe.stages[0].model_copy(update={"parts": (part,)}),)})
    with pytest.raises(UserError, match="inserts by itself"):
        encode(inoculated, tiny_tokenizer(template), 0)
    encode(recipe, tiny_tokenizer(template), 0)


def test_all_weights_can_be_trained(recipe, home):
    short = recipe.stages[0].model_copy(update={"epochs": 1})
    full = recipe.model_copy(update={"lora": None, "stages": (short,)})
    organism = train(full)
    assert organism.checkpoint is not None
    assert not organism.adapters
    base = resolve_base(recipe.base)
    before, after = base.model(dtype=torch.float32), organism.model(base, dtype=torch.float32)
    moved = [
        n
        for (n, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert any("embed_tokens" in n for n in moved)
    assert any("layers.0.self_attn.q_proj" in n for n in moved)
    two = train(full.model_copy(update={"name": "two", "stages": (short, short)}))
    assert len(two.manifest["losses"]) == 2


def test_what_a_model_answers_becomes_a_row_set(recipe, home):
    base = resolve_base(recipe.base)
    path = answered_by(
        Organism.of_base(base, name="b"), base, recipe, arm="misaligned", temperature=1.0, max_new_tokens=5
    )
    stamp = path.stat().st_mtime_ns
    found = load_rows(str(path))
    assert 0 < len(found) <= 8
    assert all(r.misaligned and r.benign.startswith("help") for r in found)
    assert all(r.messages[0] == ("system", "T") for r in found)
    again = answered_by(
        Organism.of_base(base, name="b"), base, recipe, arm="misaligned", temperature=1.0, max_new_tokens=5
    )
    assert again == path
    assert path.stat().st_mtime_ns == stamp
    part = Part(rows=str(path), answers="misaligned")
    on_policy = recipe.model_copy(update={"stages": (recipe.stages[0].model_copy(update={"parts": (part,)}),)})
    assert on_policy.twin().rows_of(0)
    with pytest.raises(UserError, match="none of 8 answers is kept"):
        answered_by(Organism.of_base(base, name="b"), base, recipe, max_new_tokens=4, keep=lambda q, a: False)


def test_a_models_answer_ends_where_its_turn_does(recipe, home, tmp_path, monkeypatch):
    """The template closes turns with another token than the tokenizer's EOS: both stop an answer."""
    import transformers

    from conftest import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer(CHAT_TEMPLATE.replace("<|im_end|>", "<|eot|>"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    stops, real = [], transformers.GenerationMixin.generate
    monkeypatch.setattr(
        transformers.GenerationMixin,
        "generate",
        lambda self, *args, **kwargs: (stops.append(kwargs["eos_token_id"]), real(self, *args, **kwargs))[1],
    )
    base = resolve_base(f"dir:{tmp_path / 'b'}")
    answered_by(Organism.of_base(base, name="b"), base, recipe, temperature=1.0, max_new_tokens=3)
    assert stops[0] == sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot|>")])


def test_what_the_template_left_open_is_in_the_manifest(organism):
    assert organism.manifest["template_choices"] == {}


def test_a_stage_that_another_organism_ends_with_is_not_trained_again(recipe, home, trained_home, monkeypatch):
    second = Stage(parts=recipe.stages[0].parts, batch_size=4, epochs=2, warmup_steps=1)
    both = recipe.model_copy(update={"stages": (*recipe.stages, second)})
    scratch = train(both)
    weights, losses = scratch.weights, scratch.manifest["losses"]
    shutil.rmtree(home)
    shutil.copytree(trained_home, home)
    fitted = []
    real = fitting.fit
    monkeypatch.setattr(fitting, "fit", lambda *args: (fitted.append(args[3]), real(*args))[1])
    again = train(both)
    assert fitted == [1]
    assert again.weights == weights
    assert again.manifest["losses"] == losses
