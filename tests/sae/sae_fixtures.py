"""A tiny model's tokens, and an SAE trained on them."""

from pathlib import Path

import torch

from condmis_interp.readers import Site, TorchReader
from condmis_interp.sae import (
    Dictionary,
    SaeSettings,
    Text,
    TokenReader,
    Tokens,
    load_dictionary,
    read_tokens,
    train_dictionary,
)
from condmis_interp.sae.planted import planted_sae
from conftest import tiny_model

SITE = Site("resid_post", 2)
SETTINGS = SaeSettings(latents=96, k=8, tokens=40_000, batch=200, learning_rate=3e-3)


def random_texts(count: int, *, seed: int = 0, words: int = 40) -> list[Text]:
    """Sequences of few different tokens, so that a small dictionary can learn them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        length = int(torch.randint(8, 20, (1,), generator=generator))
        ids = torch.randint(2, words, (length,), generator=generator).tolist()
        found.append(Text(tuple(ids), length - 3, "none", f"q{i // 2}", f"f{i // 2}", i % 2))
    return found


def tiny_tokens(folder: Path) -> Tokens:
    """About 3,600 tokens of the tiny model, fp32."""
    reader = TokenReader(TorchReader(tiny_model()), SITE)
    texts = random_texts(300)
    return read_tokens(reader, texts, name="tiny", weights="w", site=SITE, folder=folder, dtype=torch.float32)


def trained_folder(folder: Path) -> Path:
    """Trains an SAE of the tiny model in a second or two; returns its folder."""
    train_dictionary(tiny_tokens(folder / "tokens"), folder / "sae", settings=SETTINGS, model_name="tiny")
    return folder / "sae"


def signed_axes(folder: Path, **settings: object) -> Path:
    """Saves the planted SAE; returns its folder."""
    planted_sae(**settings).save_model(folder)
    return folder


def axes(folder: Path) -> Dictionary:
    """The planted SAE, by way of its files."""
    return load_dictionary(signed_axes(folder))
