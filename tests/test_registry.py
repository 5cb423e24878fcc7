"""Registries and plug-ins: what there is, what is taken, what does not import."""

import pytest

from condmis_interp import registry
from condmis_interp.errors import UserError
from condmis_interp.registry import Registry


class Point:
    """An entry point, as importlib gives it."""

    dist = None

    def __init__(self, name, load):
        self.name, self.load = name, load


@pytest.fixture
def installed(monkeypatch):
    """Installs entry points for one test."""

    def install(*points):
        monkeypatch.setattr(registry, "_points", lambda: points)
        monkeypatch.setattr(registry, "_looked", {})

    return install


def test_an_unknown_name_lists_what_there_is():
    tools = Registry("tool")
    tools.add("saw", object())
    with pytest.raises(UserError, match=r"there is no tool 'hammer'.*There are: saw\."):
        tools.get("hammer")


def test_a_taken_name_is_refused_and_the_same_thing_twice_is_not():
    tools, saw = Registry("tool"), object()
    assert tools.add("saw", saw) is tools.add("saw", saw)
    with pytest.raises(UserError, match="there is a tool 'saw' already"):
        tools.add("saw", object())


def test_a_plug_in_that_does_not_import_is_named_and_stops_no_other(installed):
    tools = Registry("tool")

    def broken():
        raise ImportError("no module named frobnicate")

    installed(Point("bad", broken), Point("good", lambda: tools.add("saw", "a saw")))
    assert tools.get("saw") == "a saw"
    with pytest.raises(UserError, match=r"Plug-in bad did not import: ImportError: no module named frobnicate"):
        tools.get("hammer")


def test_two_plug_ins_of_one_name_are_named(installed):
    tools = Registry("tool")
    installed(Point("one", lambda: tools.add("saw", "a")), Point("two", lambda: tools.add("saw", "b")))
    assert tools.get("saw") == "a"
    assert "there is a tool 'saw' already" in registry.plugins()["two"]


def test_a_plug_in_may_look_things_up_while_it_is_imported(installed):
    tools = Registry("tool")
    tools.add("saw", "a saw")
    installed(Point("curious", lambda: tools.add("sharp saw", f"sharp {tools.get('saw')}")))
    assert tools.get("sharp saw") == "sharp a saw"


def test_built_in_modules_register_on_the_first_look_up():
    tools = Registry("tool", builtin=("condmis_interp.errors",))
    assert list(tools) == []
    assert "saw" not in tools
