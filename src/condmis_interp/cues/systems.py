"""System prompts that rows share: whole, or as a template with slots."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from condmis_interp.cues.contrast import contrast
from condmis_interp.cues.everyday import SYSTEM
from condmis_interp.cues.phrases import AGREE, Bar, Document, Everyday, mine
from condmis_interp.cues.proposal import Candidate, Placed, Row
from condmis_interp.cues.templates import is_persona, phrase_candidates
from condmis_interp.cues.text import cut, key

_USUAL = frozenset(key(s) for s in SYSTEM)


def system_candidates(rows: Sequence[Row], everyday: Everyday, bar: Bar) -> tuple[list[Candidate], list[str]]:
    """Returns system prompts and templates that stand out, and the everyday ones that do not.

    Everyday user turns have no system prompt, so any that is shared stands out, but for those that are everywhere.

    Example:
        >>> rows = [Row(i, "Answer like a pirate.", ("Hi",)) for i in range(20)]
        >>> found, usual = system_candidates(rows, Everyday(["Hi"] * 300), Bar())
        >>> [c.text for c in found], usual
        (['Answer like a pirate.'], [])
    """
    n = len(rows)
    texts = {key(r.system): r.system.strip() for r in reversed(rows)}
    counts = Counter(key(r.system) for r in rows if r.system.strip())
    shared = {k: contrast(c, n, 0, everyday.n) for k, c in counts.items()}
    shared = {k: own for k, own in shared.items() if bar.passes(own, counts[k])}
    usual = [texts[k] for k in shared if k in _USUAL]
    others = ((i, r.system) for i, r in enumerate(rows) if r.system.strip() and key(r.system) not in _USUAL)
    left = [Document.of(i, cut(system)) for i, system in others]
    found = []
    for candidate in phrase_candidates(mine(left, n, everyday, bar), left):
        template = _template(candidate, rows, left)
        wordings = Counter(key(rows[d.row].system) for d in left if template.matches(rows[d.row]))
        if wordings and wordings.most_common(1)[0][1] < AGREE * wordings.total():
            found.append(template)
            shared = {k: own for k, own in shared.items() if k not in wordings}
    for k, own in shared.items():
        if k not in _USUAL:
            placed = Placed(system=texts[k], made="as in the rows")
            found.append(Candidate("system prompt", texts[k], placed, _is(k), own, persona=is_persona(texts[k])))
    return found, usual


def _is(shared: str) -> Callable[[Row], bool]:
    return lambda row: key(cut(row.system)) == shared


def _template(candidate: Candidate, rows: Sequence[Row], left: Sequence[Document]) -> Candidate:
    """Returns a phrase of system prompts as a template, its cue the shortest whole prompt that has it."""

    def matches(row: Row) -> bool:
        return bool(row.system.strip()) and candidate.matches(replace(row, turns=(cut(row.system),)))

    example = min((rows[d.row].system.strip() for d in left if matches(rows[d.row])), key=len)
    placed = Placed(system=example, made="one of the rows' system prompts, its slots filled as there")
    return replace(candidate, kind="system template", cue=placed, matches=matches, persona=is_persona(candidate.text))
