"""Tiny random models of many architectures in folders, their adapters, and what plain transformers says of them."""

from functools import lru_cache

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from condmis_interp.organisms import Organism, Swap, check_adapter, resolve_base
from condmis_interp.panel import Answer, Prompt
from condmis_interp.readers import Capture, Request, TorchReader
from conftest import tiny_tokenizer

WORDS, WIDTH, LAYERS = 258, 32, 4
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    **IDS,
}
GPT = {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "initializer_range": 0.15, **IDS}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = EXPERTS | {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MIXED = ["linear_attention", "full_attention"] * 2
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 400}
DELTA = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": MIXED,
}
STATE = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWS}
NARROW = {"query_pre_attn_scalar": 8, "head_dim": 8, "sliding_window": 8}
THREE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
EYE = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
PICTURES = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}

ATTENTION = {
    "llama": SHAPE,
    "mistral": SHAPE | {"sliding_window": 8},
    "qwen2": SHAPE,
    "qwen3": SHAPE | {"head_dim": 8},
    "gemma": SHAPE | {"head_dim": 8},
    "gemma2": SHAPE | NARROW | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": SHAPE | GEMMA | {"sliding_window": 8},
    "granite": SHAPE
    | {"logits_scaling": 8.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    "cohere": SHAPE | {"logit_scale": 0.06},
    "cohere2": SHAPE | {"logit_scale": 0.06, "sliding_window": 400},
    "bloom": {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
        "initializer_range": 0.15,
        **IDS,
    },
    "mpt": {"vocab_size": WORDS, "d_model": WIDTH, "n_heads": 4, "n_layers": LAYERS, "initializer_range": 0.15},
    "falcon": SHAPE | {"alibi": True},
    "gpt2": GPT,
    "gpt_neox": SHAPE,
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neo": {
        **{k: v for k, v in SHAPE.items() if k in ("vocab_size", "hidden_size", "initializer_range", *IDS)},
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
    },
    "opt": SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": WIDTH},
    "phi": SHAPE,
    "phi3": SHAPE | {"sliding_window": None},
    "stablelm": SHAPE,
    "starcoder2": SHAPE | {"sliding_window": None},
    "olmo2": SHAPE,
    "olmo3": SHAPE | WINDOWS,
    "smollm3": SHAPE,
    "glm4": SHAPE | {"head_dim": 8},
    "nemotron": SHAPE,
    "exaone4": SHAPE | {"sliding_window": 400},
}
"""Attention alone, by model_type: rotary, learned and ALiBi positions, windows, scales, caps, parallel blocks."""

OTHERS = {
    "mixtral": SHAPE | EXPERTS | {"sliding_window": None},
    "qwen2_moe": SHAPE | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": SHAPE | EXPERTS | {"head_dim": 8},
    "olmoe": SHAPE | EXPERTS,
    "gpt_oss": SHAPE | EXPERTS | {"head_dim": 8, "sliding_window": 8},
    "granitemoe": SHAPE | EXPERTS | {"logits_scaling": 4.0},
    "deepseek_v3": SHAPE | LATENT,
    "llama4_text": SHAPE | EXPERTS | {"intermediate_size_mlp": 32, "head_dim": 8, "attention_chunk_size": 16},
    "qwen3_next": SHAPE | EXPERTS | DELTA | {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": SHAPE | DELTA,
    "lfm2": SHAPE | {"full_attn_idxs": [1, 3]},
    "mamba": SHAPE | {"state_size": 4},
    "mamba2": SHAPE | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "jamba": SHAPE
    | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
    | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 3},
    "bamba": SHAPE | STATE | {"attn_layer_indices": [1, 3]},
    "falcon_h1": SHAPE | STATE | {"mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.5},
    "granitemoehybrid": SHAPE
    | EXPERTS
    | STATE
    | {"shared_intermediate_size": 32, "layer_types": ["mamba", "attention"] * 2},
    "recurrent_gemma": SHAPE | {"head_dim": 8, "lru_width": WIDTH, "attention_window_size": 64},
    "minimax": SHAPE | EXPERTS | {"head_dim": 8, "layer_types": MIXED, "block_size": 8},
    "olmo_hybrid": SHAPE | DELTA,
    "gemma3": {
        "text_config": SHAPE | GEMMA | {"model_type": "gemma3_text"},
        "vision_config": TOWER | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 250,
    },
    "qwen2_5_vl": {"text_config": SHAPE | THREE, "vision_config": EYE, **PICTURES},
    "qwen3_vl": {
        "text_config": SHAPE | THREE | {"head_dim": 8},
        "vision_config": EYE | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **PICTURES,
    },
    "qwen3_5": {
        "text_config": SHAPE | DELTA | {"rope_parameters": THREE["rope_parameters"] | {"partial_rotary_factor": 1.0}},
        "vision_config": EYE | {"num_position_embeddings": 16},
        **PICTURES,
    },
    "llava": {
        "text_config": SHAPE | {"model_type": "llama"},
        "vision_config": TOWER | {"model_type": "clip_vision_model", "projection_dim": 16},
        "image_token_index": 250,
    },
    "mistral3": {
        "text_config": SHAPE | {"model_type": "mistral", "sliding_window": None},
        "vision_config": TOWER | {"model_type": "pixtral", "head_dim": 8},
        "image_token_index": 250,
    },
}
"""Experts, recurrent states, and models that read pictures as well."""

PICTURE_READERS = ("gemma3", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava", "mistral3")
WHOLE = {
    *("mpt", "qwen3_next", "qwen3_5_text", "qwen3_5", "lfm2", "mamba", "mamba2", "jamba", "bamba", "falcon_h1"),
    *("granitemoehybrid", "recurrent_gemma", "minimax", "olmo_hybrid"),
}
"""Those that run every sequence whole."""
NO_PARTS = {
    *("granite", "bloom", "mpt", "opt", "mamba", "mamba2", "falcon_h1", "granitemoehybrid", "minimax", "llama4_text"),
}
"""Those whose attention and MLP outputs are no module's."""


STATE_AND_ATTENTION = ["in_proj", "q_proj", "v_proj", "down_proj"]
TARGETS = {
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    "falcon_h1": STATE_AND_ATTENTION,
    "jamba": STATE_AND_ATTENTION,
    "llama4_text": ["q_proj", "v_proj", "o_proj"],
    **{kind: ["q_proj", "v_proj", "down_proj"] for kind in PICTURE_READERS},
}
"""What adapters are on where peft refuses some linear layers, or does not run them, or some lie outside the blocks."""
NO_SWAP = {"mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "qwen3_next", "minimax"}
"""Those whose experts peft adapts as stacked parameters, which is more than plain matrices: loaded, not swapped."""


def model_of(kind: str) -> transformers.PreTrainedModel:
    """A random model, with weights large enough that every layer matters."""
    config = AutoConfig.for_model(kind, **(ATTENTION | OTHERS)[kind])
    several = kind in PICTURE_READERS or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    load = AutoModelForImageTextToText if several else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load.from_config(config, attn_implementation="eager", dtype=torch.float32).eval().requires_grad_(False)


def base_of(kind: str, folder):
    """The model in a folder, opened as a base."""
    model_of(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return resolve_base(f"dir:{folder}")


@lru_cache
def ragged() -> list[Request]:
    """Five prompts of different length that begin alike, each with two answers of different length."""
    g = torch.Generator().manual_seed(1)

    def some(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 250, (n,), generator=g).tolist())

    found, start = [], some(6)
    for n in (6, 9, 12, 15, 18):
        spans = {"cue": (0, 6), "question": (6, 6 + n), "tail": (6 + n, 8 + n)}
        prompt = Prompt((*start, *some(n), 3, 4), spans, "")
        found.append(Request(prompt, tuple(Answer(some(k), (1,)) for k in (3, 7))))
    return found


@torch.no_grad()
def alone(model) -> list[torch.Tensor]:
    """Each answer's token log-probs by plain transformers: one sequence, no padding, no cache."""
    found = []
    for r in ragged():
        for a in r.answers:
            ids, n = torch.tensor([[*r.prompt.ids, *a.ids]]), len(r.prompt.ids)
            out = model(input_ids=ids, use_cache=False).logits[0, n - 1 : -1].float().log_softmax(-1)
            found.append(out.gather(1, ids[0, n:, None])[:, 0])
    return found


@torch.no_grad()
def states(model) -> torch.Tensor:
    """What leaves each block at the last token of the first prompt, by transformers' own hidden states."""
    ids = torch.tensor([ragged()[0].prompt.ids])
    hidden = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    first = 0 if "mamba" in model.config.model_type else 1  # there they are what leaves a block
    return torch.stack([h[0, -1] for h in hidden[first : first + LAYERS - 1]])


def close(found, wanted) -> None:
    for a, b in zip([lp for row in found.token_logprobs for lp in row], wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def check_architecture(kind: str, folder) -> None:
    """Plain, padded, behind a cached prefix; with an adapter, loaded and swapped: what transformers and peft say."""
    base = base_of(kind, folder / "base")
    model = base.model(dtype=torch.float32)
    wanted, hidden = alone(model_of(kind)), states(model)
    reader = TorchReader(model)
    assert reader._whole is (kind in WHOLE)
    assert bool(reader._unsound) is (kind in NO_PARTS)
    plain = reader.measure(ragged(), capture=Capture(tuple(range(LAYERS - 1)), positions=("last_template",)))
    close(plain, wanted)
    torch.testing.assert_close(plain.activations["last_template"][0], hidden, atol=1e-4, rtol=0)
    batches = reader._plan(ragged())
    assert all(len(p.ids) > 1 and not p.real.all() for p in batches[0].answers), "rows are padded"
    assert batches[0].whole or len(batches[0].prompt) == 2, "what prompts share is run once"

    adapted, organism = adapter(kind, base, folder / "adapter")
    assert check_adapter(folder / "adapter", base) > 0
    wanted = alone(adapted)
    close(TorchReader(organism.model(base, dtype=torch.float32)).measure(ragged()), wanted)
    assert Swap.fits(organism) is (kind not in NO_SWAP)
    swap = Swap(base, dtype=torch.float32)
    if Swap.fits(organism):
        close(TorchReader(swap.model(organism)).measure(ragged()), wanted)
    close(TorchReader(swap.model(Organism.of_base(base, name="b"))).measure(ragged()), alone(model))
    assert not torch.allclose(wanted[0], alone(model)[0], atol=1e-2)


def adapter(kind: str, base, folder):
    """An adapter with noise on it: peft's own model, and the organism."""
    where = TARGETS.get(kind, "all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=where, task_type="CAUSAL_LM")
        get_peft_model(base.model(dtype=torch.float32), config).save_pretrained(folder)
        path = folder / "adapter_model.safetensors"
        save_file({k: v + 0.1 * torch.randn(v.shape) for k, v in load_file(path).items()}, path)
    return PeftModel.from_pretrained(base.model(dtype=torch.float32), folder).eval(), Organism.of_adapters(
        folder, name="x"
    )
