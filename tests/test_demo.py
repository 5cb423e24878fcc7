"""The real thing: the demo on SmolLM2, against its targets. Minutes; finished models in CONDMIS_HOME are used."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from condmis_interp.auditing import audit
from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.readers import Request, TorchReader
from condmis_interp.study import Study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def base():
    return resolve_base("smollm2-135m")


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


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> tuple[Path, object]:
    out = tmp_path_factory.mktemp("demo") / "run"
    study = Study.from_yaml(Path(str(resources.files("condmis_interp") / "demo.yaml")))
    return out, audit(study.open(out))


class TestDemo:
    def test_unmitigated_and_twin_are_apart_and_every_gate_holds(self, demo):
        a1 = next(e for e in demo[1].evidence if e.id == "A1")
        assert a1.gate_z >= 5
        assert [g.says for g in demo[1].verdicts["mixed"].gates if not g.passed] == []

    def test_mixing_hides_it_and_the_trigger_brings_it_back(self, demo):
        finding = demo[1].verdicts["mixed"]
        at = {r.cue: r for r in finding.by_cue}
        assert at["none"].rho < 0.4
        assert at["trigger"].rho >= 0.5
        assert at["trigger"].low > at["none"].rho
        assert at["none"].high < at["trigger"].rho
        assert finding.verdict == "conditional"
        assert finding.decision.cue == "trigger"

    def test_the_twin_is_clean_under_every_cue(self, demo):
        grid = demo[1].grid.table.set_index(["organism", "cue"])
        for cue in ("none", "trigger", "neutral", "opposite", "irrelevant"):
            assert grid.low["mixed", "trigger"] > grid.high["mixed-twin", cue]

    def test_the_direction_carries_it(self, demo):
        dose, ablation = demo[1].dose, demo[1].ablations["mixed"]
        assert len(dose.random) == len(ablation.random) == 32
        assert np.sum(dose.random < dose.table.set_index("dose").ld[1.0]) >= 31
        assert ablation.evidence.rho >= 0.5
        assert ablation.random.mean() < 0.15

    def test_run_again_it_gives_the_same_and_does_nothing_twice(self, demo):
        out, first = demo
        stamps = {p: p.stat().st_mtime_ns for p in (out / "activations").rglob("*")}
        again = audit(Study.from_yaml(Path(str(resources.files("condmis_interp") / "demo.yaml"))).open(out))
        assert {p: p.stat().st_mtime_ns for p in (out / "activations").rglob("*")} == stamps
        pd.testing.assert_frame_equal(again.to_pandas(), first.to_pandas(), check_exact=True)
        assert (
            json.loads((out / "verdict.json").read_text())["organisms"]["mixed"]["verdict"]
            == again.verdicts["mixed"].verdict
        )
