"""The whole way of the data on a tiny random model: results, resume after kills, bad input."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from condmis_interp.auditing import audit
from condmis_interp.errors import CheckError, UserError
from condmis_interp.store import Shards
from condmis_interp.study import Study
from condmis_interp.verdict.decision import ANSWERS
from trained import write_study


def marks(*folders: Path) -> dict[Path, int]:
    """When each finished file was written."""
    return {p: p.stat().st_mtime_ns for f in folders for p in f.rglob("*") if p.is_file() and ".lock" not in p.name}


class TestFinished:
    def test_it_leaves_what_the_contract_names(self, finished):
        folder, _, _ = finished
        run = folder / "run"
        for name in ("manifest.json", "evidence.parquet", "verdict.json", "report.html", "figures/summary.png"):
            assert (run / name).stat().st_size > 0, name
        verdict = json.loads((run / "verdict.json").read_text())
        m = verdict["organisms"]["m"]
        assert verdict["schema"] == 1
        assert m["role"] == "mitigated"
        assert m["verdict"] in ANSWERS
        assert m["claim"] in {"", "checkpoint", "recipe"}
        assert m["elicits_at_most"] is None or 0 < m["elicits_at_most"] < 1
        assert m["twins"] == 2
        assert {"changed", "read", "unread"} == set(m["coverage"])
        assert any(m["coverage"]["changed"].values())
        assert {"id", "passed", "says", "bars"} == set(m["gates"][0])
        assert 0 <= m["confidence"] <= 1
        assert {"id", "rho", "low", "high", "p", "gate_z", "n_questions"} <= set(m["tests"][0])
        manifest = json.loads((run / "manifest.json").read_text())
        own = {"base.s0", "u.s0", "uc.s0", "m.s1", "m.s2", "c.s1", "c.s2"}
        assert set(manifest["weights"]["organisms"]) == own | {"assay-blend-50.s0"}
        assert "Be helpful." in manifest["inserted_by_template"]

    def test_evidence_can_be_recomputed_from_the_cells(self, finished):
        _, study, result = finished
        acts = Study.from_yaml(study).open(finished[0] / "run").capture()
        m, c, u, uc = (acts.ld(name, "none").mean() for name in ("m", "c", "u", "uc"))
        a1 = next(e for e in result.evidence if e.id == "A1")
        assert a1.rho == pytest.approx((m - c) / (u - uc))
        assert a1.n_questions == 12
        assert a1.n_families == 6
        table = acts.to_pandas()
        assert len(table) == 8 * 5 * 12
        assert table[(table.organism == "m") & (table.cue == "none")].ld.mean() == pytest.approx(m)

    def test_run_again_it_does_nothing_twice(self, finished):
        folder, study, result = finished
        kept = marks(folder / "home", folder / "run" / "activations", folder / "run" / "pieces")
        again = audit(Study.from_yaml(study).open(folder / "run"))
        assert marks(folder / "home", folder / "run" / "activations", folder / "run" / "pieces") == kept
        pd.testing.assert_frame_equal(again.to_pandas(), result.to_pandas())

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_evidence(self, finished, tmp_path, home, tiny_base_folder):
        study = write_study(tmp_path, tiny_base_folder)
        audit(Study.from_yaml(study).open(tmp_path / "run"))
        a, b = (pd.read_parquet(f / "run" / "evidence.parquet") for f in (finished[0], tmp_path))
        pd.testing.assert_frame_equal(a, b, check_exact=True)

    def test_results_show_and_draw_themselves(self, finished):
        result = finished[2]
        for value in (result.grid, result.dose, result.profiles["m"], result.ablations["m"]):
            assert len(value.to_pandas()) > 1
            assert value.figure().data
            assert len(repr(value)) > 20

    def test_directions_are_fitted_on_split_a_alone(self, finished, monkeypatch):
        """Leakage mutation: garbage in B and C changes neither direction, nor its controls, nor the layer."""
        import torch

        from condmis_interp.directions import covariance_matched, difference_in_differences, difference_of_means

        run = Study.from_yaml(finished[1]).open(finished[0] / "run")

        def fit(acts):
            return [
                difference_of_means(acts, plus="u", minus="c", cue="none", layer=2).vector,
                difference_in_differences(acts, organism="m", twin="c", layer=2).vector,
                covariance_matched(
                    acts,
                    organisms=("u", "m"),
                    cues=("none",),
                    layer=2,
                    position="answer_mean",
                    count=3,
                    generator=torch.Generator().manual_seed(0),
                ),
            ]

        clean = fit(run.capture())
        read = Shards.tensors

        def spoiled(shards, planned, *which):
            held_out = [i for i, s in enumerate(shards.table(planned, ["split"])["split"].to_pylist()) if s != "A"]
            for layer, position, tensor in read(shards, planned, *which):
                tensor = tensor.clone()
                tensor[held_out] = 999.0
                yield layer, position, tensor

        monkeypatch.setattr(Shards, "tensors", spoiled)
        acts = run.capture()
        assert float(acts.at("u", "none", "B", layer=2, position="answer_mean").max()) == 999.0
        for a, b in zip(clean, fit(acts), strict=True):
            assert torch.equal(a, b)


def _audit_until(study: str, out: str, home: str, events: int) -> None:
    """Audits, and dies by SIGKILL at the given event: a training step, or a file half-way to disk."""
    from condmis_interp.organisms.fitting import Watch

    os.environ["CONDMIS_HOME"] = home  # the fork server has the environment of whoever started it
    left = [events]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sync, step = os.fsync, Watch.on_step_end
    os.fsync = lambda fd: (tick(), sync(fd))[1]
    Watch.on_step_end = lambda self, *args, **kwargs: (step(self, *args, **kwargs), tick())[0]
    audit(Study.from_yaml(study).open(out))


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_trains_nothing_twice(finished, tmp_path, home, tiny_base_folder):
    """SIGKILL at ten random events, then once to the end: same verdict and evidence as without any kill."""
    study = write_study(tmp_path, tiny_base_folder)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["condmis_interp.auditing", "condmis_interp.study", "test_run"])
    rng = random.Random(0)
    trained: dict[str, int] = {}
    for _ in range(10):
        child = context.Process(
            target=_audit_until, args=(str(study), str(tmp_path / "run"), str(home), rng.randint(5, 32))
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        for path in (home / "organisms").glob("[!.]*/manifest.json"):
            stamp = path.stat().st_mtime_ns
            assert trained.setdefault(str(path), stamp) == stamp, "a finished organism was trained again"
    assert trained
    audit(Study.from_yaml(study).open(tmp_path / "run"))
    for path in (home / "organisms").glob("[!.]*/manifest.json"):
        assert trained.setdefault(str(path), path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert not list((home / "organisms").glob(".*.work"))
    whole, killed = (json.loads((f / "run" / "verdict.json").read_text()) for f in (finished[0], tmp_path))
    assert killed == whole
    a, b = (pd.read_parquet(f / "run" / "evidence.parquet") for f in (finished[0], tmp_path))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


class TestDamage:
    @pytest.fixture
    def copy(self, finished, tmp_path):
        shutil.copytree(finished[0] / "run", tmp_path / "run")
        return finished[1], tmp_path / "run"

    def test_a_flipped_bit_is_found(self, copy):
        study, run = copy
        path = run / "activations" / "m.s1" / "trigger.0000.l00-03.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        with pytest.raises(CheckError, match=r"m\.s1/trigger\.0000.*recorded hash"):
            audit(Study.from_yaml(study).open(run))

    def test_a_missing_file_of_a_shard_is_measured_again(self, copy):
        study, run = copy
        path = run / "activations" / "m.s1" / "trigger.0000.l00-03.safetensors"
        before = path.read_bytes()
        path.unlink()
        Study.from_yaml(study).open(run).capture()
        assert path.read_bytes() == before

    def test_a_full_disk_leaves_no_half_file(self, finished, tmp_path, monkeypatch):
        import errno

        def full(*_args, **_kwargs):
            raise OSError(errno.ENOSPC, "No space left on device", "x")

        monkeypatch.setattr("condmis_interp.store.shards.save", full)
        with pytest.raises(CheckError, match=r"could not be written \(No space left.*there is room"):
            Study.from_yaml(finished[1]).open(tmp_path / "run").capture()
        monkeypatch.undo()
        assert not list((tmp_path / "run" / "activations").rglob("*.safetensors"))
        assert not list((tmp_path / "run").rglob("*.part"))
        Study.from_yaml(finished[1]).open(tmp_path / "run").capture()


def test_hostile_model_text_is_escaped_in_the_report(finished, tmp_path):
    from condmis_interp import report

    folder, _, result = finished
    shutil.copytree(folder / "run" / "activations", tmp_path / "activations")
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    answers = result.answers.assign(answer=evil, question=evil)
    facts = result.facts | {"evil": evil, "inserted_by_template": evil}
    report.write_report(tmp_path, replace(result, answers=answers, facts=facts))
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", html), "the report loads something"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour: this key is not known"),
        ({"organisms": []}, "organisms"),
        ({"delta": 2}, "delta"),
        ({"base": "smollm3"}, "base 'smollm3' is not understood"),
        ({"base": "dir:/nowhere"}, "no such model folder"),
        ({"panel": "nowhere.yaml"}, "no such file"),
        ({"battery": {"random_directions": 0}}, "battery.random_directions"),
    ],
)
def test_studies_that_do_not_validate(tmp_path, home, tiny_base_folder, change, message):
    path = write_study(tmp_path, tiny_base_folder, **change)
    with pytest.raises(UserError) as e:
        Study.from_yaml(path).open(tmp_path / "run").train()
    assert message in str(e.value)
    assert not (home / "organisms").exists(), "work was done before the study was checked"


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (4, {"twin_of": "x"}, "twin of 'x', which is no organism of this study that can"),
        (4, {"twin_of": None}, "say whose twin"),
        (3, {"recipe": None}, "give a recipe, an adapter or a checkpoint"),
        (3, {"seeds": [1, 1]}, "repeats a seed"),
        (4, {"name": "m"}, "'m' occurs twice"),
        (2, {"adapter": "nowhere"}, "no adapter folder"),
        (4, {"name": "../c"}, "organisms.4.name"),
    ],
)
def test_organisms_that_do_not_fit(tmp_path, home, tiny_base_folder, index, change, message):
    path = write_study(tmp_path, tiny_base_folder)
    raw = yaml.safe_load(path.read_text())
    raw["organisms"][index] |= change
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as e:
        Study.from_yaml(path).open(tmp_path / "run")
    assert message in str(e.value)


def test_a_folder_that_is_not_this_run(finished, tmp_path):
    folder, study, _ = finished
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and holds no run"):
        Study.from_yaml(study).open(tmp_path / "taken")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file, not a folder"):
        Study.from_yaml(study).open(tmp_path / "file")
    other = tmp_path / "other.yaml"
    raw = yaml.safe_load(study.read_text()) | {"name": "other"}
    raw["panel"] = str(folder / "panel.yaml")
    for o in raw["organisms"]:
        for stage in o.get("recipe", {}).get("stages", []):
            for part in stage["parts"]:
                part["rows"] = str(folder / "rows.jsonl")
    other.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match="holds a run of study 'tiny', not 'other'"):
        Study.from_yaml(other).open(folder / "run")


def test_rng_is_left_alone(tmp_path, home, tiny_base_folder):
    import torch

    three = yaml.safe_load(write_study(tmp_path, tiny_base_folder).read_text())["organisms"][1:3]
    study = write_study(tmp_path, tiny_base_folder, organisms=[three[0] | {"role": "M"}, three[1]])
    random.seed(5)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state())
    Study.from_yaml(study).open(tmp_path / "run").train()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_time_is_recorded_for_each_part(finished):
    seconds = json.loads((finished[0] / "run" / "manifest.json").read_text())["seconds"]
    assert {"training", "capture", "steering"} <= set(seconds)
    assert all(s >= 0 for s in seconds.values())
