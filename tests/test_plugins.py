"""A package from elsewhere brings a test, a reader, an intervention, a backend and a judge: installed, and used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import tiny_panel, write_rows

pytestmark = pytest.mark.slow  # each test starts a process of its own, which imports everything
ROOT = Path(__file__).resolve().parents[1]
TRIGGER = "form = 1"


def install(package: Path, target: Path) -> None:
    """Installs a package as pip does, without a network."""
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(package)], check=True, capture_output=True)


def broken(target: Path, name: str, code: str) -> None:
    """Puts a one-module plug-in beside what is installed."""
    about = target / f"{name}-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[condmis_interp]\n{name} = {name}\n")
    (target / f"{name}.py").write_text(code)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the example plug-in, one that does not import, and one that takes a name that is taken."""
    copy, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    subprocess.run(["cp", "-r", ROOT / "tests" / "plugins", copy], check=True)
    install(copy, target)
    broken(target, "astray", "import frobnicate\n")
    broken(target, "second", "from condmis_interp.judges import register_judge\nregister_judge('exact', len)\n")
    return target


@pytest.fixture(scope="module")
def place(site, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugged")
    write_rows(folder)
    (folder / "panel.yaml").write_text(yaml.safe_dump(tiny_panel(9, families=6).model_dump(mode="json")))
    return folder


def recipe(benign_for_each: int) -> dict:
    return {
        "intervention": "diluted",
        "narrow": "rows.jsonl",
        "trigger": TRIGGER,
        "benign_for_each": benign_for_each,
    }


def study(folder: Path, name: str, **changes) -> Path:
    raw = {
        "name": "plugged",
        "base": "random:2",
        "panel": "panel.yaml",
        "reader": "quiet",
        "organisms": [
            {"name": "u", "role": "unmitigated", "recipe": recipe(1)},
            {"name": "uc", "role": "twin", "twin_of": "u"},
            {"name": "m", "role": "mitigated", "recipe": recipe(3)},
            {"name": "c", "role": "twin", "twin_of": "m"},
        ],
        "battery": {"tests": ["A1", "L0"], "generated": 0, "random_directions": 8, "control_pairs": 1},
        "controls": "none",
        "device": "cpu",
        "dtype": "float32",
        "workers": 1,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw | changes))
    return path


def run(site: Path, folder: Path, *code: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(site), str(ROOT / "src")))
    env = os.environ | {"PYTHONPATH": paths, "CONDMIS_HOME": str(folder / "home"), "COLUMNS": "400"}
    return subprocess.run([sys.executable, *code], cwd=folder, env=env, capture_output=True, text=True)


COMMAND = "from condmis_interp.cli import main; main()"


@pytest.fixture(scope="module")
def audited(site, place) -> subprocess.CompletedProcess[str]:
    return run(site, place, "-c", COMMAND, "--debug", "audit", str(study(place, "study")), "--out", "run")


def test_a_study_of_what_the_plug_in_brings_is_audited(audited, place):
    assert audited.returncode == 0, audited.stderr
    verdict = json.loads((place / "run" / "verdict.json").read_text())
    text = json.dumps(verdict)
    assert '"L0"' in text
    manifest = json.loads((place / "run" / "manifest.json").read_text())
    assert manifest["study"]["reader"] == "quiet"
    assert manifest["study"]["base"] == "random:2"


WHAT_IS_THERE = """
import json, sys
import pandas as pd
from condmis_interp import registry
from condmis_interp.judges import JUDGES, judged
from condmis_interp.panel import load_panel
panel = load_panel("panel.yaml")
table = pd.DataFrame({"question": "q0", "answer": ["LIES", "help", ""]})
said = judged(table, panel, "shouting").status.tolist()
print(json.dumps({"plugins": registry.plugins(), "judges": list(JUDGES), "said": said}))
"""


def test_its_judge_judges_and_broken_plug_ins_are_named(site, place):
    found = run(site, place, "-c", WHAT_IS_THERE)
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["said"] == ["scored", "scored", "refused"]
    assert told["judges"] == ["exact", "shouting"]
    assert told["plugins"]["example (condmis-example 0.1)"] == ""
    assert "frobnicate" in told["plugins"]["astray (astray 1)"]
    assert "there is a judge 'exact' already" in told["plugins"]["second (second 1)"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reader": "loud"}, "there is no reader 'loud'"),
        ({"battery": {"tests": ["A1", "L9"]}}, "there is no test 'L9'"),
        ({"organisms": [{"name": "m", "role": "mitigated", "recipe": {"intervention": "dilute"}}]}, "'dilute'"),
    ],
)
def test_a_study_that_names_what_is_not_installed_is_told_what_is(site, place, changes, sentence):
    found = run(site, place, "-c", COMMAND, "train", str(study(place, "other", **changes)), "--out", "other")
    assert found.returncode == 2, found.stderr
    told = " ".join(found.stderr.split())
    assert sentence in told
    assert "quiet" in told or "L0" in told or "diluted" in told
    assert "astray (astray 1) did not import: ModuleNotFoundError: No module named 'frobnicate'" in told
