"""What `import condmis_interp` offers: names that complete, one place for each, help for all."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import condmis_interp as ci


def test_completion_finds_the_public_names_and_nothing_else():
    assert sorted(dir(ci)) == sorted([*ci.__all__, "__version__"])
    assert not [n for n in dir(ci) if n.startswith("_") and n != "__version__"]


@pytest.mark.parametrize("name", ci.__all__)
def test_every_name_is_there_and_has_help(name):
    found = getattr(ci, name)
    assert inspect.getdoc(found)
    if name in ci._FROM and ci._FROM[name] != "errors":
        assert name in import_module(f"condmis_interp.{ci._FROM[name]}").__all__


def test_every_room_is_offered():
    rooms = {p.parent.name for p in __import__("pathlib").Path(ci.__file__).parent.glob("*/__init__.py")}
    private = {"tables", "world", "personaworld"}  # data, and a backend that is reached by the name of its base
    assert rooms - private == {n for n in ci.__all__ if n not in ci._FROM}


def test_the_type_checker_is_told_of_every_name():
    source = inspect.getsource(ci).split("__version__")[0]
    assert not [n for n in ci.__all__ if f" {n}," not in source and f" {n}\n" not in source]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Stear'"):
        _ = ci.Stear  # type: ignore[attr-defined]  # that is what is tested


def test_importing_it_imports_no_room():
    told = "import sys, condmis_interp; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
