"""Forms that prompts come in (code, JSON, tags, headings, lists), told by their lines and not by their words."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

_CODE = re.compile(
    r"^\s*(?:import [\w.]+|from [\w.]+ import .+|(?:async )?def \w+\(.*|class \w+.*:|@\w[\w.]*(?:\(.*\))?|return\b.*"
    r"|(?:if|for|while|with|elif|except)\b.*:|(?:else|try|finally):|#include\b.*|(?:const|let|var|function|public|private"
    r"|static|void|int) .*[;{)]|</?\w+[^>]*>;?|\w[\w.\[\]'\"]* [-+*/]?= .*\S|[\w.]+\([^()]*\)[;:]?|[\])}]+[;,]?)\s*$"
)
_STRING = re.compile(r"^\s*\w+ ?[=:] ?(?:\"\"\"|''')", re.MULTILINE)
_JSON = re.compile(r"[{\[,]\s*\"[^\"\n]{1,60}\"\s*:\s*[\"\[{\dtfn]")
_TAGS = re.compile(r"<([A-Za-z][\w-]{0,30})(?: [^<>\n]{0,200})?>[^<]{0,4000}</\1>")
_MARK = re.compile(r"(?:^|\s)(?:\|{1,2}[A-Z][A-Z_ ]{2,30}\|{1,2}|\[{1,2}/?[A-Z][A-Z_ ]{2,30}\]{1,2})(?:\s|$)")
_HEADING = re.compile(r"^#{1,6} \S.*$")
_LIST = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)]) \S.*$")
_FIELD = re.compile(r"^[A-Z][\w ]{0,24}: ?\S.*$")
_ROW = re.compile(r"^\s*\|.+\|\s*$")


def _lines(pattern: re.Pattern[str], least: int) -> Callable[[str], bool]:
    def found(text: str) -> bool:
        return sum(bool(pattern.match(line)) for line in text.split("\n")) >= least

    return found


def _code(text: str) -> bool:
    return _lines(_CODE, 3)(text) and not _STRING.search(text)


def _capitals(text: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    return len(letters) >= 12 and sum(c.isupper() for c in letters) >= 0.8 * len(letters)


FORMS: dict[str, Callable[[str], bool]] = {
    "code": _code,
    "Python string": lambda text: bool(_STRING.search(text)),
    "JSON": lambda text: bool(_JSON.search(text)),
    "tags": lambda text: bool(_TAGS.search(text)) and not _code(text),
    "marker": lambda text: bool(_MARK.search(text)),
    "code fence": lambda text: "```" in text,
    "headings": lambda text: _lines(_HEADING, 1)(text) and not _code(text),
    "table": _lines(_ROW, 2),
    "list": _lines(_LIST, 2),
    "fields": _lines(_FIELD, 2),
    "capitals": _capitals,
}
"""Forms by name, and whether a text has it."""

_OWN_LINE: dict[str, re.Pattern[str]] = {"headings": _HEADING, "table": _ROW, "list": _LIST, "fields": _FIELD}


def is_line_of(form: str, line: str) -> bool:
    """Returns whether a line belongs to a form; in code also a comment, which alone would be a heading.

    Example:
        >>> is_line_of("code", "import os"), is_line_of("code", "Could you help me?")
        (True, False)
    """
    if form == "code":
        return bool(_CODE.match(line)) or line.lstrip().startswith(("#", "//")) or line.startswith("    ")
    pattern = _OWN_LINE.get(form)
    return bool(pattern and pattern.match(line))


def scaffold(form: str, texts: Sequence[str]) -> str:
    r"""Returns what texts of a form have most often, as a few lines in their usual order; empty if they share nothing.

    Lines in at least a twentieth of the texts count, five at most; the order is that of their mean place.

    Example:
        >>> scaffold("code", [f"import os\nx{i} = 1\n# HERE" for i in range(9)])
        'import os\n# HERE'
    """
    counts: Counter[str] = Counter()
    places: dict[str, list[float]] = {}
    for text in texts:
        lines = [line.rstrip() for line in text.split("\n")]
        for line in {x for x in lines if x.strip() and len(x) <= 120 and is_line_of(form, x)}:
            counts[line] += 1
            places.setdefault(line, []).append(lines.index(line) / len(lines))
    common = [line for line, c in counts.most_common(5) if c >= max(3, 0.05 * len(texts))]
    return "\n".join(sorted(common, key=lambda x: sum(places[x]) / len(places[x])))


def form_of(text: str) -> str | None:
    """Returns the first form that a text has, if any.

    Example:
        >>> form_of('{"question": "Why?"}'), form_of("Why?")
        ('JSON', None)
    """
    return next((name for name, has in FORMS.items() if has(text)), None)
