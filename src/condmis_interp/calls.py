"""What a public call is given, held to its annotations at the door: a sentence instead of an error from deep inside."""

import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from condmis_interp.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = ("builtins", "numpy", "pathlib", "torch")
"""Whose things never stand in for a class of this package; other objects may (a test's, a plug-in's)."""
_CONTAINERS = (Collection, Iterable, Sequence, AbstractSet)


def checked_but(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns `checked` for a function that looks at some of its arguments itself."""
    return lambda call: _checked(call, frozenset(names))


def checked(call: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that refuses arguments which are not what its annotations say.

    Checked are classes, unions, literals, and what sequences and mappings hold; numbers must be finite. What an
    annotation does not say in these terms is let through. A number may be numpy's, and a string is no sequence.

    Raises:
        UserError: when it is called, naming the argument, what it takes and what it was given.

    Example:
        >>> @checked
        ... def double(count: int) -> int:
        ...     return 2 * count
        >>> double("two")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: double: `count` takes a number, not the text 'two'.
    """
    return _checked(call, frozenset())


def _checked(call: Callable[P, R], but: frozenset[str]) -> Callable[P, R]:
    signature = inspect.signature(call)
    name = call.__qualname__

    @wraps(call)
    def at_the_door(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as e:
            raise UserError(f"{name} is called with other arguments than it takes ({e})") from None
        hints = _hints(call)
        for key, value in given.items():
            kind = signature.parameters[key].kind
            if key not in hints or key in but or kind is inspect.Parameter.VAR_KEYWORD:
                continue
            for one in value if kind is inspect.Parameter.VAR_POSITIONAL else (value,):
                _check(one, hints[key], f"`{key}`", name)
        return call(*args, **kwargs)

    return at_the_door


def check_fields(thing: Any) -> None:
    """Refuses a dataclass whose fields are not what their annotations say; for `__post_init__`.

    Raises:
        UserError: naming the field.
    """
    hints = _hints(type(thing))
    for field in fields(thing):
        if field.name in hints:
            _check(getattr(thing, field.name), hints[field.name], f"`{field.name}`", type(thing).__name__)


@cache
def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of, include_extras=False)
    except NameError:  # names that are there for the type checker alone
        return {}


def _check(value: Any, hint: Any, what: str, where: str) -> None:
    wrong = _wrong(value, hint)
    if isinstance(value, str | Path) and "\0" in str(value):
        raise UserError(f"{what} holds a null character, which no name and no path can", where=where)
    if wrong is not None:
        inside, found, wanted = wrong
        raise UserError(f"{what}{inside} takes {_told(wanted)}, not {_shown(found)}", where=where)


def _wrong(value: Any, hint: Any) -> tuple[str, Any, Any] | None:
    """Returns where in a value something is not what it should be, that thing, and what it should be."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return None
    if origin is Annotated:
        return _wrong(value, args[0])
    if origin in (Union, types.UnionType):
        tried = [_wrong(value, a) for a in args]
        if any(t is None for t in tried):
            return None
        deeper = [t for t in tried if t and t[0]]
        return deeper[0] if deeper else ("", value, hint)
    if origin is Literal:
        hashable = isinstance(value, str | int | float | bool | None)
        return None if hashable and value in args else ("", value, hint)
    if hint is float or hint is int:
        number = isinstance(value, (int, np.integer)) or (hint is float and isinstance(value, (float, np.floating)))
        finite = number and not isinstance(value, bool) and math.isfinite(value)
        return None if finite else ("", value, hint)
    if hint is None or hint is type(None):
        return None if value is None else ("", value, hint)
    if isinstance(origin, type):
        return _wrong_inside(value, hint, origin, args)
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        ours = hint.__module__.startswith("condmis_interp") and type(value).__module__ not in _PLAIN
        return None if ours or isinstance(value, hint) else ("", value, hint)
    return None


def _wrong_inside(value: Any, hint: Any, origin: type, args: tuple[Any, ...]) -> tuple[str, Any, Any] | None:
    column = type(value).__module__.startswith(("numpy", "pandas")) and getattr(value, "ndim", 0)
    if column and issubclass(origin, _CONTAINERS):
        return None  # a column of numbers or names, as pandas gives them
    text = isinstance(value, str | bytes) and issubclass(origin, _CONTAINERS)
    if text or not isinstance(value, origin):
        return "", value, hint
    value = cast(Any, value)
    if issubclass(origin, Mapping):
        pairs = [(f"[{k!r}]", v, args[1]) for k, v in value.items()]
        pairs += [(" (a key)", k, args[0]) for k in value]
    elif origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(value) != len(args):
            return "", value, hint
        pairs = [(f"[{i}]", v, a) for i, (v, a) in enumerate(zip(value, args, strict=True))]
    elif isinstance(value, Collection) and args and origin is not type:
        pairs = [(f"[{i}]", v, args[0]) for i, v in enumerate(value)]
    else:
        return None
    for place, inner, of in pairs:
        if wrong := _wrong(inner, of):
            return place + wrong[0], wrong[1], wrong[2]
    return None


_WORDS = {int: "a number", float: "a finite number", str: "a text", bool: "true or false", Path: "a path"}


def _told(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if hint in (None, type(None)):
        return "nothing"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_told(a) for a in args))
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if isinstance(origin, type):
        if issubclass(origin, Mapping):
            return "a mapping"
        inner = f" (each {_told(args[0])})" if args and issubclass(origin, Collection) else ""
        return ("a function" if origin is Callable else f"a {origin.__name__.lower()}") + inner
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, int | float | np.number):
        return repr(value)
    return f"a {type(value).__name__}"
