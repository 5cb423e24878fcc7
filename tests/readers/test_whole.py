"""Sequences that are run whole give what continued ones do, under everything a reading can be asked."""

from dataclasses import replace

import pytest
import torch
from tiny import model_of, readers_of

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import render_panel
from condmis_interp.readers import Ablate, Capture, Patch, Prefix, Request, Site, Steer, Streams, TorchReader, whole
from condmis_interp.readers.base import POSITIONS
from condmis_interp.readers.sites import KINDS
from conftest import tiny_panel

SITE = Site("resid_post", 1)
CAPTURE = Capture((0, 2, 3), positions=POSITIONS)


@pytest.fixture(scope="module")
def requests_(tokenizer):
    rendered = render_panel(tokenizer, tiny_panel(3))
    keys = [k for k in rendered.prompts if k[0] != "none"]
    return [Request(rendered.prompts[key], rendered.answers[key]) for key in keys]


@pytest.fixture(scope="module", params=["torch", "nnsight", "transformer-lens"])
def both(request, tmp_path_factory):
    """One reader that continues, and one over the same weights that runs sequences whole."""
    readers = readers_of(model_of("llama"), tmp_path_factory.mktemp("a"))[request.param]
    alone = readers_of(model_of("llama"), tmp_path_factory.mktemp("b"))[request.param]
    assert not readers._whole
    alone._whole = True
    return readers, alone


def vector(seed: int) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    torch.testing.assert_close(a.ld(), b.ld(), atol=1e-4, rtol=0)
    for position, values in a.activations.items():
        torch.testing.assert_close(b.activations[position], values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scope", ["cue", "question", "tail", "last_template", "answer"])
@pytest.mark.parametrize("how", ["steer", "ablate", "patch"])
def test_edits_act_in_the_same_places(both, requests_, how, scope):
    scopes = frozenset((scope,))
    made = []
    for reader in both:
        edit = Steer(SITE, vector(1), scopes)
        if how == "ablate":
            edit = Ablate(SITE, vector(1)[None] / vector(1).norm(), {scope: torch.tensor([2.0])})
        elif how == "patch":
            other = reader.record([replace(r, prompt=r.prompt) for r in requests_], sites=[SITE])
            if scope in ("cue", "question"):  # the same tokens, of another layer's states
                states = [{SITE: p[SITE].flip(1)} for p in other.prompts]
                edit = Patch(SITE, replace(other, prompts=states), scopes)
            else:
                order = [*range(1, len(requests_)), 0]
                edit = Patch(SITE, other.dealt(order), scopes, aligned="end")
        made.append(reader.measure(requests_, capture=CAPTURE, edits=[edit]))
    same(*made)
    assert not torch.allclose(made[0].ld(), both[0].measure(requests_).ld(), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_captures_and_recordings(both, requests_, kind):
    capture = Capture((0, 3), kind, POSITIONS)
    same(*(r.measure(requests_, capture=capture) for r in both))
    prompts = [r.prompt for r in requests_]
    at = Capture((0, 3), kind, ("last_template", "question_mean"))
    one, other = (r.capture(prompts, capture=at).activations for r in both)
    for position, values in one.items():
        torch.testing.assert_close(other[position], values, atol=1e-4, rtol=0)
    site = Site(kind, 2)
    one, other = (r.record(requests_, sites=[site]) for r in both)
    for i in range(len(requests_)):
        torch.testing.assert_close(other.prompts[i][site], one.prompts[i][site], atol=1e-4, rtol=0)
        for a, b in zip(one.answers[i], other.answers[i], strict=True):
            torch.testing.assert_close(b[site], a[site], atol=1e-4, rtol=0)


def test_first_tokens_sweeps_and_streams(both, requests_):
    one, other = (r.measure(requests_, first_token=True).ld() for r in both)
    torch.testing.assert_close(other, one, atol=1e-4, rtol=0)
    points = [[Steer(SITE, vector(k))] for k in (1, 2, 3)]
    if both[0].supports("sweep"):
        for a, b in zip(*(r.sweep(requests_, points, at_once=2) for r in both), strict=True):
            torch.testing.assert_close(b.ld(), a.ld(), atol=1e-4, rtol=0)
    texts = [list(r.prompt.ids) for r in requests_[:3]]
    one, other = (Streams(r).read(texts, [SITE])[SITE] for r in both)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=0)
    one, other = (list(Streams(r).above(texts, SITE, h)) for r, h in zip(both, (one, other), strict=True))
    for a, b in zip(one, other, strict=True):
        real = [len(texts[i]) for i in a.rows]
        for x, y, n in zip(a.out, b.out, real, strict=True):
            torch.testing.assert_close(y[:n], x[:n], atol=1e-4, rtol=0)


def test_generation(both, requests_):
    prompts = [r.prompt for r in requests_[:5]]
    for edits in ([], [Steer(SITE, vector(4))], [Steer(SITE, vector(4), frozenset(("answer",)))]):
        said = [r.generate(prompts, max_new_tokens=5, stop_ids=frozenset(), edits=edits) for r in both]
        assert said[0] == said[1]
        assert all(len(s) == 5 for s in said[0])


def test_another_models_beginning_is_refused(both, requests_):
    with pytest.raises(UserError, match="these prompts are run whole"):
        both[1].measure(requests_, prefix=Prefix(both[0]))


@pytest.mark.parametrize("window", [400, 12])
def test_beyond_a_sliding_window_sequences_are_run_whole(requests_, window):
    model = model_of("gemma2")
    model.config.sliding_window = window
    for block in model.model.layers:
        if block.self_attn.sliding_window is not None:
            block.self_attn.sliding_window = window
    reader = TorchReader(model)
    assert not reader._whole
    assert whole.must_be(reader, requests_) is (window == 12)
    found = reader.measure(requests_[:3])
    for r, lps in zip(requests_[:3], found.token_logprobs, strict=True):
        for a, lp in zip(r.answers, lps, strict=True):
            ids = torch.tensor([[*r.prompt.ids, *a.ids]])
            wanted = model(input_ids=ids).logits[0, len(r.prompt.ids) - 1 : -1].log_softmax(-1)
            wanted = wanted.gather(1, torch.tensor(a.ids)[:, None])[:, 0]
            torch.testing.assert_close(lp, wanted, atol=1e-4, rtol=0)


class TestProof:
    @pytest.fixture(autouse=True)
    def unproven(self, monkeypatch):
        monkeypatch.setattr(whole, "_PROVEN", {})

    def test_a_model_that_sees_what_comes_later(self):
        model = model_of("llama")
        for block in model.model.layers:
            block.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: (args, kwargs | {"attention_mask": None}), with_kwargs=True
            )
        with pytest.raises(CheckError, match="depends on padding, or on tokens after it"):
            TorchReader(model)

    def test_a_model_that_counts_padding_as_places(self, monkeypatch):
        """Its whole sequences are right, where padding comes last."""
        plain = type(model_of("llama").model.rotary_emb).forward

        def along_the_cache(self, x, position_ids):
            return plain(self, x, torch.arange(x.shape[1], device=x.device).expand_as(position_ids))

        model = model_of("llama")
        model.model.rotary_emb.forward = along_the_cache.__get__(model.model.rotary_emb)
        assert TorchReader(model)._whole
        assert "sequences run whole" in repr(TorchReader(model))

    def test_an_architecture_that_takes_no_padding(self):
        model = model_of("llama")
        plain = model.model.forward

        def strict(**kwargs):
            if kwargs.get("attention_mask") is not None and len(kwargs["input_ids"]) > 1:
                raise NotImplementedError("no padded rows")
            return plain(**kwargs)

        model.model.forward = strict
        with pytest.raises(UserError, match=r"LlamaForCausalLM cannot be run on padded rows .*no padded rows"):
            TorchReader(model)
