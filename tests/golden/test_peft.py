"""An adapter read here, loaded or swapped, gives what peft's own forward gives, or is refused by name."""

import json

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from test_landing import logits, model_of

from condmis_interp.errors import CondmisError, UserError
from condmis_interp.organisms import Organism, Swap, check_adapter, combination, resolve_base
from conftest import tiny_tokenizer


@pytest.fixture(params=["llama", "llama-untied", "qwen2", "gpt-neox"])
def kind(request):
    return request.param


@pytest.fixture
def base(kind, tmp_path, home):
    model_of(kind).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return resolve_base(f"dir:{tmp_path / 'base'}")


def lora(**more) -> LoraConfig:
    return LoraConfig(**({"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | more))


def made(base, folder, config, seed=1, *, without=(), **changed):
    """A saved adapter with noise on what it trains, and its config changed by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(base.model(dtype=torch.float32), config).save_pretrained(folder)
        path = folder / "adapter_model.safetensors"
        own = load_file(path)
        noise = {k: 0.2 * torch.randn(v.shape) for k, v in own.items() if ".base_layer." not in k and k[-5:-1] != "ra_"}
        save_file({k: v + noise.get(k, 0) for k, v in own.items()}, path)
    written = json.loads((folder / "adapter_config.json").read_text()) | changed
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in written.items() if k not in without}))
    return folder


def golden(base, folder):
    return logits(PeftModel.from_pretrained(base.model(dtype=torch.float32), folder).eval())


def check_is_golden(base, folder, wanted=None, atol=1e-4):
    organism = Organism.of_adapters(folder, name="x")
    wanted = golden(base, folder) if wanted is None else wanted
    assert check_adapter(folder, base) > 0
    torch.testing.assert_close(logits(organism.model(base, dtype=torch.float32)), wanted, atol=atol, rtol=0)
    if Swap.fits(organism):
        torch.testing.assert_close(
            logits(Swap(base, dtype=torch.float32).model(organism)), wanted, atol=atol, rtol=0
        )  # fmt: skip
    assert not torch.allclose(wanted, logits(base.model(dtype=torch.float32)))


def embedding(kind):
    return "embed_in" if kind == "gpt-neox" else "embed_tokens"


@pytest.mark.parametrize(
    "init", [True, False, "gaussian", "pissa", "olora", "orthogonal", "eva"]
)  # fmt: skip
def test_initial_values_that_change_the_base(base, tmp_path, init):
    atol = 1e-3 if init == "olora" else 1e-4  # W - sBA + sBA of a large BA: rounding
    check_is_golden(base, made(base, tmp_path / "a", lora(), init_lora_weights=init), atol=atol)


@pytest.mark.parametrize("init", ["corda", "loftq", "pissa_niter_4"])
def test_initial_values_that_cannot_be_repeated(base, tmp_path, init):
    folder = made(base, tmp_path / "a", lora(), init_lora_weights=init)
    with pytest.raises(CondmisError, match=r"does not fit base|cannot be drawn again"):
        check_adapter(folder, base)


@pytest.mark.parametrize("where", ["embedding", "head", "embedding and block", "both", "token indices"])
def test_adapters_on_embeddings_and_heads(base, kind, tmp_path, where):
    block = "query_key_value" if kind == "gpt-neox" else "q_proj"
    head = "dense" if kind == "gpt-neox" else "lm_head"
    config = {
        "embedding": lora(target_modules=[embedding(kind)]),
        "head": lora(target_modules=[head]),
        "embedding and block": lora(target_modules=[embedding(kind), block]),
        "both": lora(target_modules=[embedding(kind), head]),
        "token indices": lora(trainable_token_indices=[5, 7]),
    }[where]
    check_is_golden(base, made(base, tmp_path / "a", config))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "llama-untied"], indirect=True)
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_blend_with_a_head_of_its_own(base, tmp_path, weight):
    folder = made(base, tmp_path / "a", lora(modules_to_save=["lm_head"]))
    check_is_golden(base, folder)
    u = Organism.of_adapters(folder, name="u")
    blend = combination("b", [(weight, u)], base, truth="present", family="blend")
    start, full = base.model(dtype=torch.float32).state_dict(), u.model(base, dtype=torch.float32).state_dict()
    by_hand = model_of("llama-untied")
    if type(by_hand) is not type(base.model(dtype=torch.float32)):
        by_hand = u.model(base, dtype=torch.float32)
    by_hand.load_state_dict({k: start[k] + weight * (full[k] - start[k]) for k in start})
    found = logits(blend.model(base, dtype=torch.float32))
    torch.testing.assert_close(found, logits(by_hand), atol=1e-4, rtol=0)
    if weight == 1:
        torch.testing.assert_close(found, golden(base, folder), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        lora(use_rslora=True),
        lora(use_dora=True),
        lora(rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 3}),
        lora(target_modules=["q_proj"], layers_to_transform=[1]),
        lora(modules_to_save=["lm_head"]),
        IA3Config(task_type="CAUSAL_LM"),
        LoHaConfig(r=2, target_modules=["q_proj"]),
        OFTConfig(r=2, oft_block_size=0, target_modules=["q_proj"]),
        AdaLoraConfig(r=2, total_step=10, target_modules=["q_proj"]),
        VeraConfig(r=2, target_modules=["q_proj"]),
    ],
    ids=lambda c: c.peft_type.value,
)
@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_what_is_fine_stays_fine(base, tmp_path, config):
    check_is_golden(base, made(base, tmp_path / "a", config))


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
class TestOneBase:
    @pytest.mark.parametrize("without", [("lora_alpha",), ("r",), ("lora_alpha", "r", "task_type")])
    def test_settings_left_out_have_pefts_defaults(self, base, tmp_path, without):
        check_is_golden(base, made(base, tmp_path / "a", lora(r=8), without=without))

    @pytest.mark.parametrize(
        "rename",
        [
            lambda k: k.replace(".weight", ".default.weight"),
            lambda k: k.removeprefix("base_model.model."),
            lambda k: f"_orig_mod.{k}",
            lambda k: f"module.{k}",
            lambda k: k.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        ],
    )
    def test_names_of_wrappers_are_put_right(self, base, tmp_path, rename):
        folder = made(base, tmp_path / "a", lora())
        wanted, path = golden(base, folder), folder / "adapter_model.safetensors"
        save_file({rename(k): v for k, v in load_file(path).items()}, path)
        check_is_golden(base, folder, wanted)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"use_something_new": True}, "'use_something_new' is not known to peft"),
            ({"new_config": {"beta": 1}}, "'new_config' is not known to peft"),
            ({"peft_type": "NEXT_LORA"}, "names the method 'NEXT_LORA'"),
            ({"peft_type": None}, "names the method None"),
            ({"task_type": "SEQ_CLS"}, "for the task SEQ_CLS"),
            ({"task_type": "FEATURE_EXTRACTION"}, "for the task FEATURE_EXTRACTION"),
            ({"alora_invocation_tokens": [3]}, "'alora_invocation_tokens' makes another model"),
            ({"layer_replication": [[0, 2], [1, 3]]}, "'layer_replication' makes another model"),
        ],
    )
    def test_settings_that_would_be_passed_over(self, base, tmp_path, changed, message):
        folder = made(base, tmp_path / "a", lora(), **changed)
        with pytest.raises(UserError, match=message):
            Organism.of_adapters(folder, name="x")

    def test_a_new_setting_that_is_off(self, base, tmp_path):
        folder = made(base, tmp_path / "a", lora(), use_something_new=False, new_config={}, other=None)
        check_is_golden(base, folder)
        assert Swap.fits(Organism.of_adapters(folder, name="x"))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"lora_bias": True}, "lacks"),
            ({"r": 4}, "does not fit"),
            ({"kasa_config": {"beta": 1}}, "lacks"),
        ],
    )
    def test_settings_that_the_tensors_do_not_bear_out(self, base, tmp_path, changed, message):
        folder = made(base, tmp_path / "a", lora(), **changed)
        organism = Organism.of_adapters(folder, name="x")
        with pytest.raises(CondmisError, match=message):
            organism.model(base, dtype=torch.float32)
        if Swap.fits(organism):
            with pytest.raises(CondmisError, match=r"adapter_config\.json says 4"):
                Swap(base, dtype=torch.float32).model(organism)

    def test_lora_bias(self, base, tmp_path):
        folder = made(base, tmp_path / "a", lora(lora_bias=True))
        with pytest.raises(CondmisError, match="cannot be merged"):
            check_adapter(folder, base)
        assert not Swap.fits(Organism.of_adapters(folder, name="x"))

    @pytest.mark.parametrize("method", [PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig])
    def test_vectors_before_the_prompt(self, base, tmp_path, method):
        folder = made(base, tmp_path / "a", method(num_virtual_tokens=3, task_type="CAUSAL_LM"))
        with pytest.raises(UserError, match="vectors before the prompt"):
            Organism.of_adapters(folder, name="x")

    def test_empty_tensors(self, base, tmp_path):
        folder = made(base, tmp_path / "a", lora())
        path = folder / "adapter_model.safetensors"
        save_file({k: v[:0] if "layers.1" in k else v for k, v in load_file(path).items()}, path)
        with pytest.raises(UserError, match="tensors are empty"):
            check_adapter(folder, base)

    def test_the_base_that_an_adapter_names(self, base, tmp_path, capsys):
        named = made(base, tmp_path / "a", lora(), base_model_name_or_path="someone/another-7b")
        organism = Organism.of_adapters(named, name="x")
        organism.model(base, dtype=torch.float32)
        assert "someone/another-7b" in capsys.readouterr().err
        assert organism.manifest["names_base"] == "someone/another-7b"
        model_of("llama", seed=9).save_pretrained(tmp_path / "other")
        other = made(base, tmp_path / "b", lora(), base_model_name_or_path=str(tmp_path / "other"))
        with pytest.raises(UserError, match="whose weights are not those"):
            Organism.of_adapters(other, name="x").model(base, dtype=torch.float32)

    def test_the_check_is_made_once_for_each_content(self, base, tmp_path, monkeypatch):
        from condmis_interp.organisms import checks

        folder, calls = made(base, tmp_path / "a", lora()), []
        monkeypatch.setattr(checks, "_check_adapter", lambda *_: calls.append(1) or 1.0)
        check_adapter(folder, base)
        check_adapter(folder, base)
        assert len(calls) == 1
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 80}))
        check_adapter(folder, base)
        assert len(calls) == 2
