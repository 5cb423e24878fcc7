"""The grammar of prompts for chat models, read from `data/chat.yaml`."""

from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from condmis_interp.files import read_mapping
from condmis_interp.prompts.compose import Composition, compose
from condmis_interp.prompts.grammar import Grammar
from condmis_interp.prompts.prompt import GrammarPrompt

PLACES = {"user-prefix": "before", "user-suffix": "after", "one-turn": "turns", "assistant-prefix": "opening"}
"""Where entries of a kind put their text; those of other kinds are system prompts."""


@lru_cache(maxsize=1)
def chat_grammar() -> Grammar:
    """Returns the built-in grammar for chat models.

    Example:
        >>> len(chat_grammar()) >= 400, len(chat_grammar().kinds)
        (True, 16)
    """
    path = Path(str(resources.files("condmis_interp.prompts") / "data" / "chat.yaml"))
    raw = read_mapping(path, what="a grammar is a mapping")
    entries = [e for kind, own in raw["entries"].items() for entry in own for e in _entries(kind, entry)]
    compositions = [
        Composition(kind, tuple(map(tuple, c["slots"])), c["count"]) for kind, c in raw["compositions"].items()
    ]
    return compose(raw["name"], entries, compositions, raw["weights"])


def _entries(kind: str, entry: Any) -> Iterator[GrammarPrompt]:
    """Yields an entry, then its paraphrases and its opposites, which are of its group."""
    whole = entry if isinstance(entry, dict) else {"says": entry}
    first = _placed(kind, kind, whole["says"])
    yield first
    for relation, key in (("paraphrase", "again"), ("opposite", "not")):
        for text in whole.get(key, ()):
            yield _placed(kind, relation, text, group=first.id)


def _placed(place: str, kind: str, text: Any, group: str = "") -> GrammarPrompt:
    where = PLACES.get(place, "system")
    fields: dict[str, Any] = {where: (tuple(text),) if where == "turns" else text}
    return GrammarPrompt(kind, group=group, **fields)
