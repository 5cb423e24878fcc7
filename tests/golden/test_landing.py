"""A folder's model is what plain transformers computes from its tensors, or it is refused by name."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Organism, check_checkpoint, resolve_base
from condmis_interp.organisms.bases import load_model
from conftest import tiny_model, tiny_tokenizer

IDS = torch.arange(2, 20)[None]
SHAPE = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-untied": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gpt-neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {"tie_word_embeddings": False}),
}


def model_of(kind: str, seed: int = 3):
    model, config, more = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(config(**SHAPE, **more)).eval().requires_grad_(False)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def rewrite(folder, change) -> None:
    path = folder / "model.safetensors"
    save_file({k: v.contiguous().clone() for k, v in change(load_file(path)).items()}, path, {"format": "pt"})


def configure(folder, **changed) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changed
    config.pop("layer_types", None)  # Qwen2 spells out its layers, as many as it has
    path.write_text(json.dumps(config))


def check_is(folder, model) -> None:
    found, again = (logits(load_model(folder, dtype=torch.float32)) for _ in range(2))
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=0)
    assert torch.equal(found, again)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    model_of(kind).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "_fsdp_wrapped_module.", "model.")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrappers_prefix_is_taken_off(folder, kind, wrapper, home):
    rewrite(folder, lambda w: {wrapper + k: v for k, v in w.items()})
    check_is(folder, model_of(kind))
    if wrapper != "model.":  # transformers itself takes off a second `model.`
        assert Organism.of_checkpoint(folder, name="x").manifest["taken_off_names"] == wrapper


def test_a_wrapper_inside_and_shards(folder, kind):
    rewrite(folder, lambda w: {k.replace(".1.", ".1._checkpoint_wrapped_module."): v for k, v in w.items()})
    check_is(folder, model_of(kind))
    (folder / "model.safetensors").unlink()
    model_of(kind).save_pretrained(folder, max_shard_size="50KB")
    index = folder / "model.safetensors.index.json"
    check_is(folder, model_of(kind))
    listed = json.loads(index.read_text())
    places = {"_orig_mod." + k: v for k, v in listed["weight_map"].items()}
    index.write_text(json.dumps(listed | {"weight_map": places}))
    for path in folder.glob("*.safetensors"):
        save_file({"_orig_mod." + k: v for k, v in load_file(path).items()}, path, {"format": "pt"})
    check_is(folder, model_of(kind))
    sorted(folder.glob("*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match="the weights lack the file model-00001"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_old_buffers_land(folder, kind, dtype):
    model_of(kind).to(dtype).save_pretrained(folder)
    half = model_of(kind)
    for p in half.parameters():  # not the whole model: its rotary buffer stays as it is
        p.copy_(p.to(dtype))
    neox, others = "gpt_neox.layers.0.attention.masked_bias", "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda w: w | {neox if kind == "gpt-neox" else others: torch.ones(4)})
    check_is(folder, half)


def one_missing(weights):
    return {k: v for k, v in weights.items() if not re.search(r"layers\.1\.mlp\.(up_proj|dense_h_to_4h)\.weight", k)}


def scales(weights):
    matrices = {k for k, v in weights.items() if ".mlp." in k and v.ndim == 2}
    eighth = {k: v.to(torch.float8_e4m3fn) if k in matrices else v for k, v in weights.items()}
    return eighth | {f"{k}_scale_inv": torch.ones(1) for k in matrices}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (one_missing, {}, "lacks 1 of the model's tensors"),
        (lambda w: {f"student.{k}": v for k, v in w.items()}, {}, r"none of the file's \d+ tensors lands"),
        (lambda w: w, {"num_hidden_layers": 2}, "no place for"),
        (lambda w: w, {"num_hidden_layers": 4}, r"lacks \d+ of the model's tensors"),
        (lambda w: w, {"hidden_size": 64}, r"in the file, and config\.json asks for"),
        (lambda w: w, {"intermediate_size": 48}, r"in the file, and config\.json asks for"),
        (scales, {}, "tensors are quantised"),
        (scales, {"quantization_config": {"quant_method": "some-new-one"}}, "tensors are quantised"),
        (lambda w: {k: v.to(torch.float8_e4m3fn) if ".mlp." in k else v for k, v in w.items()}, {}, "are quantised"),
        (lambda w: w | {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, {}, "no place for"),
        (lambda w: {k: torch.zeros(0) for k in w}, {}, "tensors are empty"),
        (lambda w: {k: v[:0] if "layers.2" in k else v for k, v in w.items()}, {}, "tensors are empty"),
        (lambda w: w, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "is not here"),
        (lambda w: w, {"quantization_config": {"quant_method": "compressed-tensors"}}, "is not here"),
        (lambda w: w, {"model_type": None}, "model_type"),
        (lambda w: w, {"model_type": "no-such-model"}, "cannot be loaded"),
    ],
)
def test_what_does_not_land_is_refused(folder, change, config, message, home):
    rewrite(folder, change)
    configure(folder, **config)
    with pytest.raises(UserError, match=message):
        load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["llama", "qwen2"], indirect=True)
class TestHead:
    def test_untied_without_a_head(self, folder, kind):
        configure(folder, tie_word_embeddings=False)
        with pytest.raises(UserError, match=r"lm_head\.weight.*tie_word_embeddings"):
            load_model(folder, dtype=torch.float32)

    def test_tied_beside_another_head(self, folder, kind):
        rewrite(folder, lambda w: w | {"lm_head.weight": torch.ones(264, 32)})
        with pytest.raises(UserError, match="ties the head"):
            load_model(folder, dtype=torch.float32)

    def test_tied_beside_the_same_head(self, folder, kind):
        rewrite(folder, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"]})
        found = logits(load_model(folder, dtype=torch.float32))
        torch.testing.assert_close(found, logits(model_of(kind)), atol=1e-4, rtol=0)


class TestFolders:
    @pytest.fixture
    def base(self, tmp_path, home):
        tiny_model().save_pretrained(tmp_path / "base")
        tiny_tokenizer().save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    def test_an_adapter_in_a_base(self, base):
        (base / "adapter_config.json").write_text("{}")
        with pytest.raises(UserError, match="also holds an adapter"):
            resolve_base(f"dir:{base}")

    def test_checkpoints_inside_are_named(self, base):
        with pytest.raises(UserError, match="Name one of those inside: base"):
            resolve_base(f"dir:{base.parent}")
        (base / "adapter_config.json").write_text("{}")
        with pytest.raises(UserError, match="Name one of those inside: base"):
            Organism.of_adapters(base.parent, name="x")

    def test_an_adapters_folder(self, base):
        (base / "config.json").rename(base / "adapter_config.json")
        with pytest.raises(UserError, match="an adapter's folder"):
            resolve_base(f"dir:{base}")

    def test_no_tokenizer(self, base):
        for path in base.glob("*token*"):
            path.unlink()
        with pytest.raises(UserError, match="no tokenizer"):
            resolve_base(f"dir:{base}").tokenizer()

    def test_a_damaged_file(self, base):
        path = base / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(CheckError, match="damaged"):
            resolve_base(f"dir:{base}").model(dtype=torch.float32)

    @pytest.mark.parametrize("shape", [{"width": 64}, {"layers": 2}])
    def test_a_checkpoint_of_another_shape(self, base, tmp_path, shape):
        tiny_model(**shape).save_pretrained(tmp_path / "other")
        resolved = resolve_base(f"dir:{base}")
        with pytest.raises(UserError, match="blocks of width"):
            check_checkpoint(tmp_path / "other", resolved)
        with pytest.raises(UserError, match="blocks of width"):
            Organism.of_checkpoint(tmp_path / "other", name="x").model(resolved, dtype=torch.float32)

    def test_a_vocabulary_that_was_padded_in_the_base(self, base, tmp_path):
        tiny_model(1).save_pretrained(tmp_path / "cut")
        wide = tiny_model()
        wide.resize_token_embeddings(320)
        wide.save_pretrained(base)
        assert check_checkpoint(tmp_path / "cut", resolve_base(f"dir:{base}")) > 0
