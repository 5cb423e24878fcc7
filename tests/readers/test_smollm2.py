"""The readers on the real base model: agreement, and faults that only a real model shows."""

import pytest
import torch

from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.readers import Ablate, Capture, Patch, Request, Site, Steer, TorchReader
from condmis_interp.readers.lens import LensReader
from condmis_interp.readers.nnsight import NNsightReader

pytestmark = pytest.mark.slow
EDITS = ("none", "steer", "ablate", "patch")


@pytest.fixture(scope="module")
def base():
    return resolve_base("smollm2-135m")


@pytest.fixture(scope="module")
def readers(base):
    def fresh():
        return base.model(dtype=torch.float32)

    return {
        "torch": TorchReader(fresh()),
        "nnsight": NNsightReader.over(fresh(), tokenizer=base.tokenizer()),
        "transformer-lens": LensReader.over(fresh(), folder=str(base.folder), tokenizer=base.tokenizer()),
    }


@pytest.fixture(scope="module")
def requests_(base):
    panel = load_panel("everyday").subset(per_family=1)
    panel = panel.subset(questions=[q.id for q in panel.questions[:2]])
    rendered = render_panel(base.tokenizer(), panel)
    return [Request(rendered.prompts[key], rendered.answers[key][:4]) for key in list(rendered.prompts)[:6]]


@pytest.mark.parametrize("name", EDITS)
def test_three_readers_agree(readers, requests_, name):
    """LD in nats to 1e-4 a token; activations to 1e-4 of the layer's largest value."""
    site, width = Site("resid_post", 18), readers["torch"].width
    recording = readers["torch"].record(requests_, sites=[site])
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(width, generator=g)
    direction *= recording.norms()["median"].iloc[0] * 0.4 / direction.norm()
    edits = {
        "none": [],
        "steer": [Steer(site, direction)],
        "ablate": [Ablate(site, direction[None] / direction.norm(), {"answer": torch.tensor([3.0])})],
        "patch": [Patch(site, recording.dealt([*range(1, len(requests_)), 0]), aligned="end")],
    }[name]
    capture = Capture(layers=(0, 17, 18, 29))
    measured = {n: r.measure(requests_, capture=capture, edits=edits) for n, r in readers.items()}
    reference = measured["torch"]
    for other in ("nnsight", "transformer-lens"):
        for a, b in zip(measured[other].token_logprobs, reference.token_logprobs, strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, atol=1e-4, rtol=0)
        for position, values in reference.activations.items():
            scale = values.abs().amax((0, 2))[:, None]
            torch.testing.assert_close(measured[other].activations[position] / scale, values / scale, atol=1e-4, rtol=0)


def test_three_readers_generate_the_same(readers, requests_):
    prompts = [r.prompt for r in requests_[:3]]
    steer = Steer(Site("resid_post", 18), torch.full((readers["torch"].width,), 0.5))
    for edits in ([], [steer]):
        said = [r.generate(prompts, max_new_tokens=12, stop_ids=frozenset((2,)), edits=edits) for r in readers.values()]
        assert said[0] == said[1] == said[2]


def test_the_first_token_is_a_sink(readers, requests_):
    """A known fact of Llama-like models: token 0 carries a norm far above the others'."""
    row = readers["torch"].record(requests_, sites=[Site("resid_post", 15)]).norms().iloc[0]
    assert row.sink_position == 0
    assert row.largest > 10 * row["median"]
