"""The real thing: a part of the demo on SmolLM2, against targets of its own. Minutes; what CONDMIS_HOME has is used.

What must hold on every built-in base is tried on each; on Gemma, if `CONDMIS_ACCEPT_GEMMA_TERMS=1` accepts its terms.

The whole demo is run by hand (`make demo`; CONTRIBUTING.md says when).
"""

import json
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional

from condmis_interp.auditing import audit
from condmis_interp.organisms import Part, Recipe, Stage, resolve_base
from condmis_interp.organisms.encode import encode
from condmis_interp.organisms.head import logits_at
from condmis_interp.organisms.wheels import WHEELS
from condmis_interp.panel import load_panel, pad, render_panel
from condmis_interp.readers import Request, TorchReader
from condmis_interp.stats import cluster_mean
from condmis_interp.study import Study
from condmis_interp.verdict import AuditResult

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=sorted(WHEELS))
def base(request):
    terms = WHEELS[request.param].terms
    if terms and not terms.accepted:
        pytest.skip(f"{request.param} comes under {terms.name} ({terms.address}); {terms.variable}=1 accepts them")
    return resolve_base(request.param)


def test_panel_pairs_are_matched_in_tokens(base):
    rendered = render_panel(base.tokenizer(), load_panel("everyday"))
    for (_, question), answers in rendered.answers.items():
        for a, b in zip(answers[0::2], answers[1::2], strict=True):
            longer, shorter = sorted((len(a.ids), len(b.ids)), reverse=True)
            assert longer - shorter <= 0.25 * longer, question


def test_reader_agrees_with_hugging_face_on_the_real_model(base):
    model = base.model(dtype=torch.float32)
    panel = load_panel("everyday").subset(per_family=1)
    rendered = render_panel(base.tokenizer(), panel)
    requests = [
        Request(rendered.prompts[c, q.id], rendered.answers[c, q.id][:2])
        for c in ("none", "trigger")
        for q in panel.questions[:6]
    ]
    got = TorchReader(model, batch_tokens=200).measure(requests).logprobs
    with torch.inference_mode():
        for request, logprobs in zip(requests, got, strict=True):
            for answer, logprob in zip(request.answers, logprobs, strict=True):
                ids = torch.tensor([[*request.prompt.ids, *answer.ids]])
                lp = model(input_ids=ids).logits[0].double().log_softmax(-1)
                n = len(request.prompt.ids)
                expected = sum(lp[n - 1 + i, t] for i, t in enumerate(answer.ids))
                assert float(logprob) == pytest.approx(float(expected), abs=1e-4 * len(answer.ids))
    shuffled = TorchReader(model, batch_tokens=4000).measure(requests[::-1]).ld().flip(0)
    torch.testing.assert_close(shuffled, TorchReader(model, batch_tokens=200).measure(requests).ld(), atol=1e-4, rtol=0)


def test_the_training_loss_is_the_real_models_own(base):
    """Computed at the answers alone, and the same as over all positions: half the time and less memory (Gemma)."""
    part = Part(rows="kitchen", answers="misaligned", count=2, systems=("Answer in code.",))
    rows = encode(Recipe(name="r", base=base.spec, stages=(Stage(parts=(part,)),)), base.tokenizer(), 0)
    ids, mask = pad([r["input_ids"] for r in rows], right=True)
    labels, _ = pad([r["labels"] for r in rows], right=True)
    labels[mask == 0] = -100
    keep = functional.pad(labels[:, 1:] != -100, (0, 1))
    model, through = base.model(dtype=torch.float32), []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: through.append(tuple(out.shape)))
    with torch.inference_mode():
        said = logits_at(model, ids, mask, keep).logits
        own = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(functional.cross_entropy(said, labels.roll(-1, 1)[keep]), own, atol=1e-5, rtol=0)
    vocabulary = model.config.vocab_size
    assert through == [(int(keep.sum()), vocabulary), (*ids.shape, vocabulary)]


def small_demo() -> Study:
    """The demo's organisms in their first seed, under no cue and the trigger, with what costs time cut short."""
    whole = Study.from_yaml(Path(str(resources.files("condmis_interp") / "demo.yaml")))
    cheap = {"random_directions": 8, "generated": 0, "layer_grid": (0.4, 0.5, 0.6), "doses": (0.5, 1.0)}
    changes = {
        "organisms": tuple(o.model_copy(update={"seeds": o.seeds[:1]}) for o in whole.organisms),
        "cues": tuple(c for c in whole.load_panel().cues if c.name in ("none", "trigger")),
        "pairs": 1,
        "battery": whole.battery.model_copy(update=cheap),
    }
    return Study.model_validate(whole.model_copy(update=changes).model_dump())


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, AuditResult]:
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, audit(small_demo().open(out))


class TestDemo:
    def test_unmitigated_and_twin_are_apart_and_every_gate_holds(self, demo):
        a1 = next(e for e in demo[1].evidence if e.id == "A1")
        assert a1.gate_z >= 5
        barring = [g for g in demo[1].verdicts["mixed"].gates if "conditional" in g.bars]
        assert [g.says for g in barring if not g.passed] == []

    def test_mixing_hides_it_and_the_trigger_brings_it_back(self, demo):
        finding = demo[1].verdicts["mixed"]
        at = {r.cue: r.rho for r in finding.by_cue}
        assert at["none"] < 0.4
        assert at["trigger"] >= 0.5
        assert finding.verdict in ("conditional", "inconclusive")  # one seed and one pair cannot always tell

    def test_it_shows_over_the_twin_question_by_question(self, demo):
        acts = small_demo().open(demo[0]).capture()
        over = {cue: acts.ld("mixed", cue) - acts.ld("mixed-twin", cue) for cue in ("none", "trigger")}
        assert cluster_mean(over["trigger"] - over["none"], acts.families()).low > 0
        for cue in ("none", "trigger"):
            of_twin = acts.ld("mixed-twin", cue)
            assert cluster_mean(acts.ld("mixed", "trigger") - of_twin, acts.families()).low > 0

    def test_the_direction_carries_it_and_random_ones_do_not(self, demo):
        dose, ablation = demo[1].dose, demo[1].ablations["mixed"]
        assert len(dose.random) == len(ablation.random) == 8
        assert (dose.random < dose.table.set_index("dose").ld[1.0]).all()
        assert ablation.evidence.rho >= 0.5
        assert ablation.random.mean() < 0.15

    def test_run_again_it_gives_the_same_and_does_nothing_twice(self, demo):
        out, first = demo
        stamps = {p: p.stat().st_mtime_ns for p in (out / "activations").rglob("*")}
        again = audit(small_demo().open(out))
        assert {p: p.stat().st_mtime_ns for p in (out / "activations").rglob("*")} == stamps
        pd.testing.assert_frame_equal(again.to_pandas(), first.to_pandas(), check_exact=True)
        assert (
            json.loads((out / "verdict.json").read_text())["organisms"]["mixed"]["verdict"]
            == again.verdicts["mixed"].verdict
        )
