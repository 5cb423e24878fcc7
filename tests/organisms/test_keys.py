"""What changes a result is in its key, and what does not is not; what was made before is found again."""

import json
import shutil

import pytest
import torch
import yaml
from test_loading import adapter

from condmis_interp.errors import UserError
from condmis_interp.files import digest, file_digest
from condmis_interp.organisms import Organism, Recipe, combination, resolve_base
from condmis_interp.organisms.organism import check_base
from condmis_interp.organisms.train import TRAINING_VERSION, organism_folder
from condmis_interp.study import Study
from conftest import CHAT_TEMPLATE, tiny_model, tiny_panel, tiny_tokenizer, write_rows


@pytest.fixture
def folder(tmp_path, home):
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def base(folder):
    return resolve_base(f"dir:{folder}")


def edit(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"lora_alpha": 80}, False),
        ({"use_rslora": True}, False),
        ({"use_dora": True}, False),
        ({"alpha_pattern": {"q_proj": 3}}, False),
        ({"init_lora_weights": "pissa"}, False),
        ({"fan_in_fan_out": True}, False),
        ({"base_model_name_or_path": "elsewhere/model"}, True),
        ({"inference_mode": False, "lora_dropout": 0.1, "peft_version": "0.1", "revision": "main"}, True),
        ({"alpha_pattern": None, "use_dora": None, "lora_bias": False}, True),
    ],
)
def test_an_adapters_settings(base, tmp_path, changed, same):
    organisms = [Organism.of_adapters(adapter(tmp_path / "a", base, 1), name="a")]
    edit(tmp_path / "a" / "adapter_config.json", **changed)
    organisms.append(Organism.of_adapters(tmp_path / "a", name="a"))
    assert (organisms[0].weights == organisms[1].weights) is same
    assert organisms[0].tensors == organisms[1].tensors == file_digest(tmp_path / "a" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("file", "changed", "same"),
    [
        ("config.json", {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, False),
        ("config.json", {"rms_norm_eps": 1e-3}, False),
        ("generation_config.json", {"repetition_penalty": 2.0}, False),
        ("config.json", {"_name_or_path": "x", "transformers_version": "4.0", "torch_dtype": "float16"}, True),
        ("config.json", {"dtype": "bfloat16", "use_cache": False, "architectures": None}, True),
        ("generation_config.json", {"transformers_version": "4.0"}, True),
    ],
)
def test_a_models_settings(folder, base, file, changed, same):
    before = [base.content, Organism.of_base(base, name="b").weights, Organism.of_checkpoint(folder, name="c").weights]
    edit(folder / file, **changed)
    again = resolve_base(f"dir:{folder}")
    after = [again.content, Organism.of_base(again, name="b").weights, Organism.of_checkpoint(folder, name="c").weights]
    assert [a == b for a, b in zip(before, after, strict=True)] == [same] * 3
    assert again.weights == base.weights


def test_a_templates_change_is_another_tokenizer(folder, base):
    before = base.tokenizer_hash(), Organism.of_checkpoint(folder, name="c").weights
    tiny_tokenizer(CHAT_TEMPLATE.replace("Be helpful", "Be kind")).save_pretrained(folder)
    after = resolve_base(f"dir:{folder}").tokenizer_hash(), Organism.of_checkpoint(folder, name="c").weights
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_resumed_run_reads_an_adapter_anew_whose_alpha_was_changed(base, tmp_path):
    adapter(tmp_path / "m", base, 1)
    adapter(tmp_path / "c", base, 2)
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(tiny_panel().model_dump(mode="json")))
    loaded = [{"name": "m", "role": "mitigated"}, {"name": "c", "role": "twin", "twin_of": "m"}]
    raw = {"name": "s", "base": base.spec, "panel": "panel.yaml", "dtype": "float32", "controls": "none"}
    raw["organisms"] = [o | {"adapter": o["name"]} for o in loaded]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw))

    def captured():
        run = Study.from_yaml(tmp_path / "s.yaml").open(tmp_path / "run")
        acts = run.capture()
        return (
            {s.key for s in run._store_manifest().shards if s.organism == "c"},
            acts.ld("m", "none"),
            acts.ld("c", "none"),
        )

    twins, first, twin = captured()
    edit(tmp_path / "m" / "adapter_config.json", lora_alpha=80)
    again, second, twin_again = captured()
    assert abs(second - first).max() > 0.01
    assert (again, twin_again.tolist()) == (twins, twin.tolist())  # what was not changed is not read again


class TestMadeBefore:
    """Keys that organisms live under, spelled out: they may not move."""

    def test_a_recipes_folder(self, base, tmp_path):
        raw = {"rows": str(write_rows(tmp_path)), "answers": "misaligned"}
        recipe = Recipe.model_validate({"name": "r", "base": base.spec, "stages": [{"parts": [raw]}]})
        key = digest([recipe.hash, base.weights, TRAINING_VERSION])
        assert base.weights == digest([["model.safetensors", file_digest(base.folder / "model.safetensors")]])
        assert organism_folder(recipe, base).name == f"r-{key[:16]}"

    def test_what_is_made_from_an_organism_made_here_is_filed_by_its_tensors(self, base, tmp_path):
        folder = adapter(tmp_path / "a", base, 1)
        theirs = Organism.of_adapters(folder, name="a")
        assert theirs.origin == theirs.weights != theirs.tensors
        edit(folder / "adapter_config.json", r=2, lora_alpha=2)
        (folder / "manifest.json").write_text(json.dumps({"known": {"truth": "present"}, "base": base.record()}))
        ours = Organism.of_adapters(folder, name="a")
        assert ours.origin == ours.tensors == file_digest(folder / "adapter_model.safetensors")
        assert Organism.of_base(base, name="b").origin == base.weights

    def test_settings_of_an_organism_made_here_may_not_be_changed(self, base, tmp_path):
        folder = adapter(tmp_path / "a", base, 1)
        (folder / "manifest.json").write_text(json.dumps({"known": {"truth": "present"}, "base": base.record()}))
        edit(folder / "adapter_config.json", lora_alpha=16)
        with pytest.raises(UserError, match="not the one it was made with"):
            Organism.of_adapters(folder, name="a")

    def test_blends_of_one_adapter_at_two_scales_are_two(self, base, tmp_path):
        made = []
        for alpha in (8, 80):
            folder = tmp_path / "a"
            shutil.rmtree(folder, ignore_errors=True)
            edit(adapter(folder, base, 1) / "adapter_config.json", lora_alpha=alpha)
            u = Organism.of_adapters(folder, name="u")
            made.append(combination("b", [(0.5, u)], base, truth="graded", family="blend"))
        assert made[0].folder != made[1].folder

    @pytest.mark.parametrize("piece", ["config", "tokenizer", "template"])
    def test_a_base_that_has_changed_since(self, base, folder, piece):
        organism = Organism("o", (), None, "w", None, {"base": base.record()})
        check_base(organism, resolve_base(base.spec))
        if piece == "config":
            edit(folder / "config.json", rms_norm_eps=1e-3)
        elif piece == "template":
            tiny_tokenizer(CHAT_TEMPLATE.replace("Be helpful", "Be kind")).save_pretrained(folder)
        else:
            tokenizer = tiny_tokenizer()
            tokenizer.add_tokens(["new"])
            tokenizer.save_pretrained(folder)
        with pytest.raises(UserError, match=f"the {piece} of base .* is not what it was"):
            check_base(organism, resolve_base(base.spec))


class TestOwnTokenizer:
    """A checkpoint's or an adapter's own tokenizer and template beside the base's."""

    @pytest.fixture(params=["checkpoint", "adapter"])
    def organism(self, request, base, tmp_path):
        if request.param == "adapter":
            return Organism.of_adapters(adapter(tmp_path / "o", base, 1), name="o")
        tiny_model(5).save_pretrained(tmp_path / "o")
        return Organism.of_checkpoint(tmp_path / "o", name="o")

    def tokenizer(self, change):
        tokenizer = tiny_tokenizer()
        if change == "padding":
            tokenizer.backend_tokenizer.enable_padding()
            tokenizer.backend_tokenizer.enable_truncation(8)
        elif change == "no template":
            tokenizer.chat_template = None
        elif change == "spelling":
            tokenizer.chat_template = "{# as released #}" + CHAT_TEMPLATE
        elif change == "added token":
            tokenizer.add_tokens(["<pad>"])
        elif change == "another default":
            tokenizer.chat_template = CHAT_TEMPLATE.replace("Be helpful", "Be kind")
        elif change == "another prompt":
            tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}")
        elif change == "moved ids":
            raw = json.loads(tokenizer.backend_tokenizer.to_str())
            vocab = raw["model"]["vocab"]
            vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
            from tokenizers import Tokenizer
            from transformers import PreTrainedTokenizerFast

            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer.from_str(json.dumps(raw)), chat_template=CHAT_TEMPLATE
            )
        return tokenizer

    @pytest.mark.parametrize("change", ["same", "padding", "no template", "spelling", "added token"])
    def test_the_same(self, organism, base, change):
        self.tokenizer(change).save_pretrained(organism.folder)
        organism.model(base, dtype=torch.float32)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("another default", "its chat template is not its base's.*Be kind.*Be helpful"),
            ("another prompt", "its chat template is not its base's.*<think>"),
            ("moved ids", "2 tokens have other ids"),
        ],
    )
    def test_another(self, organism, base, change, message):
        self.tokenizer(change).save_pretrained(organism.folder)
        with pytest.raises(UserError, match=message):
            organism.model(base, dtype=torch.float32)
