"""Every example in a docstring runs, and every public function and class of the rooms below has one."""

import doctest
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

import condmis_interp
from condmis_interp.registry import Registry

ROOMS = ("battery", "causal", "cues", "directions", "judges", "organisms", "panel", "readers", "sae", "stats", "store")
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
_WITHOUT = {
    "battery": "Bench ReaderBench Stored behaviour_grid measure",
    "causal": "Ablation DoseResponse ablation choose_layer dose_response",
    "organisms": (
        "Backend Batch KL Mechanism answered_by base_in change_norm check_adapter check_checkpoint "
        "combination mechanism_of sampled_suite train "
    ),
    "panel": "RenderedPanel render_answer render_panel render_prompt",
    "readers": "Edit GatedReader PassReader Reader ReaderFactory Trunk open_reader",
    "sae": "panel_texts row_texts",
    "store": "Shard Shards Slice StoreWriter capture_cells",
}
WITHOUT = frozenset(f"{room}.{name}" for room, names in _WITHOUT.items() for name in names.split())
"""Public names that have no example yet; the list may only shrink."""


def modules() -> Iterator[ModuleType]:
    yield condmis_interp
    for found in pkgutil.walk_packages(condmis_interp.__path__, "condmis_interp."):
        if not found.name.endswith("__main__"):
            yield import_module(found.name)


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [t for t in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__) if t.examples]


EXAMPLES = [example for module in modules() for example in examples(module)]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch, tmp_path):
    """What an example registers or writes is gone after it."""
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
    assert [name for name in lacking(room) if name not in WITHOUT] == []


def test_no_exception_outlives_its_reason():
    assert sorted(WITHOUT - {name for room in ROOMS for name in lacking(room)}) == []


def test_a_wrong_example_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda _: None).failed == 1
