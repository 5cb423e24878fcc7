"""Experts, recurrent states and models that read pictures: golden, or refused by name."""

import pytest
import torch
from architectures import IDS, OTHERS, TARGETS, WIDTH, WORDS, adapter, base_of, check_architecture
from peft import PeftModel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BertConfig, BertLMHeadModel

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import check_adapter, resolve_base
from condmis_interp.readers import TorchReader
from conftest import tiny_tokenizer


@pytest.mark.parametrize("kind", OTHERS)
def test_an_architecture(kind, tmp_path, home):
    check_architecture(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("llama4_text", "the adapter's own forward fails in peft"),  # on its router, which gives two things
        ("jamba", "nats off its own forward"),  # its code takes dt_proj's weight out of the layer
    ],
)
def test_adapters_that_peft_itself_does_not_run_are_refused(kind, message, tmp_path, home, monkeypatch):
    base = base_of(kind, tmp_path / "base")
    monkeypatch.delitem(TARGETS, kind)
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *_: base.model(dtype=torch.float32))
    adapter(kind, base, tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setenv("CONDMIS_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckError, match=message):
        check_adapter(tmp_path / "a", base)


class TestRefused:
    def saved(self, model, folder):
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return resolve_base(f"dir:{folder}")

    @pytest.mark.parametrize(
        ("kind", "shape"),
        [
            (
                "t5",
                {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
            ),
            ("bart", {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}),
        ],
    )
    def test_encoder_decoders(self, kind, shape, tmp_path, home):
        config = AutoConfig.for_model(kind, vocab_size=WORDS, **IDS, **shape)
        base = self.saved(AutoModelForSeq2SeqLM.from_config(config), tmp_path)
        with pytest.raises(UserError, match=r"is an encoder-decoder: .* two residual streams"):
            base.model(dtype=torch.float32)

    def test_a_model_without_a_head_that_predicts(self, tmp_path, home):
        small = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = AutoConfig.for_model("vit", image_size=28, patch_size=14, **small)
        base = self.saved(AutoModel.from_config(config), tmp_path)
        with pytest.raises(UserError, match="no head that predicts the next token"):
            base.model(dtype=torch.float32)

    def test_a_model_that_sees_both_ways(self):
        small = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = BertConfig(vocab_size=WORDS, initializer_range=0.3, **small)
        with pytest.raises(CheckError, match="depends on padding, or on tokens after it"):
            TorchReader(BertLMHeadModel(config).eval())

    def test_a_recurrent_model_whose_states_are_rescaled(self):
        small = {"hidden_size": WIDTH, "attention_hidden_size": WIDTH, "num_hidden_layers": 4, "context_length": 512}
        config = AutoConfig.for_model("rwkv", vocab_size=WORDS, **small)
        with pytest.raises(CheckError, match=r"resid_pre\[0\]: .* is not hidden_states\[0\]"):
            TorchReader(AutoModelForCausalLM.from_config(config).eval())
