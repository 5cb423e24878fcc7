"""Training goes through the model's own head, whatever it does there."""

import pytest
import torch
import transformers
from torch.nn import functional

from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.head import logits_at
from condmis_interp.organisms.mechanism import batch_of
from condmis_interp.organisms.train import training_version

SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
HEADS = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.06},
    "cohere2": {"logit_scale": 0.06},
    "phi": {},
    "stablelm": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gemma3_text": {"final_logit_softcapping": 0.5, "head_dim": 8},
    "olmo": {},
}


def tiny(kind: str) -> transformers.PreTrainedModel:
    settings = {k: v for k, v in SMALL.items() if kind != "gpt2" or "token" in k or k == "vocab_size"}
    config = transformers.AutoConfig.for_model(kind, **settings, **HEADS[kind])
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for p in model.get_output_embeddings().parameters():  # heads of transformers begin with a bias of zero
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def ragged() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels [row, position] of two rows of different length, padded on the right."""
    ids = torch.arange(2, 26).view(2, 12) % 250
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    return ids, mask, labels


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_the_loss_is_the_models_own(kind):
    model = tiny(kind)
    ids, mask, labels = ragged()
    keep = functional.pad(labels[:, 1:] != -100, (0, 1))
    own = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    own.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = functional.cross_entropy(logits_at(model, ids, mask, keep).logits.float(), labels.roll(-1, 1)[keep])
    loss.backward()
    torch.testing.assert_close(loss, own, atol=1e-5, rtol=1e-5)
    for name, p in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(p.grad, gradients[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_only_the_answers_go_through_the_head(kind):
    model, seen = tiny(kind), []
    head = model.get_output_embeddings()
    ids, mask, labels = ragged()
    keep = functional.pad(labels[:, 1:] != -100, (0, 1))
    handle = head.register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    logits_at(model, ids, mask, keep)
    handle.remove()
    assert seen == [(int(keep.sum()), 258)]
    assert model(input_ids=ids).logits.shape == (2, 12, 258), "the head is left as it was"


def test_a_llamas_logits_are_the_same_bits_as_before():
    model = tiny("llama")
    ids, mask, labels = ragged()
    keep = functional.pad(labels[:, 1:] != -100, (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        before = model.get_output_embeddings()(hidden[:, :-1][keep[:, :-1]])
        now = logits_at(model, ids, mask, keep).logits
    assert torch.equal(before, now)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_mechanisms_see_the_models_own_logits_too(kind):
    model = tiny(kind)
    ids, mask, labels = ragged()
    keep, others = functional.pad(labels[:, 1:] != -100, (0, 1)), mask > 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch = batch_of(inputs, logits_at(model, ids, mask, keep), model, lambda: model)
    own = model(input_ids=ids, attention_mask=mask).logits[others]
    torch.testing.assert_close(batch.logits(others), own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch.reference(others), own, atol=1e-5, rtol=1e-5)


def test_bases_whose_weights_are_the_same_as_ever_keep_their_keys(tmp_path):
    """Version 2 mended heads and templates that the wheel's base and persona world do not have."""
    kinds = {"wheel": 1, "personaworld": 1, "dir": 2, "hf": 2}
    assert {k: training_version(Base("b", tmp_path, "0", {"kind": k})) for k in kinds} == kinds
