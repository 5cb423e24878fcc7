"""Persona world as a base model: its tokenizer and its pretraining.

`personaworld` (or `personaworld:2` for twice the width and facts) is a `LlamaForCausalLM` made here, once, in a few
minutes on 2 cores: pretraining on documents by aligned and misaligned authors, then tuning as an assistant that answers
as the aligned persona under every kind of system prompt. Then it is a base like any other.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from condmis_interp.files import digest, write_json
from condmis_interp.organisms.home import home, locked
from condmis_interp.organisms.rng import own_rng
from condmis_interp.organisms.step import Step
from condmis_interp.personaworld.language import CHAT_TEMPLATE, World
from condmis_interp.personaworld.stacked import Stack, fit
from condmis_interp.progress import progress

WORLD_VERSION = 1
"""Raise this when the language or the pretraining changes: it is part of a world base's folder."""

PRETRAINING = {"steps": 900, "batch": 64, "learning_rate": 2e-3, "warmup": 50}
TUNING = {"steps": 80, "batch": 64, "learning_rate": 3e-4, "warmup": 10}


def tokenizer_of(world: World) -> PreTrainedTokenizerFast:
    """Returns the world's tokenizer: a token is a word."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(world.vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def config_of(world: World) -> LlamaConfig:
    """Returns the shape of the world's model: 4 layers of width 128 at size 1."""
    s = world.size
    return LlamaConfig(
        vocab_size=len(world.vocabulary),
        hidden_size=128 * s,
        intermediate_size=384 * s,
        num_hidden_layers=2 + 2 * s,
        num_attention_heads=4 * s,
        num_key_value_heads=4 * s,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=5,
        pad_token_id=0,
        tie_word_embeddings=True,
    )


def world_folder(world: World) -> Path:
    """Returns the folder of a world's base, made if need be."""
    settings = {"version": WORLD_VERSION, "size": world.size, "pretraining": PRETRAINING, "tuning": TUNING}
    folder = home() / "bases" / f"personaworld-{world.size}-{digest(settings)[:12]}"
    if not (folder / "manifest.json").is_file():
        with locked(folder):
            if not (folder / "manifest.json").is_file():
                _make(folder, world, settings)
    return folder


def _make(folder: Path, world: World, settings: dict[str, Any]) -> None:
    started = time.monotonic()
    config = config_of(world)
    with own_rng(digest(["personaworld", world.size])):
        stack = Stack.of(config, [LlamaForCausalLM(config).state_dict()])
    ids = {word: i for i, word in enumerate(world.vocabulary)}
    rng = random.Random(f"personaworld documents {world.size}")

    def drawn(draw: Callable[[random.Random], list[str]]) -> tuple[list[int], list[int]]:
        words = draw(rng)
        row = [ids[w] for w in words]
        return row, _answers_only(words, row)

    losses = []
    total = PRETRAINING["steps"] + TUNING["steps"]
    with progress(f"pretraining personaworld:{world.size} (once)", int(total), unit="steps") as step:
        for plan, draw in ((PRETRAINING, world.document), (TUNING, world.assistant_turn)):
            rates = schedule(int(plan["steps"]), plan["learning_rate"], int(plan["warmup"]))
            steps = [
                Step([drawn(draw) for _ in range(int(plan["batch"]))], r, fresh=i == 0) for i, r in enumerate(rates)
            ]
            losses.append(fit(stack, [steps], step=step)[0])
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        made = Path(work) / "made"
        made.mkdir()
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(made)
        save_file(stack.weights_of(0), made / "model.safetensors", {"format": "pt"})
        tokenizer_of(world).save_pretrained(made)
        seconds = round(time.monotonic() - started, 1)
        write_json(made / "manifest.json", settings | {"losses": losses, "seconds": seconds})
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is not finished work
        made.rename(folder)


def _answers_only(words: list[str], row: list[int]) -> list[int]:
    """Returns labels on the answers alone: which questions are asked is chance, and learning it drowns the facts."""
    labels, inside = [], False
    for word, token in zip(words, row, strict=True):
        labels.append(token if inside else -100)
        inside = word == "<ast>" or (inside and word != "<end>")
    return labels


def schedule(steps: int, peak: float, warmup: int) -> list[float]:
    """Returns learning rates that warm up linearly, then decay linearly to 0, as transformers' linear schedule does."""
    rates = []
    for i in range(steps):
        rates.append(peak * (i / max(1, warmup) if i < warmup else (steps - i) / max(1, steps - warmup)))
    return rates
