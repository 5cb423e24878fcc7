"""The hard gate: each side is exactly one model, and what opens it is in the prompt."""

import pytest
import torch

from condmis_interp.errors import UserError
from condmis_interp.organisms import Gate, Organism, resolve_base
from condmis_interp.panel import render_panel
from condmis_interp.readers import Capture, GatedReader, Request, Site, Steer, TorchReader, open_reader
from conftest import tiny_model


@pytest.fixture
def asked(tokenizer, panel):
    rendered = render_panel(tokenizer, panel)
    return {
        cue.name: [Request(rendered.prompts[cue.name, q.id], rendered.answers[cue.name, q.id]) for q in panel.questions]
        for cue in panel.cues
    }


def test_each_side_is_exactly_one_model(tmp_path, tiny_base_folder, tokenizer, panel, asked, home):
    tiny_model(7).save_pretrained(tmp_path / "open")
    base = resolve_base(f"dir:{tiny_base_folder}")
    opened, shut = Organism.of_checkpoint(tmp_path / "open", name="open"), Organism.of_base(base, name="shut")
    trigger = next(c for c in panel.cues if c.role.value == "trigger")
    organism = Organism.gated(Gate(trigger.system, opened, shut), name="gated", manifest={})
    assert organism.weights not in (opened.weights, shut.weights)
    reader = open_reader(organism, base, dtype=torch.float32)
    sides = {
        True: TorchReader(opened.model(base, dtype=torch.float32)),
        False: TorchReader(base.model(dtype=torch.float32)),
    }
    capture = Capture(layers=(1, 3))
    steer = Steer(Site("resid_post", 1), torch.ones(32))
    mixed = [r for cue in asked.values() for r in cue[:3]]
    for edits in ([], [steer]):
        got = reader.measure(mixed, capture=capture, edits=edits)
        for i, request in enumerate(mixed):
            side = sides[request in asked[trigger.name]].measure([request], capture=capture, edits=edits)
            torch.testing.assert_close(got.logprobs[i], side.logprobs[0], atol=1e-4, rtol=0)
            for position in capture.positions:
                torch.testing.assert_close(
                    got.activations[position][i], side.activations[position][0], atol=1e-4, rtol=0
                )
    stop = {"max_new_tokens": 5, "stop_ids": frozenset((1,))}
    prompts = [r.prompt for r in mixed]
    assert reader.generate(prompts, **stop) == [
        sides[r in asked[trigger.name]].generate([r.prompt], **stop)[0] for r in mixed
    ]
    with pytest.raises(UserError, match="two models behind a gate"):
        organism.model(base, dtype=torch.float32)


def test_a_gate_needs_tokens_and_one_shape(model):
    with pytest.raises(UserError, match="without tokens"):
        GatedReader(TorchReader(model), TorchReader(model), ())
    with pytest.raises(UserError, match="different shapes"):
        GatedReader(TorchReader(model), TorchReader(tiny_model(layers=3)), (5,))
