"""Loading panels: built-in ones by name, others from YAML files."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import read_mapping, read_yaml, validated
from condmis_interp.panel.panel import Panel
from condmis_interp.registry import Registry, broken

_PANELS: Registry[Callable[[str], Panel]] = Registry("panel", builtin=("condmis_interp.personaworld.panel",))


@checked
def register_panel(name: str, panel: Callable[[str], Panel]) -> Callable[[str], Panel]:
    """Lets studies ask a panel by the name `NAME` or `NAME:...`; returns it.

    Args:
        name: Its name.
        panel: Gives the panel from the name that a study says.

    Raises:
        UserError: if the name is taken.

    Example:
        >>> from condmis_interp.panel import load_panel, register_panel
        >>> few = register_panel("few", lambda name: load_panel("everyday").subset(per_family=int(name[4:] or 1)))
        >>> len(load_panel("few:2").questions) - len(load_panel("few").questions) == len(load_panel("few").families)
        True
    """
    return _PANELS.add(name, panel)


@checked
def load_panel(source: str | Path, **changes: Any) -> Panel:
    """Loads a panel by name (`everyday`, `personaworld`, what a package registers) or a panel from a YAML file.

    Rewrites of the questions in topics are taken from `topics/` beside the file, from the file of the same name.

    Args:
        source: Name of a panel, or a path ending in `.yaml` or `.yml`.
        **changes: Keys of the panel to replace, for example `cues`.

    Raises:
        UserError: if there is no such panel, or it does not validate; the message names file and key.

    Example:
        >>> load_panel("personaworld:2").name
        'personaworld-2'
        >>> load_panel("every-day")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: there is no panel 'every-day'. Use one of ...
    """
    name = str(source).partition(":")[0]
    if name in _PANELS:
        return Panel.model_validate(_PANELS.get(name)(str(source)).model_dump() | changes)
    if str(source).endswith((".yaml", ".yml")):
        path = Path(source)
    else:
        path = Path(str(resources.files("condmis_interp.panel") / "data" / f"{source}.yaml"))
        if not path.is_file():
            built_in = sorted([*(p.stem for p in path.parent.glob("*.yaml")), *_PANELS])
            raise UserError(
                f"there is no panel {str(source)!r}",
                fix=f"Use one of {', '.join(built_in)}, or a path to a .yaml file.{broken()}",
            )
    raw = read_mapping(path, what="a panel file must be a mapping with name, default_system_prompt, cues, questions")
    topics = path.parent / "topics" / path.name
    if topics.is_file():
        raw = raw | {"questions": _rewritten(raw.get("questions"), read_yaml(topics), str(topics))}
    return validated(Panel, raw | changes, where=str(path))


def _rewritten(questions: Any, topics: Any, where: str) -> Any:
    """Returns raw questions with their rewrites, by topic."""
    if not isinstance(topics, dict) or not all(isinstance(t, dict) for t in topics.values()):
        raise UserError("a topics file must map topics to {question id: rewritten question}", where=where)
    if not isinstance(questions, list) or not all(isinstance(q, dict) for q in questions):
        return questions  # the panel's own validation says what is wrong
    known = {q.get("id") for q in questions}
    for topic, rewrites in topics.items():
        if unknown := sorted(set(rewrites) - known):
            raise UserError(f"topic {topic!r} rewrites a question {unknown[0]!r} that the panel lacks", where=where)
    return [q | {"rewrites": {t: r[q["id"]] for t, r in topics.items() if q.get("id") in r}} for q in questions]
