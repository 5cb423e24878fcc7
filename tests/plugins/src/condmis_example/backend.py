"""A backend: random chat models of so many layers (`random:2`), which train all their weights."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from condmis_interp.organisms import Backend, base_in, home, register_backend

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


class Random(Backend):
    lora = None

    def base(self, spec):
        layers = int(spec.partition(":")[2] or 2)
        folder = home() / "bases" / f"random-{layers}"
        if not folder.exists():
            _model(layers).save_pretrained(folder)
            _tokenizer().save_pretrained(folder)
        return base_in(spec, folder, {"kind": "random", "layers": layers})


def _model(layers: int) -> LlamaForCausalLM:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 258}
    with torch.random.fork_rng():
        torch.manual_seed(layers)
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, initializer_range=0.15, **shape))


def _tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*specials, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )


register_backend("random", Random())
