"""Registries: what a study may name, from this package and from any installed one.

A package extends this one by an entry point in the group `condmis_interp` that names a module; importing the module
registers what it brings (`register_test`, `register_reader`, ...):

    [project.entry-points.condmis_interp]
    my_package = "my_package.plugin"

Modules are imported when something is first looked up. One that does not import is named whenever a name is not found,
and stops none of the others.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from condmis_interp.errors import UserError

GROUP = "condmis_interp"
T = TypeVar("T")


_looked: dict[str, str] = {}
"""What became of each plug-in: empty, or why it was not imported."""


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))  # reads every installed package's metadata: once


def plugins() -> dict[str, str]:
    """Imports every installed plug-in, once; returns what became of each, by `entry point (distribution)`.

    The value is empty, or says why it was not imported.
    """
    for point in _points():
        owner = f" ({point.dist.name} {point.dist.version})" if point.dist else ""
        if (name := f"{point.name}{owner}") in _looked:
            continue
        _looked[name] = ""  # before it is imported: a plug-in may look things up itself
        try:
            point.load()
        except Exception as e:  # somebody else's code: whatever it raises, the others must work
            _looked[name] = f"{type(e).__name__}: {e}"
    return dict(_looked)


def broken() -> str:
    """Returns a sentence for each plug-in that did not import, for errors about what is not there; empty for none."""
    return "".join(f" Plug-in {who} did not import: {why}." for who, why in plugins().items() if why)


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
        kind: What they are, in words: `test`, `reader`, ...
        builtin: Modules of this package that register the built-in ones when imported; imported on the first look-up,
            so that a room need not import what stands to its right.

    Example:
        >>> tools = Registry[str]("tool")
        >>> tools.add("hammer", "a hammer")
        'a hammer'
        >>> tools.get("hammer")
        'a hammer'
    """

    def __init__(self, kind: str, *, builtin: Sequence[str] = ()) -> None:
        self.kind = kind
        self._builtin = tuple(builtin)
        self._found: dict[str, T] = {}

    def add(self, name: str, thing: T) -> T:
        """Adds a thing; returns it.

        Raises:
            UserError: if the name is taken by another thing.
        """
        if self._found.get(name, thing) is not thing:
            where = getattr(self._found[name], "__module__", "")
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise UserError(
                f"there is {article} {self.kind} {name!r} already{f' ({where})' if where else ''}",
                fix=f"Give the new {self.kind} another name, or uninstall one of the two packages.",
            )
        self._found[name] = thing
        return thing

    def get(self, name: str) -> T:
        """Returns the thing called `name`.

        Raises:
            UserError: if there is none; the message lists what there is, and which plug-ins did not import.
        """
        for module in self._builtin:
            import_module(module)
        if name not in self._found:
            self._load()
        if name not in self._found:
            raise UserError(
                f"there is no {self.kind} {name!r}",
                fix=f"There are: {', '.join(sorted(self._found)) or 'none'}.{broken()}",
            )
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._found))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._found

    def _load(self) -> None:
        for module in self._builtin:
            import_module(module)
        plugins()
