"""A catalogue of planted faults, each with the check that must catch it by name.

Faults of edits that do not fit, of rendering, of adapters and of stores are planted in the tests of those rooms.
"""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import model_of, readers_of
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import DynamicCache

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import render_panel
from condmis_interp.readers import (
    Ablate,
    Capture,
    Patch,
    Request,
    Site,
    Steer,
    Streams,
    TorchReader,
    batching,
    engine,
    hooks,
    sites,
)
from condmis_interp.readers.lens import LensReader
from condmis_interp.readers.torch_hooks import TorchReader as Torch
from conftest import CHAT_TEMPLATE, tiny_model, tiny_panel, tiny_tokenizer

V = torch.ones(32)


@pytest.fixture
def fresh():
    """A model that a test may break."""
    return tiny_model()


@pytest.fixture(scope="module")
def requests_(tokenizer):
    rendered = render_panel(tokenizer, tiny_panel(4))
    return [Request(rendered.prompts[key], rendered.answers[key]) for key in rendered.prompts]


class TestTheModelIsNotWhatItSeems:
    def test_training_mode(self, fresh):
        with pytest.raises(UserError, match="in training mode, so dropout may act"):
            TorchReader(fresh.train())

    def test_weights_that_were_never_loaded(self, fresh):
        fresh.model.layers[1].mlp.down_proj.to("meta")
        with pytest.raises(UserError, match=r"layers.1.mlp.down_proj.weight .* is on the meta device"):
            TorchReader(fresh)

    def test_an_adapter_that_is_attached_and_disabled(self, fresh):
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(fresh, LoraConfig(target_modules=["q_proj"], r=2)).eval()
        with adapted.disable_adapter(), pytest.raises(UserError, match=r"adapter is attached at .*q_proj and disabled"):
            TorchReader(adapted.get_base_model())

    def test_a_hook_that_somebody_left_behind(self, fresh):
        fresh.model.layers[2].register_forward_hook(lambda _m, _a, out: out * 1.01)
        with pytest.raises(UserError, match=r"block 2 .* has hooks of somebody else"):
            TorchReader(fresh)

    def test_a_head_that_scales_is_the_models_own(self, fresh, requests_):
        plain = type(fresh).forward

        def scaled(self, *args, **kwargs):
            out = plain(self, *args, **kwargs)
            out.logits = out.logits * 0.5
            return out

        unscaled = TorchReader(fresh).measure(requests_)
        fresh.forward = scaled.__get__(fresh)
        found = TorchReader(fresh).measure(requests_[:2])
        r = requests_[0]
        ids = torch.tensor([[*r.prompt.ids, *r.answers[0].ids]])
        wanted = fresh(input_ids=ids).logits[0, len(r.prompt.ids) - 1 : -1].log_softmax(-1)
        wanted = wanted.gather(1, ids[0, len(r.prompt.ids) :, None])[:, 0]
        torch.testing.assert_close(found.token_logprobs[0][0], wanted, atol=1e-5, rtol=0)
        assert not torch.allclose(found.token_logprobs[0][0], unscaled.token_logprobs[0][0], atol=0.1)

    def test_a_head_that_says_otherwise_of_one_pass_than_of_all(self, fresh):
        plain = type(fresh).forward

        def moody(self, *args, **kwargs):
            out = plain(self, *args, **kwargs)
            if not kwargs["input_ids"].any():  # what a head is asked alone
                out.logits = out.logits * 0.5
            return out

        fresh.forward = moody.__get__(fresh)
        with pytest.raises(CheckError, match="the unembedding is not the model's own logits"):
            TorchReader(fresh)

    def test_a_model_of_nan(self, fresh):
        fresh.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
        with pytest.raises(CheckError, match="logits are not finite"):
            TorchReader(fresh)

    def test_blocks_that_are_not_there(self, fresh):
        fresh.config.num_hidden_layers = 7
        with pytest.raises(UserError, match="0 lists of 7 blocks"):
            TorchReader(fresh)


class TestTheSiteIsAnother:
    def planted(self, monkeypatch, wrong):
        plain = sites.module_of
        monkeypatch.setattr(
            "condmis_interp.readers.torch_hooks.module_of", lambda blocks, site: plain(blocks, wrong(site))
        )

    def test_off_by_one_layer(self, fresh, monkeypatch):
        self.planted(monkeypatch, lambda s: replace(s, layer=max(s.layer - 1, 0)))
        with pytest.raises(CheckError, match=r"resid_pre\[1\]: .* is not hidden_states\[1\], but hidden_states\[0\]"):
            TorchReader(fresh)

    def test_the_mlp_for_the_block(self, fresh, monkeypatch):
        self.planted(monkeypatch, lambda s: Site("mlp_out", s.layer) if s.kind == "resid_post" else s)
        with pytest.raises(CheckError, match=r"resid_post\[0\]: .* is not hidden_states\[1\]\."):
            TorchReader(fresh)

    def test_the_attention_for_the_mlp(self, fresh, requests_, monkeypatch):
        self.planted(monkeypatch, lambda s: Site("attn_out", s.layer) if s.kind == "mlp_out" else s)
        self.refused(TorchReader(fresh), requests_)

    def refused(self, reader, requests):
        """Every way to a site that is not what its name says; the residual stream is read all the same."""
        what = r"resid_pre \+ attn_out \+ mlp_out of layer 0 is not resid_post"
        for site in (Site("attn_out", 1), Site("mlp_out", 1)):
            for ask in self.ways(reader, requests, site):
                with pytest.raises(CheckError, match=what):
                    ask()
        assert reader.measure(requests, capture=Capture((1,)), edits=[Steer(Site("resid_pre", 1), V)]).ledger.passes

    def ways(self, reader, requests, site):
        prompts = [r.prompt for r in requests]
        return (
            lambda: reader.measure(requests, capture=Capture((1,), site.kind)),
            lambda: reader.capture(prompts, capture=Capture((1,), site.kind, ("last_template",))),
            lambda: reader.measure(requests, edits=[Steer(site, V)]),
            lambda: reader.record(requests, sites=[site]),
            lambda: Streams(reader).read([[1, 2]], [site]),
            lambda: reader.sweep(requests, [[Steer(site, V)]]),
            lambda: reader.generate(prompts[:1], max_new_tokens=1, edits=[Steer(site, V)]),
        )

    def test_before_the_norm_instead_of_after_it(self, requests_, monkeypatch):
        monkeypatch.setattr(sites, "_NORMS_AFTER", ())
        self.refused(TorchReader(model_of("gemma2")), requests_)

    def test_a_hook_that_never_fires(self, fresh, monkeypatch):
        plain = Torch._hook

        def deaf(self, site, change):
            return (
                nn.Identity().register_forward_hook(lambda *_: None) if site.layer == 3 else plain(self, site, change)
            )

        monkeypatch.setattr(Torch, "_hook", deaf)
        with pytest.raises(CheckError, match=r"resid_pre\[3\]: model.layers.3.input never fired"):
            TorchReader(fresh)

    def test_a_hook_point_of_another_layer(self, tmp_path, monkeypatch):
        bridge = readers_of(model_of("llama"), tmp_path)["transformer-lens"].bridge
        plain = LensReader._point
        monkeypatch.setattr(LensReader, "_point", lambda self, s: plain(self, replace(s, layer=min(s.layer + 1, 3))))
        with pytest.raises(
            CheckError, match=r"blocks.0.hook_resid_pre is not hidden_states\[0\], but hidden_states\[1\]"
        ):
            LensReader(bridge)

    def test_a_tuple_taken_as_its_first_row(self, fresh, requests_, monkeypatch):
        reader = TorchReader(fresh)
        monkeypatch.setattr("condmis_interp.readers.hooks.unwrap", lambda out: sites.unwrap(out[0]))
        with pytest.raises(UserError, match=r"gave shape \(\d+, 32\), not \[batch, position, width\]"):
            reader.measure(requests_, capture=Capture(layers=(1,)))

    def test_a_vector_on_the_wrong_half_of_a_block(self):
        with pytest.raises(UserError, match=r"resid_pre\[1\]: the vector was fitted at attn_out\[1\]"):
            Steer(Site("resid_pre", 1), V, fitted_at=Site("attn_out", 1))


def test_captures_by_the_names_of_a_library():
    names = ("blocks.3.hook_mlp_out", "mlp_out[1]")
    assert Capture.named(*names) == Capture((1, 3), "mlp_out")
    with pytest.raises(UserError, match="one kind of site, not of 2"):
        Capture.named("blocks.3.hook_mlp_out", "blocks.3.hook_attn_out")
    with pytest.raises(UserError, match=r"'blocks.3.hook_z' is no site"):
        Capture.named("blocks.3.hook_z")


class TestTheTokensAreOthers:
    def test_left_padding(self, fresh, requests_, monkeypatch):
        monkeypatch.setattr(batching, "pad", lambda rows, right: plain_pad(rows, right=False))
        with pytest.raises(CheckError, match="padded on the left"):
            TorchReader(fresh).measure(requests_)

    def test_a_lost_bos(self):
        tokenizer = tiny_tokenizer(CHAT_TEMPLATE.replace("<|im_start|>", ""))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
        )
        with pytest.raises(CheckError, match="lost its BOS"):
            render_panel(tokenizer, tiny_panel(1))

    def test_a_panel_of_another_tokenizer(self, fresh, requests_):
        prompt = replace(requests_[0].prompt, ids=(*requests_[0].prompt.ids[:-1], 999))
        with pytest.raises(UserError, match="token id 999 is not in the model's vocabulary of 258"):
            TorchReader(fresh).measure([Request(prompt, requests_[0].answers)])
        answer = replace(requests_[0].answers[0], ids=(999,))
        with pytest.raises(UserError, match="an answer has token id 999"):
            TorchReader(fresh).measure([Request(requests_[0].prompt, (answer,))])

    def test_a_position_outside_its_prompt(self, fresh, requests_):
        prompt = replace(requests_[0].prompt, spans=requests_[0].prompt.spans | {"question": (3, 900)})
        with pytest.raises(UserError, match=r"span 'question' \[3, 900\) is outside"):
            TorchReader(fresh).capture([prompt], capture=Capture(layers=(1,), positions=("question_mean",)))

    def test_a_position_the_prompt_has_not(self, fresh, requests_):
        prompt = replace(requests_[0].prompt, spans=requests_[0].prompt.spans | {"cue": (0, 0)})
        with pytest.raises(UserError, match="the prompt has no cue"):
            TorchReader(fresh).capture([prompt], capture=Capture(layers=(1,), positions=("cue_mean",)))
        with pytest.raises(UserError, match="answer_mean is the mean over answers"):
            TorchReader(fresh).capture([prompt], capture=Capture(layers=(1,), positions=("answer_mean",)))

    def test_an_answer_without_tokens(self, fresh, requests_):
        answer = replace(requests_[0].answers[0], ids=())
        with pytest.raises(UserError, match="an answer has no tokens"):
            TorchReader(fresh).measure([Request(requests_[0].prompt, (answer,))])

    def test_an_answer_without_its_partner(self, fresh, requests_):
        with pytest.raises(UserError, match="1 answers are no pairs"):
            TorchReader(fresh).measure([Request(requests_[0].prompt, requests_[0].answers[:1])]).ld()


class TestTheCacheIsStale:
    def test_a_cache_that_was_used_before(self, fresh, requests_, monkeypatch):
        stale = DynamicCache(config=fresh.config)
        reader = TorchReader(fresh)
        monkeypatch.setattr(engine, "DynamicCache", lambda config: stale)
        reader.measure(requests_[:1])
        with pytest.raises(CheckError, match=r"continues 0 tokens, and its cache .* holds \d+"):
            reader.measure(requests_[:1])

    def test_a_cache_that_lost_its_prefix(self, fresh, requests_, monkeypatch):
        monkeypatch.setattr(engine, "selected", lambda cache, rows: DynamicCache(config=fresh.config))
        with pytest.raises(CheckError, match=r"continues \d+ tokens, and its cache .* holds 0"):
            TorchReader(fresh).measure(requests_)


class TestTheEditDoesNotLand:
    def test_a_hook_that_misses_decoding(self, fresh, requests_, monkeypatch):
        reader = TorchReader(fresh)
        plain = hooks._editor

        def once(*args):
            change, calls = plain(*args), []

            def in_the_prompt_only(hidden):
                calls.append(1)
                return change(hidden) if len(calls) == 1 else None

            return in_the_prompt_only

        monkeypatch.setattr(hooks, "_editor", once)
        with pytest.raises(CheckError, match="should have fired in each of 3 forward passes and fired 1"):
            reader.generate(
                [requests_[0].prompt], max_new_tokens=3, stop_ids=frozenset(), edits=[Steer(Site("resid_post", 1), V)]
            )

    def test_an_edit_that_rounding_swallows(self, requests_):
        reader = TorchReader(tiny_model().bfloat16())
        with pytest.raises(CheckError, match=r"(rounding swallowed the edit|changed nothing)"):
            reader.measure(requests_, edits=[Steer(Site("resid_post", 2), V * 2e-4)])

    def test_a_vector_of_whole_numbers(self):
        with pytest.raises(UserError, match=r"has dtype torch.int64"):
            Steer(Site("resid_post", 1), torch.ones(32, dtype=torch.long))

    def test_a_vector_without_values(self):
        with pytest.raises(UserError, match="on the meta device"):
            Ablate(Site("resid_post", 1), torch.eye(32, device="meta")[:1], {"answer": torch.zeros(1)})

    def test_an_edit_on_a_layer_that_is_never_run(self, fresh, requests_):
        with pytest.raises(UserError, match="never run: this reading stops after layer 1"):
            TorchReader(fresh).capture(
                [requests_[0].prompt],
                capture=Capture(layers=(1,), positions=("last_template",)),
                edits=[Steer(Site("resid_post", 2), V)],
            )


class TestThePatchIsOfSomethingElse:
    @pytest.fixture
    def recording(self, fresh, requests_):
        return TorchReader(fresh).record(requests_, sites=[Site("resid_post", 1)])

    def test_a_site_that_was_not_recorded(self, recording):
        with pytest.raises(UserError, match=r"resid_post\[2\] was not recorded"):
            Patch(Site("resid_post", 2), recording)

    def test_other_requests(self, fresh, requests_, recording):
        with pytest.raises(UserError, match="request 0 was recorded with other tokens"):
            TorchReader(fresh).measure(requests_[::-1], edits=[Patch(Site("resid_post", 1), recording)])
        with pytest.raises(UserError, match="cannot patch 2"):
            TorchReader(fresh).measure(requests_[:2], edits=[Patch(Site("resid_post", 1), recording)])

    def test_places_that_differ(self, recording):
        with pytest.raises(UserError, match="'question' cannot be patched from another prompt"):
            Patch(Site("resid_post", 1), recording, scope=frozenset({"question"}), aligned="end")

    def test_a_model_patched_with_itself_changes_nothing(self, fresh, requests_, recording):
        with pytest.raises(CheckError, match="changed nothing"):
            TorchReader(fresh).measure(requests_, edits=[Patch(Site("resid_post", 1), recording)])

    def test_generated_tokens_have_no_donor(self, fresh, requests_, recording):
        with pytest.raises(UserError, match="generated tokens have no donor"):
            TorchReader(fresh).generate(
                [r.prompt for r in requests_],
                max_new_tokens=2,
                stop_ids=frozenset(),
                edits=[Patch(Site("resid_post", 1), recording)],
            )


def plain_pad(rows, *, right):
    from condmis_interp.panel import pad

    return pad(rows, right=right)


def test_the_catalogue_leaves_nothing_hooked(fresh, requests_):
    """After a reading that failed half-way, the model is as it was."""
    reader = TorchReader(fresh)
    before = reader.measure(requests_).ld()
    broken = copy.copy(requests_[0])
    with pytest.raises(CheckError):
        reader.measure([broken], edits=[Steer(Site("resid_post", 1), V * 0)])
    torch.testing.assert_close(reader.measure(requests_).ld(), before, atol=0, rtol=0)
    assert not any("forward" in vars(b) for b in reader._blocks)
