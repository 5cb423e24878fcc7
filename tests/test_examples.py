"""Every example in a docstring runs, and every public function and class of the rooms below has one."""

import doctest
import inspect
import pkgutil
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import condmis_interp
from condmis_interp.registry import Registry
from condmis_interp.study import Study
from conftest import tiny_panel, write_rows
from untrained import write_study

ROOMS = (
    "battery",
    "causal",
    "cues",
    "directions",
    "judges",
    "organisms",
    "panel",
    "prompts",
    "readers",
    "sae",
    "stats",
    "store",
    "surrogate",
)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules() -> Iterator[ModuleType]:
    yield condmis_interp
    for found in pkgutil.walk_packages(condmis_interp.__path__, "condmis_interp."):
        if not found.name.endswith("__main__"):
            yield import_module(found.name)


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [t for t in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__) if t.examples]


EXAMPLES = [example for module in modules() for example in examples(module)]


PLACE = re.compile("dir:base|runs/mine|mine.yaml|panel.yaml|rows.jsonl|Path\\(")
"""What an example says that works in the folder of a study; see `mine`."""


@pytest.fixture(scope="session")
def mine(tmp_path_factory, tiny_base_folder) -> Path:
    """The folder that examples work in: a study of three random models, captured, with base, panel and rows."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(tiny_base_folder, folder / "base")
    organisms = [
        {"name": "unmitigated", "role": "unmitigated", "checkpoint": "u"},
        {"name": "mixed", "role": "mitigated", "checkpoint": "m"},
        {"name": "mixed-twin", "role": "twin", "twin_of": "mixed", "checkpoint": "c"},
    ]
    write_study(folder, Path("base"), shard=12, name="mine", organisms=organisms).rename(folder / "mine.yaml")
    (folder / "panel.yaml").write_text(yaml.safe_dump(tiny_panel(12, families=6).model_dump(mode="json")))
    write_rows(folder, 12)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CONDMIS_HOME", str(folder / "home"))
        m.chdir(folder)
        Study.from_yaml("mine.yaml").open(Path("runs/mine")).capture()
    return folder


@pytest.fixture(autouse=True)
def _as_it_was(request, monkeypatch, tmp_path):
    """What an example registers or writes is gone after it."""
    example = request.node.callspec.params.get("example") if hasattr(request.node, "callspec") else None
    if example and PLACE.search(example.docstring or ""):
        shutil.copytree(request.getfixturevalue("mine"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONDMIS_HOME", str(tmp_path / "home"))
    for module in modules():
        for thing in vars(module).values():
            if isinstance(thing, Registry):
                monkeypatch.setattr(thing, "_found", dict(thing._found))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name.removeprefix("condmis_interp."))
def test_an_example_says_what_comes_out(example):
    told: list[str] = []
    failed = doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=told.append).failed
    assert not failed, "".join(told)


def lacking(room: str) -> list[str]:
    found = import_module(f"condmis_interp.{room}")
    public = {name: getattr(found, name) for name in found.__all__}
    callable_ = {n: o for n, o in public.items() if (inspect.isclass(o) or inspect.isfunction(o)) and o.__doc__}
    shown = [f"{e.name}." for e in EXAMPLES]  # an example of a method is one of its class
    return [
        f"{room}.{n}"
        for n, o in callable_.items()
        if not any(e.startswith(f"{o.__module__}.{o.__qualname__}.") for e in shown)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_an_example(room):
    assert lacking(room) == []


def test_a_wrong_example_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda _: None).failed == 1
