"""The default reader against plain Hugging Face, and its guards."""

import pytest
import torch

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import render_panel
from condmis_interp.readers import Ablate, Capture, Request, Site, Steer, TorchReader
from condmis_interp.readers.batching import plan

EVERYWHERE = frozenset({"cue", "question", "tail", "answer"})


@pytest.fixture(scope="module")
def requests_(tokenizer, panel):
    rendered = render_panel(tokenizer, panel)
    return [Request(rendered.prompts[key], rendered.answers[key]) for key in rendered.prompts]


def plain_logprob(model, prompt, answer, capture=None):
    """One sequence, no cache, no padding, no batch: what Hugging Face says."""
    ids = torch.tensor([[*prompt.ids, *answer.ids]])
    out = model(input_ids=ids, output_hidden_states=True)
    logprobs = out.logits[0].double().log_softmax(-1)
    n = len(prompt.ids)
    return sum(logprobs[n - 1 + i, t].item() for i, t in enumerate(answer.ids)), out.hidden_states


def test_logprobs_and_activations_equal_hugging_face(model, requests_):
    capture = Capture(layers=(0, 1, 2))
    measured = TorchReader(model).measure(requests_, capture=capture)
    for i, request in enumerate(requests_[::7]):
        i *= 7
        means = []
        for j, answer in enumerate(request.answers):
            expected, hidden = plain_logprob(model, request.prompt, answer)
            assert measured.logprobs[i][j].item() == pytest.approx(expected, abs=1e-4)
            n = len(request.prompt.ids)
            means.append(torch.stack([hidden[layer + 1][0, n:].mean(0) for layer in capture.layers]))
            last = torch.stack([hidden[layer + 1][0, n - 1] for layer in capture.layers])
            torch.testing.assert_close(measured.activations["last_template"][i], last, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            measured.activations["answer_mean"][i], torch.stack(means).mean(0), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out"])
def test_other_sites_are_what_their_names_say(model, requests_, kind):
    got = (
        TorchReader(model)
        .measure(requests_[:4], capture=Capture(layers=(1, 2), kind=kind))
        .activations["last_template"]
    )
    for i, request in enumerate(requests_[:4]):
        seen: dict[int, torch.Tensor] = {}

        def keep(k, seen=seen):
            return lambda _m, _a, out: seen.__setitem__(k, out if torch.is_tensor(out) else out[0])

        block = model.model.layers
        handles = []
        for k in (1, 2):
            module = {"attn_out": block[k].self_attn, "mlp_out": block[k].mlp, "resid_pre": block[k - 1]}[kind]
            handles.append(module.register_forward_hook(keep(k)))
        model(input_ids=torch.tensor([request.prompt.ids]))
        for h in handles:
            h.remove()
        torch.testing.assert_close(got[i], torch.stack([seen[k][0, -1] for k in (1, 2)]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_results_do_not_depend_on_batch_size_or_order(model, requests_, batch_tokens):
    capture = Capture(layers=(1, 3))
    reference = TorchReader(model, batch_tokens=500).measure(requests_, capture=capture)
    order = torch.randperm(len(requests_), generator=torch.Generator().manual_seed(1)).tolist()
    other = TorchReader(model, batch_tokens=batch_tokens).measure([requests_[i] for i in order], capture=capture)
    for at, i in enumerate(order):
        torch.testing.assert_close(other.logprobs[at], reference.logprobs[i], atol=1e-4, rtol=0)
        for p in capture.positions:
            torch.testing.assert_close(other.activations[p][at], reference.activations[p][i], atol=1e-4, rtol=0)


def edits(width=32):
    g = torch.Generator().manual_seed(2)
    v = torch.randn(width, generator=g)
    basis = torch.linalg.qr(torch.randn(width, 2, generator=g))[0].T
    return {
        "steer": Steer(Site("resid_post", 1), v),
        "steer_pre": Steer(Site("resid_pre", 2), v),
        "ablate": Ablate(
            Site("resid_post", 2),
            basis,
            {"last_template": torch.tensor([1.0, -2.0]), "answer": torch.tensor([0.5, 3.0])},
        ),
    }


@pytest.mark.parametrize("name", ["steer", "steer_pre", "ablate"])
def test_edits_equal_a_plain_hook_on_the_whole_sequence(model, requests_, name):
    edit = edits()[name]
    measured = TorchReader(model).measure(requests_[:6], edits=[edit])
    for i, request in enumerate(requests_[:6]):
        n = len(request.prompt.ids)

        def hook(_m, _a, out, n=n):
            if isinstance(edit, Steer):
                return out + edit.vector
            out = out.clone()
            for at, target in (
                (slice(n - 1, n), edit.target["last_template"]),
                (slice(n, None), edit.target["answer"]),
            ):
                h = out[0, at]
                out[0, at] = h - (h @ edit.basis.T - target) @ edit.basis
            return out

        layer = edit.site.layer - (edit.site.kind == "resid_pre")
        handle = model.model.layers[layer].register_forward_hook(hook)
        expected = [plain_logprob(model, request.prompt, a)[0] for a in request.answers]
        handle.remove()
        torch.testing.assert_close(measured.logprobs[i], torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["steer", "steer_pre", "ablate"])
@pytest.mark.parametrize("layers", [(1,), (2,), (1, 2, 3)])
def test_a_reading_from_its_trunk_equals_one_from_the_embedding(model, requests_, name, layers):
    edit = edits()[name]
    reader = TorchReader(model, batch_tokens=300)
    trunk = reader.trunk(requests_, layers=layers)
    assert trunk.start([edit]) == max(k for k in layers if k <= {"steer_pre": 2, "steer": 2, "ablate": 3}[name])
    expected = reader.measure(requests_, edits=[edit])
    for _ in range(2):  # a trunk is not used up
        measured = reader.measure(trunk, edits=[edit])
        for got, want in zip(measured.logprobs, expected.logprobs, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    plain = reader.measure(trunk)  # no edits: nothing is skipped
    torch.testing.assert_close(torch.cat(plain.logprobs), torch.cat(reader.measure(requests_).logprobs))


def test_a_trunk_is_of_one_reader_and_holds_no_activations(model, requests_):
    trunk = TorchReader(model).trunk(requests_[:2], layers=(1,))
    with pytest.raises(UserError, match="belongs to another model"):
        TorchReader(model).measure(trunk)
    with pytest.raises(UserError, match="does not hold activations"):
        trunk.owner.measure(trunk, capture=Capture(layers=(1,)))
    with pytest.raises(UserError, match="Layers go from 0 to 3"):
        trunk.owner.trunk(requests_[:2], layers=(4,))


def test_a_shared_prefix_is_run_once_and_only_where_it_is_shared(model, requests_):
    def tokens(p, row):
        return [t for t, real in zip(p.ids[row].tolist(), p.real[row].tolist(), strict=True) if real]

    batches = list(plan(requests_, batch_tokens=100_000, device=torch.device("cpu")))
    for batch in batches:
        *heads, rest = batch.prompt
        for row, i in enumerate(batch.rows):
            start = tokens(heads[0], int(rest.continues[row])) if heads else []
            assert start + tokens(rest, row) == list(requests_[i].prompt.ids)
            assert not heads or i in heads[0].shared_by[int(rest.continues[row])]
        if heads:
            assert len({tuple(tokens(heads[0], row)) for row in range(len(heads[0].ids))}) == len(heads[0].ids)
    one_cue = requests_[::5]
    assert len({r.prompt.ids[: r.prompt.spans["cue"][1]] for r in one_cue}) == 1
    (batch,) = plan(one_cue, batch_tokens=100_000, device=torch.device("cpu"))
    assert [p.ids.shape[0] for p in batch.prompt] == [1, len(one_cue)]
    (batch,) = plan(requests_, batch_tokens=100_000, device=torch.device("cpu"))
    assert [p.ids.shape[0] for p in batch.prompt] == [5, len(requests_)], "one row for each of five cues"
    assert sum(len(b.prompt) for b in plan(requests_, batch_tokens=10**6, device=torch.device("cpu"), share=False)) == 1


def test_ablation_sets_the_coordinates(model, requests_):
    edit = edits()["ablate"]
    capture = Capture(layers=(2,), positions=("last_template",))
    after = TorchReader(model).measure(requests_[:5], capture=capture, edits=[edit]).activations["last_template"][:, 0]
    torch.testing.assert_close(after @ edit.basis.T, edit.target["last_template"].expand(5, 2), atol=1e-4, rtol=0)


def test_greedy_generation_equals_hugging_face(model, requests_):
    prompts = [r.prompt for r in requests_[:6]]
    got = TorchReader(model).generate(prompts, max_new_tokens=12, stop_ids=frozenset({1}))
    for prompt, answer in zip(prompts, got, strict=True):
        ids = torch.tensor([prompt.ids])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[
            0, ids.shape[1] :
        ]
        expected = expected.tolist()
        assert answer == (expected[: expected.index(1)] if 1 in expected else expected)


def test_edits_act_in_every_decoding_step(model, requests_):
    """Greedy decoding under an edit equals choosing each token from the edited, cache-free forward pass."""
    edit = edits()["steer"]
    prompt = requests_[0].prompt
    got = TorchReader(model).generate(
        [prompt, requests_[3].prompt], max_new_tokens=8, stop_ids=frozenset(), edits=[edit]
    )[0]
    ids = list(prompt.ids)
    handle = model.model.layers[1].register_forward_hook(lambda _m, _a, out: out + edit.vector)
    for _ in range(8):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    handle.remove()
    assert got == ids[len(prompt.ids) :]
    only_answer = Steer(edit.site, edit.vector, frozenset({"answer"}))
    plain = TorchReader(model).generate([prompt], max_new_tokens=8, stop_ids=frozenset())[0]
    steered = TorchReader(model).generate([prompt], max_new_tokens=8, stop_ids=frozenset(), edits=[only_answer])[0]
    assert steered[0] == plain[0]
    assert steered != plain


def test_sampling_uses_its_generator_and_leaves_the_global_state_alone(model, requests_):
    prompts = [r.prompt for r in requests_[:3]]
    before = torch.random.get_rng_state()
    reader = TorchReader(model)

    def sample(seed):
        return reader.generate(
            prompts,
            max_new_tokens=6,
            stop_ids=frozenset(),
            temperature=1.0,
            generator=torch.Generator().manual_seed(seed),
        )

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(UserError, match="needs a generator"):
        reader.generate(prompts, max_new_tokens=2, stop_ids=frozenset(), temperature=1.0)


class TestPlantedFaults:
    def test_edit_that_changes_nothing(self, model, requests_):
        with pytest.raises(CheckError, match="changed nothing"):
            TorchReader(model).measure(requests_[:2], edits=[Steer(Site("resid_post", 1), torch.zeros(32))])

    def test_edit_without_positions(self, model, requests_):
        edit = Steer(Site("resid_post", 1), torch.ones(32), frozenset({"cue"}))
        prompt = requests_[0].prompt
        bare = type(prompt)(prompt.ids, prompt.spans | {"cue": (0, 0)}, prompt.text)
        with pytest.raises(CheckError, match="touched no position"):
            TorchReader(model).measure([Request(bare, requests_[0].answers)], edits=[edit])

    def test_hook_that_misses_a_pass(self, model, requests_, monkeypatch):
        reader = TorchReader(model)
        plain = reader._forward

        def twice(*args):
            args[-1][0].passes += 1
            return plain(*args)

        monkeypatch.setattr(reader, "_forward", twice)
        with pytest.raises(CheckError, match="should have fired"):
            reader.measure(requests_[:2], capture=Capture(layers=(1,)))

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda: Steer(Site("resid_post", 9), torch.ones(32)), "Layers go from 0 to 3"),
            (lambda: Steer(Site("resid_post", 1), torch.ones(16)), "width 16 does not fit"),
            (lambda: Steer(Site("resid_post", 1), torch.full((32,), torch.nan)), "not finite"),
            (lambda: Steer(Site("resid_post", 1), torch.ones(32), frozenset({"middle"})), "not the text 'middle'"),
            (lambda: Site("resid_mid", 1), "no site 'resid_mid'"),
            (lambda: Ablate(Site("resid_post", 1), torch.ones(2, 32), {"answer": torch.zeros(2)}), "not orthonormal"),
            (lambda: Ablate(Site("resid_post", 1), torch.eye(32)[:1], {"answer": torch.zeros(3)}), r"shape \(3,\)"),
        ],
    )
    def test_edits_that_do_not_fit(self, model, requests_, edit, message):
        with pytest.raises(UserError, match=message):
            TorchReader(model).measure(requests_[:1], edits=[edit()])

    def test_nothing_to_measure(self, model):
        with pytest.raises(UserError, match="nothing to measure"):
            TorchReader(model).measure([])

    def test_prompt_longer_than_the_context(self, model, requests_):
        prompt = requests_[0].prompt
        long = type(prompt)(prompt.ids * 20, prompt.spans, prompt.text)
        with pytest.raises(UserError, match="context 512"):
            TorchReader(model).measure([Request(long, requests_[0].answers)])
