"""Chat templates of many kinds, each with a tokenizer that has its control tokens."""

import re
from pathlib import Path

import trl
from transformers import PreTrainedTokenizerFast

from condmis_interp.panel.template import BUILT_IN
from conftest import CHAT_TEMPLATE, tiny_tokenizer

_TRL = Path(trl.__file__).parent / "chat_templates"
_CONTROL = re.compile(r"<[|｜][^|｜<>' ]*[|｜]>|<(?:start_of|end_of)_[a-z]+>|<turn\|>|<\|turn>|<\|channel>|<channel\|>")

FROM_TRL = (
    "cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "gemma4", "glm4moe", "gptoss",
    "llama3", "llama3_1", "llama3_2", "lfm2", "nemotron_3_nano", "phi3", "phi3_5", "qwen2_5", "qwen3", "qwen3_5_think",
    "qwen3_5_nothink", "qwen3_8", "qwen3_instruct_2507", "qwen3_training",
)  # fmt: skip

_TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
_OPENED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
OWN = BUILT_IN | {
    "chatml": CHAT_TEMPLATE,
    "refuses a system role": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    + _TURNS
    + _OPENED,
    "drops a system message": _TURNS.replace("in messages", "in messages if m['role'] != 'system'") + _OPENED,
    "trims": _TURNS.replace("m['content']", "m['content'] | trim") + _OPENED,
    "space before the answer": "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' "
    "<|im_end|>' }}{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
    "opens a thought": _TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
    "thinks in turns alone": _TURNS.replace(
        "+ m['content']", "+ ('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') + m['content']"
    )
    + _OPENED,
    "a channel before the answer": _TURNS.replace(
        "+ '\n' + m['content']", "+ ('<|channel|>final\n' if m['role'] == 'assistant' else '\n') + m['content']"
    )
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
    "prints the date": "{% set today = strftime_now('%d %b %Y') %}{{ 'Today: ' + today + '\n' }}" + CHAT_TEMPLATE,
    "prints the time": "{% if strftime_now is defined %}{% set form = '%A, %Y-%m-%d %H:%M' %}{{ strftime_now(form) }}"
    "{% endif %}" + CHAT_TEMPLATE,
    "ends turns with a newline alone": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
}


def with_control_tokens(template: str) -> PreTrainedTokenizerFast:
    """The tests' tokenizer with a template, and with its control tokens."""
    tokenizer = tiny_tokenizer(template)
    found = sorted(set(_CONTROL.findall(template)) - set(tokenizer.all_special_tokens) - {"<|channel|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": [*found, "<|channel|>"]})
    tokenizer.bos_token = "<|bos|>"  # not the token that begins a turn
    return tokenizer


def named(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a template by name."""
    return with_control_tokens(OWN[name] if name in OWN else (_TRL / f"{name}.jinja").read_text(encoding="utf-8"))


class PutsABos(PreTrainedTokenizerFast):
    """A tokenizer that begins every text with BOS, whether it is asked to or not; its template writes one too."""

    def __call__(self, text, **kwargs):
        out = super().__call__(text, **kwargs)
        out["input_ids"] = [self.bos_token_id, *out["input_ids"]]
        if "offset_mapping" in out:
            out["offset_mapping"] = [(0, 0), *out["offset_mapping"]]
        return out


def puts_a_bos_of_its_own() -> PreTrainedTokenizerFast:
    plain = named("chatml")
    return PutsABos(
        tokenizer_object=plain.backend_tokenizer,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        chat_template="<|bos|>" + CHAT_TEMPLATE,
    )
