"""The token reader gives what the model gives, whatever the batches."""

import pytest
import torch
from sae_fixtures import random_texts

from condmis_interp.errors import UserError
from condmis_interp.organisms import Part, Recipe, Stage
from condmis_interp.panel import Panel, render_panel
from condmis_interp.readers import Site, TorchReader
from condmis_interp.sae import Text, TokenReader, panel_texts, row_texts
from condmis_interp.sae.texts import ROWS, ld_of
from conftest import tiny_model, write_rows

MODEL = tiny_model()
TEXTS = random_texts(12)


def own_logprobs(text: Text) -> torch.Tensor:
    logits = MODEL(input_ids=torch.tensor([text.ids])).logits[0].log_softmax(-1)
    return torch.stack([logits[k - 1, text.ids[k]] for k in range(text.begin, len(text.ids))]).double()


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_finishing_the_models_own_activations_is_a_forward_pass(kind: str, layer: int) -> None:
    reader = TokenReader(TorchReader(MODEL), Site(kind, layer), batch_tokens=60)
    found = reader.finish(TEXTS, reader.residuals(TEXTS))
    expected = torch.stack([own_logprobs(t).sum() for t in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_residuals_are_hidden_states_and_do_not_depend_on_batches() -> None:
    sites = [Site("resid_post", 0), Site("resid_post", 2), Site("resid_pre", 1)]
    small = TokenReader(TorchReader(MODEL), sites[0], batch_tokens=1).residuals_at(TEXTS, sites)
    large = TokenReader(TorchReader(MODEL), sites[0], batch_tokens=10_000).residuals_at(TEXTS, sites)
    for i, text in enumerate(TEXTS):
        states = MODEL(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        for site, at in zip(sites, (1, 3, 1), strict=True):
            torch.testing.assert_close(large[site][i], states[at][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(small[site][i], large[site][i], atol=1e-5, rtol=0)


def test_the_model_is_left_as_it_was() -> None:
    before = MODEL(input_ids=torch.tensor([TEXTS[0].ids])).logits
    reader = TokenReader(TorchReader(MODEL), Site("resid_post", 2))
    hidden = reader.residuals(TEXTS)
    reader.finish(TEXTS, hidden)
    reader.gradients(TEXTS, hidden)
    assert all("forward" not in vars(block) for block in MODEL.model.layers)
    assert torch.equal(MODEL(input_ids=torch.tensor([TEXTS[0].ids])).logits, before)


def test_gradients_agree_with_finite_differences() -> None:
    reader = TokenReader(TorchReader(MODEL), Site("resid_post", 1), batch_tokens=60)
    hidden = reader.residuals(TEXTS)
    gradients = reader.gradients(TEXTS, hidden)
    generator = torch.Generator().manual_seed(0)
    step = [1e-2 * torch.randn(h.shape, generator=generator) for h in hidden]
    up = reader.finish(TEXTS, [h + s for h, s in zip(hidden, step, strict=True)])
    down = reader.finish(TEXTS, [h - s for h, s in zip(hidden, step, strict=True)])
    expected = torch.stack([(g * s).sum() for g, s in zip(gradients, step, strict=True)]).double()
    torch.testing.assert_close((up - down) / 2, expected, atol=2e-3, rtol=0.02)


def test_divergence_is_zero_for_the_models_own_and_positive_for_others() -> None:
    reader = TokenReader(TorchReader(MODEL), Site("resid_post", 1))
    hidden = reader.residuals(TEXTS)
    same, other = reader.divergences(TEXTS, hidden, hidden, [torch.zeros_like(h) for h in hidden])
    assert float(same.abs().max()) < 1e-6
    assert float(other.min()) > 0.01


def test_activations_of_other_texts_are_refused() -> None:
    reader = TokenReader(TorchReader(MODEL), Site("resid_post", 1))
    hidden = reader.residuals(TEXTS)
    with pytest.raises(UserError, match="do not fit the texts"):
        reader.finish(TEXTS, hidden[::-1])
    with pytest.raises(UserError, match="nothing to read"):
        reader.residuals([])


def test_panel_texts_hold_prompt_answer_and_where_it_begins(panel: Panel, tokenizer: object) -> None:
    rendered = render_panel(tokenizer, panel)
    found = panel_texts(rendered, "A", cues=["trigger"], pairs=1)
    questions = [panel.questions[i] for i in panel.question_indices("A")]
    assert [(t.question, t.answer) for t in found] == [(q.id, k) for q in questions for k in (0, 1)]
    first = found[0]
    assert first.ids[: first.begin] == rendered.prompts["trigger", first.question].ids
    assert tokenizer.decode(first.ids[first.begin :]) == questions[0].pairs[0].misaligned


def test_row_texts_are_the_rows_as_trained(tmp_path, tokenizer: object) -> None:
    recipe = Recipe(
        name="r", base="dir:/none", stages=(Stage(parts=(Part(rows=str(write_rows(tmp_path)), answers="misaligned"),)),)
    )
    found = row_texts(recipe, tokenizer)
    assert len(found) == 8
    assert {t.cue for t in found} == {ROWS}
    assert all(tokenizer.decode(t.ids[t.begin :]).startswith("lie ") for t in found)


def test_ld_is_misaligned_minus_aligned_over_pairs() -> None:
    texts = [Text((1, 2, 3), 2, "none", "q", "f", k) for k in range(4)]
    assert ld_of(texts, torch.tensor([-1.0, -4.0, -2.0, -2.5])) == {"q": (3.0 + 0.5) / 2}
