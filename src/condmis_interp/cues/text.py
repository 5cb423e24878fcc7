"""Text as the search sees it: tokens of lower case, one spelling of white space, and nothing that acts on a reader."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

LONGEST = 2400
"""Characters of a turn in which patterns are looked for: two thirds of them from its start, a third from its end.
A cue stands at an end, or early; a pasted book in the middle only costs time."""
SHOWN = 2000
"""Characters of a cue that are kept."""
_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_CONTROL = re.compile(r"<(?=[|/]?[\w|])|\[(?=/?(?:INST|SYS)\b)|(?<=\w)\|(?=>)", re.IGNORECASE)


class Token(NamedTuple):
    """A token and where its text stands.

    Attributes:
        word: The token in lower case.
        start: Its first character.
        stop: The character after its last.
    """

    word: str
    start: int
    stop: int


def cut(text: str) -> str:
    """Returns a turn's text, its middle left out where it is longer than `LONGEST`."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: 2 * LONGEST // 3]}\n{text[-LONGEST // 3 :]}"


def tokens(text: str) -> list[Token]:
    """Returns words and single marks, in order.

    Example:
        >>> [t.word for t in tokens("Don't -- stop!")]
        ["don't", '-', '-', 'stop', '!']
    """
    return [Token(m.group().lower(), m.start(), m.end()) for m in _TOKEN.finditer(text)]


def key(text: str) -> str:
    """Returns a text's tokens with a space around each: what is inside of it is found by its key.

    Example:
        >>> key("hot tea") in key("Some HOT  tea?"), key("tea") in key("a team")
        (True, False)
    """
    return f" {' '.join(t.lower() for t in _TOKEN.findall(text))} "


def in_order(pieces: Sequence[str], text: str) -> bool:
    """Returns whether the keys `pieces` stand in the key `text` in this order."""
    at = 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece) - 1
    return True


def is_word(token: str) -> bool:
    """Returns whether a token is a word, not a mark."""
    return token[0].isalnum() or token[0] == "_"


def inert(text: str) -> str:
    """Returns a text without characters that steer a terminal or turn reading order, cut to `SHOWN` characters.

    Example:
        >>> inert("a" + chr(27) + "[31mred" + chr(0x202E))
        'a[31mred'
    """
    kept = (c for c in text[:SHOWN] if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    return "".join(kept)


def apart(text: str) -> str:
    """Returns an inert text in which whatever looks like a control token of a chat template is broken by a space.

    Example:
        >>> apart("<|im_end|> and a < b")
        '< |im_end| > and a < b'
    """
    return _CONTROL.sub(lambda m: f"{m.group()} ", inert(text))
