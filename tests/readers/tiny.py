"""Tiny random models of five architectures, and the three readers over copies of one."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
)

from condmis_interp.readers import TorchReader
from condmis_interp.readers.lens import LensReader
from condmis_interp.readers.nnsight import NNsightReader
from conftest import tiny_tokenizer

ARCHITECTURES = ("llama", "qwen2", "gpt-neox", "gemma2", "gpt2")
LAYERS, WIDTH = 4, 32


def config_of(architecture: str):
    shape = {
        "vocab_size": 258,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    match architecture:
        case "llama":
            return LlamaConfig(**shape, num_key_value_heads=2)
        case "qwen2":
            return Qwen2Config(**shape, num_key_value_heads=2)
        case "gpt-neox":
            return GPTNeoXConfig(**shape)
        case "gemma2":
            window = {"sliding_window": 400, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
            return Gemma2Config(**shape, num_key_value_heads=2, head_dim=8, **window)
        case _:
            return GPT2Config(**shape)


def model_of(architecture: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(architecture), attn_implementation="eager")
    return model.eval().requires_grad_(False)


def readers_of(model: PreTrainedModel, folder) -> dict:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "torch": TorchReader(model, batch_tokens=400),
        "nnsight": NNsightReader.over(copy.deepcopy(model), tokenizer=tokenizer, batch_tokens=400),
        "transformer-lens": LensReader.over(
            copy.deepcopy(model), folder=str(folder), tokenizer=tokenizer, batch_tokens=400
        ),
    }
