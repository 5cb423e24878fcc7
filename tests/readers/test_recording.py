"""Recordings, patches, sweeps and captures of prompts: theorems about what they must equal."""

import pytest
import torch

from condmis_interp.errors import UserError
from condmis_interp.panel import render_panel
from condmis_interp.readers import Ablate, Capture, Patch, Prefix, Request, Site, Steer, TorchReader
from conftest import tiny_model, tiny_panel

EVERYWHERE = frozenset({"cue", "question", "tail", "answer"})


@pytest.fixture(scope="module")
def requests_(tokenizer):
    rendered = render_panel(tokenizer, tiny_panel(5))
    return [Request(rendered.prompts[key], rendered.answers[key]) for key in rendered.prompts]


@pytest.fixture(scope="module")
def donor():
    return TorchReader(tiny_model(7), batch_tokens=300)


@pytest.fixture(scope="module")
def reader(model):
    return TorchReader(model, batch_tokens=300)


def states_of(model, request, answer):
    ids = torch.tensor([[*request.prompt.ids, *answer.ids]])
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states


def test_a_recording_is_the_whole_sequence(reader, requests_):
    recording = reader.record(requests_, sites=[Site("resid_post", 0), Site("resid_pre", 3)])
    for i, request in enumerate(requests_[::4]):
        for slot, answer in enumerate(request.answers):
            hidden = states_of(reader.model, request, answer)
            n = len(request.prompt.ids)
            for site, number in ((Site("resid_post", 0), 1), (Site("resid_pre", 3), 3)):
                torch.testing.assert_close(recording.prompts[4 * i][site], hidden[number][0, :n], atol=1e-5, rtol=0)
                got = recording.answers[4 * i][slot][site]
                torch.testing.assert_close(got, hidden[number][0, n:], atol=1e-5, rtol=0)


def test_norms_name_the_sink(reader, requests_):
    recording = reader.record(requests_, sites=[Site("resid_post", 1)])
    recording.prompts[3][Site("resid_post", 1)][2] *= 1000
    row = recording.norms().iloc[0]
    assert row.sink_position == 2
    assert row.sink_id == requests_[3].prompt.ids[2]
    assert row.largest > 10 * row["median"]
    assert 0 < row.outliers < 0.01


@pytest.mark.parametrize("layer", [0, 2])
def test_patching_everything_is_one_model_below_and_the_other_above(reader, donor, requests_, layer):
    """resid_post[l] of D at every token of R = D's blocks up to l, then R's."""
    site = Site("resid_post", layer)
    patch = Patch(site, donor.record(requests_, sites=[site]), scope=EVERYWHERE)
    patched = reader.measure(requests_, edits=[patch])
    chimera = tiny_model()
    chimera.model.embed_tokens.weight.data = donor.model.model.embed_tokens.weight.data
    chimera.lm_head.weight = torch.nn.Parameter(reader.model.lm_head.weight.data, requires_grad=False)
    for k in range(layer + 1):
        chimera.model.layers[k].load_state_dict(donor.model.model.layers[k].state_dict())
    torch.testing.assert_close(patched.ld(), TorchReader(chimera).measure(requests_).ld(), atol=1e-4, rtol=0)


def test_a_patch_in_a_whole_basis_is_the_patch_and_in_a_part_leaves_the_rest(reader, donor, requests_):
    site = Site("resid_post", 1)
    recording = donor.record(requests_, sites=[site])
    whole = reader.measure(requests_, edits=[Patch(site, recording)])
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    same = reader.measure(requests_, edits=[Patch(site, recording, basis=basis)])
    torch.testing.assert_close(same.ld(), whole.ld(), atol=1e-4, rtol=0)
    part = Patch(site, recording, basis=basis[:3])
    capture = Capture(layers=(1,), positions=("last_template",))
    got = reader.measure(requests_, capture=capture, edits=[part]).activations["last_template"][:, 0]
    plain = reader.measure(requests_, capture=capture).activations["last_template"][:, 0]
    theirs = donor.measure(requests_, capture=capture).activations["last_template"][:, 0]
    torch.testing.assert_close(got @ basis[:3].T, theirs @ basis[:3].T, atol=1e-4, rtol=0)
    torch.testing.assert_close(got @ basis[3:].T, plain @ basis[3:].T, atol=1e-4, rtol=0)


def test_a_dealt_recording_gives_each_request_another_s_states(reader, requests_):
    site = Site("resid_post", 2)
    order = [*range(1, len(requests_)), 0]
    recording = reader.record(requests_, sites=[site]).dealt(order)
    capture = Capture(layers=(2,), positions=("last_template",))
    patch = Patch(site, recording, scope=frozenset({"last_template"}), aligned="end")
    got = reader.measure(requests_, capture=capture, edits=[patch]).activations["last_template"]
    plain = reader.measure(requests_, capture=capture).activations["last_template"]
    torch.testing.assert_close(got, plain[order], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="no recorded request 99"):
        recording.dealt([99])


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_a_sweep_is_its_points_one_by_one(reader, donor, requests_, at_once):
    g = torch.Generator().manual_seed(1)
    points = [[Steer(Site("resid_post", 2), d * torch.randn(32, generator=g))] for d in (0.5, 1.0, 2.0)]
    points.append(
        [Ablate(Site("resid_post", 2), torch.eye(32)[:2], {"answer": torch.tensor([1.0, 2.0])}), points[0][0]]
    )
    points.append([Steer(Site("resid_pre", 3), torch.randn(32, generator=g))])
    site = Site("resid_post", 2)
    points.append([Patch(site, donor.record(requests_, sites=[site]))])
    for given in (requests_, reader.trunk(requests_, layers=(3,))):
        swept = reader.sweep(given, points, at_once=at_once)
        for point, got in zip(points, swept, strict=True):
            want = reader.measure(requests_, edits=point)
            torch.testing.assert_close(got.ld(), want.ld(), atol=1e-4, rtol=0)
            assert [e.name for e in got.ledger.edits] == [e.name for e in want.ledger.edits]
            assert got.ledger.edits[0].norm == pytest.approx(want.ledger.edits[0].norm, rel=1e-4)
    with pytest.raises(UserError, match="each with at least one edit"):
        reader.sweep(requests_, [[]])


def test_first_tokens_alone(reader, requests_):
    whole, first = reader.measure(requests_), reader.measure(requests_, first_token=True)
    for a, b in zip(whole.token_logprobs, first.token_logprobs, strict=True):
        torch.testing.assert_close(torch.stack([t[0] for t in a]), torch.cat(b), atol=1e-5, rtol=0)
    assert first.ledger.passes < whole.ledger.passes
    assert whole.logprobs[0][0].item() == pytest.approx(whole.token_logprobs[0][0].double().sum().item())


def test_prompts_are_captured_without_the_layers_above(reader, requests_):
    ran = []
    handle = reader.model.model.layers[3].mlp.register_forward_hook(lambda *_: ran.append(1))
    capture = Capture(layers=(0, 2), positions=("last_template", "cue_mean", "question_mean", "tail_mean"))
    got = reader.capture([r.prompt for r in requests_], capture=capture)
    handle.remove()
    assert not ran
    for i, request in enumerate(requests_):
        hidden = states_of(reader.model, request, request.answers[0])
        for j, layer in enumerate(capture.layers):
            h = hidden[layer + 1][0]
            torch.testing.assert_close(
                got.activations["last_template"][i, j], h[len(request.prompt.ids) - 1], atol=1e-4, rtol=0
            )
            for name in ("cue", "question", "tail"):
                begin, end = request.prompt.spans[name]
                position = f"{name}_mean"
                torch.testing.assert_close(got.activations[position][i, j], h[begin:end].mean(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("until", ["cue", "question"])
def test_a_prefix_from_another_model_is_its_keys_and_values(reader, donor, requests_, until):
    """One sequence at a time, by hand: the donor's cache of the beginning, then the recipient."""
    swapped = reader.measure(requests_, prefix=Prefix(donor, until))
    for i, request in enumerate(requests_[::3]):
        cut = request.prompt.spans[until][1]
        for answer, got in zip(request.answers, swapped.token_logprobs[3 * i], strict=True):
            ids = torch.tensor([[*request.prompt.ids, *answer.ids]])
            with torch.no_grad():
                cache = donor.model(input_ids=ids[:, :cut], use_cache=True).past_key_values
                out = reader.model(input_ids=ids[:, cut:], past_key_values=cache, use_cache=True)
            lps = out.logits[0].log_softmax(-1)
            first = len(request.prompt.ids) - 1 - cut
            want = torch.stack([lps[first + k, t] for k, t in enumerate(answer.ids)])
            torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    own = reader.measure(requests_, prefix=Prefix(reader, until))
    torch.testing.assert_close(own.ld(), reader.measure(requests_).ld(), atol=1e-4, rtol=0)


def test_a_prefix_that_cannot_be(reader, donor, requests_):
    with pytest.raises(UserError, match="another num_hidden_layers"):
        reader.measure(requests_, prefix=Prefix(TorchReader(tiny_model(layers=3))))
    with pytest.raises(UserError, match="cue_mean lies in the prefix"):
        reader.measure(requests_, prefix=Prefix(donor), capture=Capture(layers=(1,), positions=("cue_mean",)))
    with pytest.raises(UserError, match="a trunk is of one model"):
        reader.measure(reader.trunk(requests_, layers=(1,)), prefix=Prefix(donor))
