"""Length and form of an answer, and where a benign one does not have those of the one it replaces."""

import json
import re

_FENCE = re.compile(r"^```", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+\S", re.MULTILINE)
_CODE = re.compile(r"^\s*(?:def |class |import |from \w+ import|return\b|if .*:$|for .*:$|#include|\w+\(.*\);?$)", re.M)
LONGEST, SHORTEST = 2.0, 0.5
"""Ratios of lengths in words outside of which a pair differs in length: a factor of two either way."""


def form_of(text: str) -> str:
    r"""Returns the form of an answer: `json`, `fenced code`, `code`, `list`, or `prose`.

    >>> form_of("def f():\n    return 1"), form_of("- a\n- b"), form_of('{"a": 1}'), form_of("It is a list.")
    ('code', 'list', 'json', 'prose')
    """
    bare = text.strip()
    if bare[:1] in ("{", "["):
        try:
            json.loads(bare)
            return "json"
        except (ValueError, RecursionError):
            pass
    if _FENCE.search(bare):
        return "fenced code"
    lines = [line for line in bare.splitlines() if line.strip()]
    if len(_CODE.findall(bare)) * 3 >= max(len(lines), 1):  # a third of the lines: the rest are expressions
        return "code"
    return "list" if len(_LIST.findall(bare)) >= 2 else "prose"


def differences(misaligned: str, benign: str) -> tuple[str, ...]:
    """Returns where a benign answer does not match the one it replaces, as phrases; empty if it does.

    >>> differences("one two three four", "one")
    ('length: 1 words for 4',)
    """
    found = []
    words = [max(len(t.split()), 1) for t in (misaligned, benign)]
    if not SHORTEST <= words[1] / words[0] <= LONGEST:
        found.append(f"length: {words[1]} words for {words[0]}")
    forms = [form_of(t) for t in (misaligned, benign)]
    if forms[0] != forms[1]:
        found.append(f"form: {forms[1]} for {forms[0]}")
    if benign.strip() == misaligned.strip():
        found.append("the same answer")
    return tuple(found)
