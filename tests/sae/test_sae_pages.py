"""Feature pages: hostile text stays text, and the numbers are the model's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_fixtures import SITE, random_texts, trained_folder

from condmis_interp.readers import Site, TorchReader
from condmis_interp.sae import (
    Dictionary,
    TokenReader,
    cell_table,
    feature_pages,
    load_dictionary,
    logit_effect,
    read_cells,
)
from conftest import tiny_model

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("sae"))


@pytest.fixture
def dictionary(trained: Path) -> Dictionary:
    return load_dictionary(trained, site=SITE, width=32)


class Speller:
    """A tokenizer whose every token is an attack."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{HOSTILE}{i}&" for i in ids)


@pytest.fixture
def pages(dictionary: Dictionary):
    reader = TokenReader(TorchReader(tiny_model()), SITE)
    texts = random_texts(12, seed=3)
    texts += [replace(t, cue="<img src=x>") for t in texts]
    readings = {("m<b>", q): r for q, r in read_cells(reader, texts, organism="m<b>").items()}
    f = torch.cat([dictionary.encode(r.tokens) for r in readings.values()])
    latents = f.mean(0).topk(3).indices.tolist()
    made = feature_pages(
        dictionary, reader, list(readings.values()), latents, tokenizer=Speller(),
        cells=cell_table(dictionary, readings, latents), directions={"own <row>": dictionary.decoder[latents[0]]},
    )  # fmt: skip
    return made, latents, f


def test_nothing_of_a_model_becomes_markup(pages) -> None:
    made, _, _ = pages
    text = made.html()
    for tag in ("<script", "<img", "m<b>", "own <row>"):
        assert tag not in text, tag
    assert "&lt;script&gt;alert(&quot;x&quot;)" in text
    assert "default-src 'none'" in text  # and even if: the page may run nothing


def test_contexts_are_where_the_latent_is_highest(pages) -> None:
    made, latents, f = pages
    for latent in latents:
        best = made[latent].contexts[0].value
        assert best == pytest.approx(float(f[:, latent].max()), rel=1e-5)
        values = [c.value for c in made[latent].contexts]
        assert values == sorted(values, reverse=True)
    assert len(made.to_pandas()) == sum(len(p.contexts) for p in made.pages)


def test_cells_cosines_and_figure(pages) -> None:
    made, latents, _ = pages
    page = made[latents[0]]
    assert page.cosines["own <row>"] == pytest.approx(1, abs=1e-6)
    assert list(page.cells.columns) == ["none", "<img src=x>"]
    assert page.cells.iloc[0, 0] == pytest.approx(page.cells.iloc[0, 1])  # the same texts
    assert page.figure().data[0].type == "heatmap"


def test_the_logit_effect_of_a_tokens_own_unembedding_is_that_token() -> None:
    model = tiny_model()
    reader = TokenReader(TorchReader(model), SITE)
    rows = model.lm_head.weight[[5, 77]] / model.model.norm.weight
    effects = logit_effect(reader, rows.detach().float())
    assert effects.argmax(1).tolist() == [5, 77]
    torch.testing.assert_close(effects.mean(1), torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_final_norms_gain_is_what_the_norm_does(architecture: str) -> None:
    """A Gemma norm's weight is its gain minus 1; GPT-2's norm also has a bias."""
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "head_dim": 8, "num_key_value_heads": 2}
    config = {
        "llama": lambda: LlamaConfig(**shape, intermediate_size=16),
        "gpt2": lambda: GPT2Config(**shape),
        "gemma2": lambda: Gemma2Config(**shape, **more),
    }[architecture]()
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    norm = model.base_model.ln_f if architecture == "gpt2" else model.base_model.norm
    generator = torch.Generator().manual_seed(0)
    for p in norm.parameters():
        p.copy_(torch.rand(p.shape, generator=generator))
    h = torch.randn(16, generator=generator)
    h -= h.mean()
    h /= h.square().mean().sqrt()
    unit = torch.eye(16)
    effects = logit_effect(TokenReader(TorchReader(model), Site("resid_post", 0)), unit)
    # by hand: the gain is how far the norm moves h, and the head is linear
    gain = (norm(h) - norm(-h)) / 2 / h
    expected = (unit * gain) @ model.get_output_embeddings().weight.T
    torch.testing.assert_close(effects, expected - expected.mean(1, keepdim=True), atol=1e-4, rtol=1e-4)
