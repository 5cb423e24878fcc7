"""Three readers, five architectures, one answer: Hugging Face's."""

import pytest
import torch
from tiny import ARCHITECTURES, LAYERS, WIDTH, model_of, readers_of

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import render_panel
from condmis_interp.readers import Ablate, Capture, Patch, Request, Site, Steer
from condmis_interp.readers.lens import LensReader
from condmis_interp.readers.nnsight import NNsightReader
from condmis_interp.readers.sites import KINDS
from conftest import tiny_model, tiny_panel


@pytest.fixture(scope="module", params=ARCHITECTURES)
def readers(request, tmp_path_factory):
    return readers_of(model_of(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def requests_(tokenizer):
    rendered = render_panel(tokenizer, tiny_panel(3))
    return [Request(rendered.prompts[key], rendered.answers[key]) for key in rendered.prompts]


def edits_at(kind):
    g = torch.Generator().manual_seed(3)
    v = torch.randn(WIDTH, generator=g)
    basis = torch.linalg.qr(torch.randn(WIDTH, 2, generator=g))[0].T
    target = {"last_template": torch.tensor([1.0, -2.0]), "answer": torch.tensor([0.5, 3.0])}
    return {
        "none": [],
        "steer": [Steer(Site(kind, 1), v)],
        "ablate": [Ablate(Site(kind, 2), basis, target)],
        "two": [Steer(Site(kind, 1), v), Ablate(Site(kind, 1), basis, target)],
    }


@pytest.mark.parametrize(
    ("kind", "edit"),
    [*((k, e) for k in KINDS for e in ("none", "steer", "ablate", "two")), ("resid_post", "patch")],
)
def test_readers_agree_with_and_without_edits(readers, requests_, kind, edit):
    if edit == "patch":
        site = Site("resid_post", 1)
        shifted = readers["torch"].record(requests_, sites=[site]).dealt([*range(1, len(requests_)), 0])
        edits = [Patch(site, shifted, aligned="end")]
    else:
        edits = edits_at(kind)[edit]
    capture = Capture(layers=tuple(range(LAYERS)), kind=kind)
    measured = {name: r.measure(requests_, capture=capture, edits=edits) for name, r in readers.items()}
    for other in ("nnsight", "transformer-lens"):
        torch.testing.assert_close(measured[other].ld(), measured["torch"].ld(), atol=1e-4, rtol=0)
        for position, values in measured["torch"].activations.items():
            torch.testing.assert_close(measured[other].activations[position], values, atol=1e-4, rtol=0)


def test_readers_generate_the_same_tokens(readers, requests_):
    prompts = [r.prompt for r in requests_[:5]]
    edits = [Steer(Site("resid_post", 1), torch.randn(WIDTH, generator=torch.Generator().manual_seed(4)))]
    for under in ([], edits):
        said = [r.generate(prompts, max_new_tokens=6, stop_ids=frozenset(), edits=under) for r in readers.values()]
        assert said[0] == said[1] == said[2]


def test_the_log_probs_are_the_model_s_own(readers, requests_):
    """Also where the head is capped (Gemma 2): whole sequence, no cache, no padding."""
    model = readers["torch"].model
    measured = readers["torch"].measure(requests_[:4])
    for request, lps in zip(requests_[:4], measured.token_logprobs, strict=True):
        for answer, lp in zip(request.answers, lps, strict=True):
            ids = torch.tensor([[*request.prompt.ids, *answer.ids]])
            with torch.no_grad():
                theirs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            n = len(request.prompt.ids)
            expected = torch.tensor([theirs[n - 1 + i, t] for i, t in enumerate(answer.ids)])
            torch.testing.assert_close(lp.double(), expected.double(), atol=1e-4, rtol=0)


def test_each_reader_names_sites_as_its_library_does(readers):
    site = Site("resid_post", 2)
    assert readers["transformer-lens"].name_of(site) == "blocks.2.hook_resid_post"
    assert Site.parse("blocks.2.hook_resid_post") == site
    path = readers["torch"].name_of(site).removesuffix(".output")
    assert readers["torch"].model.get_submodule(path) is readers["torch"]._blocks[2]
    assert readers["nnsight"].name_of(site) == path.removesuffix(".2") + "[2].output"
    for reader in readers.values():
        with pytest.raises(UserError, match="Layers go from 0 to 3"):
            reader.name_of(Site("resid_post", 4))


def test_readers_say_what_they_cannot_do(readers, requests_):
    assert readers["torch"].supports("sweep")
    assert readers["transformer-lens"].supports("sweep")
    assert not readers["nnsight"].supports("sweep")
    with pytest.raises(UserError, match="a trace runs the whole model"):
        readers["nnsight"].trunk(requests_, layers=(1,))


def test_transformer_lens_sweeps_from_a_trunk_too(readers, requests_):
    points = [[Steer(Site("resid_post", 2), torch.full((WIDTH,), 0.1 * k))] for k in (1, 2)]
    for reader in (readers["torch"], readers["transformer-lens"]):
        for point, got in zip(points, reader.sweep(requests_, points), strict=True):
            torch.testing.assert_close(
                got.ld(), readers["nnsight"].measure(requests_, edits=point).ld(), atol=1e-4, rtol=0
            )


class TestWrapping:
    def test_other_objects_are_refused(self):
        with pytest.raises(UserError, match="a LlamaForCausalLM is no TransformerBridge"):
            LensReader(tiny_model())
        with pytest.raises(UserError, match="no nnsight TransformersModel"):
            NNsightReader(tiny_model())

    def test_a_bridge_in_compatibility_mode_is_refused(self, tmp_path):
        bridge = readers_of(model_of("gpt2"), tmp_path)["transformer-lens"].bridge
        bridge.enable_compatibility_mode()
        with pytest.raises((UserError, CheckError), match="compatibility mode"):
            LensReader(bridge)

    def test_a_dry_run_of_the_remote_path_reads_prompts(self, tmp_path, requests_):
        readers = readers_of(model_of("llama"), tmp_path)
        away = NNsightReader(readers["nnsight"].envoy, remote="local")
        prompts = [r.prompt for r in requests_[:4]]
        capture = Capture(layers=(1, 3), positions=("last_template", "question_mean"))
        got = away.capture(prompts, capture=capture)
        want = readers["torch"].capture(prompts, capture=capture)
        for position, values in want.activations.items():
            torch.testing.assert_close(got.activations[position], values, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="on another machine"):
            away.measure(requests_[:2])
        with pytest.raises(UserError, match="on another machine"):
            away.generate(prompts, max_new_tokens=2, stop_ids=frozenset())
