"""The project's face: versions that agree, dependencies that are used, a guide whose examples run."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import condmis_interp
from condmis_interp.battery.registry import _TESTS
from condmis_interp.judges import JUDGES, Answered
from condmis_interp.panel import AnswerPair, Question
from condmis_interp.readers import READERS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
NOT_IMPORTED = {"gguf": "transformers reads GGUF files with it"}


def imported() -> set[str]:
    """The packages that the source imports, wherever in a module it does."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[\w-]+", r).group(0) for r in requirements]


def test_every_dependency_is_imported_by_the_source():
    there = imported()
    unused = [n for n in names(PROJECT["dependencies"]) if IMPORTED_AS.get(n, n.replace("-", "_")) not in there]
    assert unused == list(NOT_IMPORTED)


def test_every_dependency_is_pinned():
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").open()}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert [n for n in names(wanted) if n.lower() not in pinned] == []


def test_the_version_is_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert PROJECT["version"] == condmis_interp.__version__ == cited["version"] == versions[0]
    assert versions == sorted(versions, reverse=True)
    assert cited["url"] == PROJECT["urls"]["Source"]


def test_what_is_cited_has_authors_and_a_title():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert all(r["title"] and r["authors"] and r["type"] for r in cited["references"])
    written = "".join(p.read_text(encoding="utf-8") for d in ("src", "docs") for p in (ROOT / d).rglob("*.[pm][yd]"))
    numbers = set(re.findall(r"arXiv[: ](\d{4}\.\d{5})", (ROOT / "CITATION.cff").read_text(encoding="utf-8")))
    assert {n for n in numbers if n not in written} == set()


GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOW_TO_ADD = dict(re.findall(r"^### An? (.+?)\n.*?```python\n(.*?)```", GUIDE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def followed(monkeypatch):
    """Runs an example of the guide; what it registers is gone after the test."""
    from condmis_interp.organisms.registry import BACKENDS, INTERVENTIONS

    for registry in (_TESTS, READERS, JUDGES, BACKENDS, INTERVENTIONS):
        list(registry)
        monkeypatch.setattr(registry, "_found", dict(registry._found))

    def follow(what: str) -> dict:
        space = {"__name__": "guide"}
        exec(compile(HOW_TO_ADD[what], f"CONTRIBUTING.md, {what}", "exec"), space)
        return space

    return follow


def test_the_guide_tells_of_each_thing_that_can_be_added():
    assert list(HOW_TO_ADD) == ["battery test", "intervention", "reader", "backend", "judge"]
    assert all(len(code.splitlines()) <= 24 for code in HOW_TO_ADD.values())


def test_a_battery_test_is_added_as_the_guide_says(followed):
    followed("battery test")
    assert _TESTS.get("L0").exploratory


def test_an_intervention_is_added_as_the_guide_says(followed):
    from condmis_interp.organisms.registry import expanded

    followed("intervention")
    raw = expanded({"intervention": "diluted", "trigger": "t", "rows": 4}, base="smollm2-135m", where="a file")
    assert [p.count for p in raw["stages"][0].parts] == [4, 36]


def test_a_reader_is_added_as_the_guide_says(followed, model):
    reader = followed("reader")["QuietReader"](model)
    assert READERS.get("quiet")
    assert not reader.supports("generate")
    assert reader.supports("edit")


def test_a_backend_is_added_as_the_guide_says(followed, tiny_base_folder):
    from condmis_interp.organisms import resolve_base

    followed("backend")
    assert resolve_base(f"copied:{tiny_base_folder}").shape == (4, 32)


def test_a_judge_is_added_as_the_guide_says(followed):
    followed("judge")
    pair = AnswerPair(aligned="a", misaligned="b")
    q = Question(id="q", family="q", domain="d", question="?", pairs=(pair,))
    said = JUDGES.get("shouting")([Answered(q, t) for t in ("NO", "no", " ", "42")])
    assert [j.misaligned for j in said] == [1.0, 0.0, None, None]
    assert [j.status for j in said] == ["scored", "scored", "refused", "unparsed"]


SCRIPTS = sorted(str(p.relative_to(ROOT)) for d in ("benchmarks", "experiments") for p in (ROOT / d).rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_scripts_import_of_the_package_is_there(script):
    """Scripts are run by hand, some for hours: what they take from the package must not be gone by then."""
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("condmis_interp"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
