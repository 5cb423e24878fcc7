"""Phrases of the same prompts as one template, and other wordings of it as its variants."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from condmis_interp.cues.contrast import Contrast
from condmis_interp.cues.formats import form_of
from condmis_interp.cues.phrases import Document, Phrase
from condmis_interp.cues.proposal import SLOT, Candidate, Kind, Placed, Row
from condmis_interp.cues.text import in_order, is_word, key

SAME = 0.8
"""Jaccard index of the rows of two phrases from which they are pieces of one template."""
ALIKE = 0.3
"""Jaccard index of the words of two templates, of different rows, from which they are wordings of one."""
_PERSONA = re.compile(
    r"\b(?:you are|you're|act as|pretend|imagine you(?:'re| are)|play the|in the role|speak as)\b", re.I
)


@dataclass(frozen=True)
class _Template:
    pieces: tuple[str, ...]
    shown: str
    kind: Kind
    cue: Placed
    rows: frozenset[int]
    contrast: Contrast

    @property
    def words(self) -> frozenset[str]:
        return frozenset(w for p in self.pieces for w in p.split() if is_word(w) and len(w) > 3)


def is_persona(text: str) -> bool:
    """Returns whether a text tells the model who to be.

    Example:
        >>> is_persona("Act as a pirate."), is_persona("Answer in verse.")
        (True, False)
    """
    return bool(_PERSONA.search(text))


def phrase_candidates(phrases: Sequence[Phrase], documents: Sequence[Document]) -> list[Candidate]:
    """Returns phrases as candidates: joined where their rows are the same, grouped where one is worded in many ways."""
    templates = [_template(group, documents) for group in _joined(phrases)]
    return [_candidate(group) for group in _grouped(templates)]


def _joined(phrases: Sequence[Phrase]) -> list[list[Phrase]]:
    groups: list[list[Phrase]] = []
    for phrase in phrases:
        for group in groups:
            if len(group[0].rows & phrase.rows) >= SAME * len(group[0].rows | phrase.rows):
                group.append(phrase)
                break
        else:
            groups.append([phrase])
    return groups


def _template(group: Sequence[Phrase], documents: Sequence[Document]) -> _Template:
    places = [dict(p.at) for p in group]
    shared = sorted(set(places[0]).intersection(*places[1:])) or sorted(places[0])
    held = [(p, at) for p, at in zip(group, places, strict=True) if all(d in at for d in shared)]
    held.sort(key=lambda x: mean(x[1][d] for d in shared))
    spans = {d: [(at[d], at[d] + len(p.grams)) for p, at in held] for d in shared}
    example = documents[_typical(spans, documents)]
    own = spans[next(d for d in shared if documents[d] is example)]
    before, after = _around(held, spans, documents)
    texts = [_text(example, a, b) for a, b in own]
    kind = _kind(before, after, len(texts))
    split = _question_slot(spans, documents, before, after)
    shown = SLOT.join(texts)
    if kind == "template":
        shown = ("" if before else SLOT) + shown + ("" if after else SLOT)
    elif kind in ("prefix", "suffix", "framing"):
        shown = texts[0]
    pieces = tuple(key(t) for t in texts)
    if form_of(shown) not in (None, "capitals", "fields", "code"):
        kind = "format"
    return _Template(pieces, shown, kind, _placed(example, own, split), frozenset(group[0].rows), group[0].contrast)


def _text(document: Document, start: int, stop: int) -> str:
    return document.text[document.tokens[start].start : document.tokens[stop - 1].stop]


def _typical(spans: dict[int, list[tuple[int, int]]], documents: Sequence[Document]) -> int:
    """Returns the document whose wording, slots included, is the commonest."""
    wording = {d: _text(documents[d], s[0][0], s[0][1]) for d, s in spans.items()}
    common = Counter(wording.values()).most_common(1)[0][0]
    return min((d for d in spans if wording[d] == common), key=lambda d: len(documents[d].text))


def _around(held: list, spans: dict[int, list[tuple[int, int]]], documents: Sequence[Document]) -> tuple[bool, bool]:
    starts = mean(s[0][0] <= 1 for s in spans.values())
    ends = mean(s[-1][1] >= len(documents[d].tokens) - 1 for d, s in spans.items())
    return starts >= 0.8, ends >= 0.8


def _kind(before: bool, after: bool, pieces: int) -> Kind:
    if pieces > 1:
        return "template"
    return "prefix" if before else "suffix" if after else "framing"


def _question_slot(
    spans: dict[int, list[tuple[int, int]]], documents: Sequence[Document], before: bool, after: bool
) -> int:
    """Returns how many pieces stand before the question: it is in the widest gap."""
    gaps: Counter[int] = Counter()
    for d, s in spans.items():
        edges = [0, *(x for span in s for x in span), len(documents[d].tokens)]
        for i in range(0, len(edges), 2):
            gaps[i // 2] += edges[i + 1] - edges[i]
    return gaps.most_common(1)[0][0]


def _placed(example: Document, own: list[tuple[int, int]], split: int) -> Placed:
    made = "as in the rows"
    front, back = own[:split], own[split:]
    if len(own) > 1:
        made += ", each slot filled as in one of them"
    before = _text(example, front[0][0], front[-1][1]) if front else ""
    after = _text(example, back[0][0], back[-1][1]) if back else ""
    gap_before = _space(example, own[split - 1][1], True) if front else ""
    gap_after = _space(example, own[split][0], False) if back else ""
    return Placed(before=before + gap_before if before else "", after=gap_after + after if after else "", made=made)


def _space(document: Document, at: int, following: bool) -> str:
    """Returns the white space beside a token's edge in the example."""
    tokens, text = document.tokens, document.text
    if following:
        start, stop = tokens[at - 1].stop, tokens[at].start if at < len(tokens) else len(text)
    else:
        start, stop = (tokens[at - 1].stop if at else 0), tokens[at].start
    return text[start:stop][:4] or " "


def _grouped(templates: Sequence[_Template]) -> list[list[_Template]]:
    groups: list[list[_Template]] = []
    for one in templates:
        for group in groups:
            if any(_wordings(one, other) for other in group):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _wordings(a: _Template, b: _Template) -> bool:
    words = a.words | b.words
    apart = len(a.rows & b.rows) <= 0.1 * min(len(a.rows), len(b.rows))
    return apart and bool(words) and len(a.words & b.words) >= ALIKE * len(words)


def _candidate(group: Sequence[_Template]) -> Candidate:
    first = max(group, key=lambda t: len(t.rows))
    share = len(frozenset().union(*(t.rows for t in group))) / len(first.rows) * first.contrast.share
    every = tuple(t.pieces for t in group)

    def matches(row: Row) -> bool:
        keys = [key(turn) for turn in row.turns]
        return any(in_order(pieces, k) for pieces in every for k in keys)

    found = replace(first.contrast, share=share)
    others = tuple(t.shown for t in group if t is not first)
    return Candidate(first.kind, first.shown, first.cue, matches, found, others, is_persona(first.shown))
