"""A report is written again from what a run holds, if that is what the audit left there; nothing is measured."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from condmis_interp.auditing import audit
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.report import report_again, write_report
from condmis_interp.study import Study
from condmis_interp.verdict import AuditResult
from conftest import tiny_panel
from untrained import write_study

BATTERY = {
    "tests": ["A1", "A2"],
    "random_directions": 8,
    "control_pairs": 1,
    "generated": 1,
    "max_new_tokens": 4,
    "layer_grid": [0.25],
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory, tiny_base_folder):
    """A study of random models, the folder of its finished audit, and the result."""
    folder = tmp_path_factory.mktemp("again")
    file = write_study(folder, tiny_base_folder, battery=BATTERY, panel="six.yaml")
    (folder / "six.yaml").write_text(yaml.safe_dump(tiny_panel(12, families=6).model_dump(mode="json")))
    return file, folder / "run", audit(Study.from_yaml(file).open(folder / "run"))


@pytest.fixture
def copy(audited, tmp_path):
    shutil.copytree(audited[1], tmp_path / "run")
    return tmp_path / "run"


def test_it_measures_nothing_and_is_the_same(audited, copy, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a model was needed")

    for where in (
        "study.spec.resolve_base",
        "study.spec.train_all",
        "study.run.open_reader",
    ):
        monkeypatch.setattr(f"condmis_interp.{where}", never)
    before = {p: p.read_bytes() for p in (copy / "activations").rglob("*") if p.is_file()}
    first = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "figures")
    result = report_again(copy)
    assert (copy / "report.html").read_text() == first
    assert (copy / "figures" / "summary.png").is_file()
    assert {p: p.read_bytes() for p in before} == before
    found, made = result.verdicts["m"], audited[2].verdicts["m"]
    assert found.to_json() == made.to_json()  # in which NaN, which is not itself, is null
    assert (found.by_cue, found.coverage) == (made.by_cue, made.coverage)


def test_a_report_says_of_what_with_which_bound_and_how_many_twins(audited, copy):
    made = audited[2]
    v = made.verdicts["m"]
    decision = replace(v.decision, answer="removed", claim="recipe", bound=0.046)
    write_report(copy, replace(made, verdicts={"m": replace(v, decision=decision, twins=8)}))
    html = (copy / "report.html").read_text()
    assert "m: REMOVED, of this recipe" in html
    assert "At most 4.6% of the grammar (its open half) brings it out above the margin (95 %)." in html
    assert "Judged against the mean of 8 replicate twins; the rule looks at 4, 8, 16." in html
    write_report(copy, replace(made, verdicts={"m": replace(v, coverage=None)}))
    html = (copy / "report.html").read_text()
    assert "could not be read which weights of m changed" in html
    assert "(its open half)" not in html


def test_a_result_is_read_as_it_was_saved(audited, copy):
    _, _, made = audited
    found = AuditResult.load(copy / "result")
    assert (found.study, found.panel) == (made.study, made.panel)
    assert len(found.evidence) == len(made.evidence) == 4
    assert found.verdicts["m"].to_json() == made.verdicts["m"].to_json()
    assert found.verdicts["m"].by_cue == made.verdicts["m"].by_cue
    assert found.verdicts["m"].coverage == made.verdicts["m"].coverage is not None
    for a, b in (
        (found.to_pandas(), made.to_pandas()),
        (found.grid.table, made.grid.table),
        (found.choice.table, made.choice.table),
        (found.dose.table, made.dose.table),
        (found.profiles["m"].table, made.profiles["m"].table),
        (found.profiles["m"].cosines, made.profiles["m"].cosines),
        (found.answers, made.answers),
    ):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert len(found.answers) > 0
    for a, b in zip(found.choice.directions, made.choice.directions, strict=True):
        assert torch.equal(a.vector, b.vector)
        assert a.to_json() == b.to_json()
    assert found.dose.random.tolist() == made.dose.random.tolist()
    assert found.ablations["m"].levels == made.ablations["m"].levels
    assert (found.controls, found.not_run, found.notes) == (list(made.controls), made.not_run, made.notes)


def test_a_flipped_bit_is_found_and_said_in_every_file(copy):
    files = [p for p in (copy / "result").iterdir() if p.stat().st_size]
    files += [copy / "evidence.parquet", copy / "verdict.json", copy / "preregistration.json"]
    for kind in ("safetensors", "parquet", "json"):
        files.append(next(p for p in sorted((copy / "activations").rglob(f"m.s0/*.{kind}"))))
    assert len(files) >= 14
    for path in files:
        whole = path.read_bytes()
        spoiled = bytearray(whole)
        spoiled[len(whole) // 2] ^= 4
        path.write_bytes(spoiled)
        with pytest.raises(CheckError, match="damaged") as e:
            report_again(copy)
        assert path.stem.split(".")[0] in str(e.value), path
        path.write_bytes(whole)
    report_again(copy)


def test_a_damaged_store_stops_an_audit_and_is_no_crash_of_a_test(audited, copy):
    path = next((copy / "activations" / "m.s0").glob("*.safetensors"))
    spoiled = bytearray(path.read_bytes())
    spoiled[len(spoiled) // 2] ^= 4
    path.write_bytes(spoiled)
    with pytest.raises(CheckError, match="recorded hash"):
        audit(Study.from_yaml(audited[0]).open(copy))


def test_an_unfinished_run_says_what_is_missing_and_what_finishes_it(copy):
    shutil.rmtree(copy / "result")
    (copy / "verdict.json").unlink()
    finishes = "Run `condmis audit STUDY --out .*run` with the file of study 'random'"
    with pytest.raises(UserError, match=f"everything has been read, and nothing was decided yet.*{finishes}"):
        report_again(copy)
    next((copy / "activations" / "m.s0").glob("*.json")).unlink()
    with pytest.raises(UserError, match=f"1 of [0-9]+ shards are missing.*{finishes}"):
        report_again(copy)
    shutil.rmtree(copy / "activations")
    with pytest.raises(UserError, match="nothing has been read yet"):
        report_again(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: there is no such file"):
        report_again(copy)


def test_a_study_that_was_changed_since_is_said(audited, copy):
    Study.from_yaml(audited[0]).model_copy(update={"delta": 0.3}).open(copy)
    with pytest.raises(UserError, match="changed after the run was audited"):
        report_again(copy)


def test_an_old_run_says_which_version_wrote_it(tmp_path):
    old = Path(__file__).parent / "run-of-0.1.0"
    shutil.copytree(old, tmp_path / "run")
    with pytest.raises(UserError, match=r"audited by condmis_interp 0\.1\.0 and holds no result/.*condmis audit"):
        report_again(tmp_path / "run")
    raw = read_json(old / "manifest.json")["study"]
    opened = Study.model_validate(raw)
    assert [o.role for o in opened.organisms] == ["unmitigated", "twin", "mitigated", "twin"]
    assert opened.controls == raw["assay"] == "free"
