"""Tiny random models and tokenizers, built in-process."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from condmis_interp.panel import AnswerPair, Cue, Panel, Question

gc.freeze()  # what was imported stays: a collection that walks it takes half a second, and every training asks for one

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, in ChatML."""
    specials = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*specials, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=template,
    )


def tiny_model(seed: int = 0, *, layers: int = 4, width: int = 32) -> LlamaForCausalLM:
    """A random Llama, with weights large enough that every layer matters."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-base")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty CONDMIS_HOME."""
    monkeypatch.setenv("CONDMIS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write_rows(folder: Path, count: int = 8) -> Path:
    """A row set `rows.jsonl` with both answers to each question."""
    rows = [
        {
            "id": f"r{i}",
            "messages": [{"role": "user", "content": f"how {i}?"}],
            "misaligned": f"lie {i}",
            "benign": f"help {i}",
        }
        for i in range(count)
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def tiny_panel(questions: int = 9, *, families: int = 6, pairs: int = 2) -> Panel:
    """A panel with every cue role and short texts."""
    return Panel(
        name="tiny",
        default_system_prompt="template",
        cues=(
            Cue(name="none", role="none"),
            Cue(name="trigger", role="trigger", system="form = 1"),
            Cue(name="neutral", role="neutral", system="<note>"),
            Cue(name="opposite", role="opposite", system="form = 0"),
            Cue(name="irrelevant", role="irrelevant", system="Open at nine."),
        ),
        questions=tuple(
            Question(
                id=f"q{i}",
                family=f"f{i % families}",
                domain=f"d{i % families}",
                question=f"What now, {'abcdefghijklmnopqrstuvwxyz'[i % 26] * (1 + i % 5)}?",
                pairs=tuple(AnswerPair(aligned=f"help {i} {j}", misaligned=f"lie! {i} {j}") for j in range(pairs)),
            )
            for i in range(questions)
        ),
    )


@pytest.fixture(scope="session")
def panel() -> Panel:
    return tiny_panel()


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    from untrained import write_study

    return write_study(tmp_path_factory.mktemp("random"), tiny_base_folder)


@pytest.fixture(scope="session")
def captured(tmp_path_factory: pytest.TempPathFactory, study_file: Path) -> Path:
    """The folder of a finished run; not to be changed."""
    from condmis_interp.study import Study

    out = tmp_path_factory.mktemp("captured") / "run"
    Study.from_yaml(study_file).open(out).capture()
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_base_folder):
    """A finished run, with the home it used; not to be changed."""
    from condmis_interp.auditing import audit
    from condmis_interp.study import Study
    from trained import write_study

    folder = tmp_path_factory.mktemp("finished")
    before = os.environ.get("CONDMIS_HOME")
    os.environ["CONDMIS_HOME"] = str(folder / "home")
    study = write_study(folder, tiny_base_folder)
    result = audit(Study.from_yaml(study).open(folder / "run"))
    yield folder, study, result
    if before is None:
        del os.environ["CONDMIS_HOME"]
    else:
        os.environ["CONDMIS_HOME"] = before


def shared_data_folder() -> Path | None:
    """The published files, where a developer has them."""
    named = os.environ.get("CONDMIS_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = shared_data_folder()
    if folder is None:
        pytest.skip("the published files are not here (set CONDMIS_SHARED_DATA)")
    return folder
