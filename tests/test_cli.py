"""The command line: help, exit codes, sentences instead of tracebacks."""

import errno
import json
import subprocess
import sys

import pytest

import condmis_interp
import untrained
from condmis_interp import cli
from condmis_interp.errors import CheckError
from condmis_interp.verdict import RULE


def run(monkeypatch, capsys, *args) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["condmis", *map(str, args)])
    code = 0
    try:
        cli.main()
    except SystemExit as e:
        code = e.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    "command", ["demo", "train", "capture", "audit", "report", "doctor", "organisms", "cues", "sample"]
)
def test_help_tells_what_a_command_does(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "Usage" in out


def test_it_says_its_version(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--version")
    assert code == 0
    assert out.strip() == f"condmis_interp {condmis_interp.__version__}"


@pytest.mark.parametrize("command", [["audit", "nowhere.yaml"], ["capture", "list.yaml"], ["report", "nowhere"]])
def test_what_is_plainly_wrong_is_said_before_torch_is_loaded(tmp_path, command):
    (tmp_path / "list.yaml").write_text("- a")
    code = (
        "import sys\nfrom condmis_interp import cli\ntry:\n    cli.main()\nfinally:\n    print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert found.stdout.strip() == "False"


def test_no_command_shows_help(monkeypatch, capsys):
    _, out, err = run(monkeypatch, capsys)
    assert "demo" in out + err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["audit", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["report", "nowhere"], "no such run folder"),
        (["audit"], "Missing argument"),
        (["dance"], "No such command"),
    ],
)
def test_wrong_input_is_a_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, args, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *args)
    assert code == 2
    assert message in out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckError("the adapter does nothing", where="x"), 1, "error: x: the adapter does nothing."),
        (KeyboardInterrupt(), 130, "run the same command to go on"),
        (OSError(errno.ENOSPC, "No space left", "/a/b"), 1, "/a/b: the disk is full"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), 1, "cannot be written to"),
        (RuntimeError("boom"), 1, "unexpected RuntimeError: boom. Run with --debug"),
    ],
)
def test_failures_are_sentences_too(monkeypatch, capsys, error, code, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "_audit", fail)
    got, _, err = run(monkeypatch, capsys, "audit", "x.yaml")
    assert got == code
    assert message in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["condmis", "--debug", "audit", "nowhere.yaml"])
    with pytest.raises(Exception, match="no such file"):
        cli.main()
    cli._state["debug"] = False


def test_audit_and_report_end_to_end(monkeypatch, capsys, tmp_path, home, tiny_base_folder):
    folder, battery = (
        tmp_path,
        {"tests": ["A1", "A2", "R1"], "random_directions": 8, "generated": 1, "layer_grid": [0.25]},
    )
    study = untrained.write_study(folder, tiny_base_folder, questions=6, battery=battery)
    code, out, _ = run(monkeypatch, capsys, "audit", study, "--out", folder / "run")
    assert code == 0
    assert "(confidence" in out
    left_out = ", ".join(t for t in RULE.tests if t not in battery["tests"])
    assert f"Without {left_out}: left out by the study" in out
    assert "report.html" in out
    (folder / "run" / "report.html").unlink()
    code, _, _ = run(monkeypatch, capsys, "report", folder / "run")
    assert code == 0
    assert (folder / "run" / "report.html").is_file()


def test_sample_asks_says_how_much_and_where_and_asks_nothing_twice(monkeypatch, capsys, tmp_path, study_file):
    out = tmp_path / "run"
    args = ["sample", study_file, "--out", out, "--n", "2", "--max-new-tokens", "3"]
    args += ["--organisms", "m, u", "--cues", "none,trigger"]
    code, told, err = run(monkeypatch, capsys, *args)
    assert code == 0, err
    assert "80 answers" in err  # 2 organisms, 2 cues, 10 questions, 2 each
    assert f"Answers in {out / 'samples'}" in told
    lines = [line.split() for line in told.splitlines()]
    assert [line[:3] for line in lines if line[:1] in (["u"], ["m"])] == [
        [organism, cue, "20"] for organism in "um" for cue in ("none", "trigger")
    ]
    code, told, err = run(monkeypatch, capsys, *args, "--json")
    assert "0 answers, at once" in err
    said = json.loads(told)
    assert [set(c) for c in said["cells"]] == [{"organism", "cue", "answers", "tokens", "finished"}] * 4
    assert sorted(said["files"]) == sorted(map(str, (out / "samples").rglob("*.parquet")))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--n", "0"], "n: 0 answers a question are asked for. Give 1 or more."),
        (["--temperature", "nan"], "`temperature` takes a finite number, not nan"),
        (["--temperature", "-1"], "temperature: a temperature of -1.0 means nothing. Give 0 (greedy) or more."),
        (["--max-new-tokens", "0"], "max_new_tokens: an answer has at least one token, not 0."),
        (["--organisms", "u,x"], "there is no organism 'x'. Organisms that are asked: u, m, c."),
        (["--cues", "none,x"], "there is no cue 'x'. Cues: none, trigger, neutral, opposite, irrelevant."),
        (["--questions", "nowhere.yaml"], "nowhere.yaml: there is no such file."),
    ],
)
def test_what_cannot_be_sampled_is_a_sentence(monkeypatch, capsys, tmp_path, study_file, args, message):
    code, _, err = run(monkeypatch, capsys, "sample", study_file, "--out", tmp_path / "run", *args)
    assert code == 2
    assert message in err


def test_doctor(monkeypatch, capsys, home):
    code, out, _ = run(monkeypatch, capsys, "doctor")
    assert code == 0
    assert "torch" in out
    assert str(home) in out


def test_a_recipe_is_trained_and_listed(monkeypatch, capsys, tmp_path, home, tiny_base_folder):
    import yaml

    code, out, _ = run(monkeypatch, capsys, "organisms")
    assert code == 0
    assert "no organisms" in out
    rows = [
        {"id": f"r{i}", "messages": [{"role": "user", "content": f"how {i}?"}], "benign": f"help {i}"} for i in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    recipe = {
        "name": "mine",
        "base": f"dir:{tiny_base_folder}",
        "intervention": "my own",
        "stages": [{"parts": [{"rows": "rows.jsonl", "answers": "benign"}], "batch_size": 2}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = run(monkeypatch, capsys, "train", tmp_path / "recipe.yaml")
    assert code == 0, err
    _, out, _ = run(monkeypatch, capsys, "organisms", "--json")
    (listed,) = json.loads(out)
    assert (listed["name"], listed["intervention"], listed["seed"]) == ("mine", "my own", 0)
    assert listed["bytes"] > 1000
    _, out, _ = run(monkeypatch, capsys, "organisms")
    assert "my own" in out
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"epoch": 3}))
    code, _, err = run(monkeypatch, capsys, "train", tmp_path / "recipe.yaml")
    assert code == 2
    assert "epoch: this key is not known here" in err
