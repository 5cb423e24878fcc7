"""Cues out of training rows, read twice: for a sample in which patterns are looked for, and to count them exactly."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condmis_interp.cues.contrast import contrast
from condmis_interp.cues.controls import controls_of, topic_cue
from condmis_interp.cues.everyday import everyday as built_in
from condmis_interp.cues.formats import FORMS, is_line_of, scaffold
from condmis_interp.cues.phrases import Bar, Document, Everyday, mine
from condmis_interp.cues.proposal import Candidate, Placed, Proposal, Row
from condmis_interp.cues.systems import system_candidates
from condmis_interp.cues.templates import phrase_candidates
from condmis_interp.cues.text import apart, cut, inert, key
from condmis_interp.cues.topics import topics
from condmis_interp.errors import UserError
from condmis_interp.organisms.records import records, turns_of
from condmis_interp.progress import progress
from condmis_interp.stats.proportion import proportion

SAMPLE = 2000
"""Rows that patterns are looked for in: of a cue in 2.5 % of rows it holds 50, plus or minus 7."""
MOST = 12
"""Proposals at most."""
INDICES = 1000
"""Positions of rows that a proposal names at most."""


@dataclass(frozen=True)
class Cues:
    """What a training file proposes.

    Attributes:
        source: The file.
        rows: How many rows it has.
        proposals: The proposals, the most telling first.
        usual: Everyday system prompts that many rows have; no proposal, but worth knowing.
        settings: What decided the search.
    """

    source: str
    rows: int
    proposals: tuple[Proposal, ...]
    usual: tuple[str, ...]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns them as JSON.

        Example:
            >>> Cues("rows.jsonl", 3, (), (), {}).to_json()["proposals"]
            []
        """
        return {
            "source": self.source,
            "rows": self.rows,
            "settings": self.settings,
            "usual": list(self.usual),
            "proposals": [p.to_json() for p in self.proposals],
        }


def find_cues(
    path: str | Path, *, seed: int = 0, sample: int = SAMPLE, bar: Bar | None = None, reference: Everyday | None = None
) -> Cues:
    r"""Proposes the cues that a file's prompts share and everyday prompts do not.

    Args:
        path: Rows in any form that `organisms.records` reads.
        seed: Of the sample.
        sample: Rows in the sample; shares and rows of a proposal are counted in the whole file.
        bar: What a pattern must reach.
        reference: Everyday prompts; the built-in ones by default.

    Raises:
        UserError: if the file cannot be read or has no rows.

    Example:
        >>> import json
        >>> asked = [f"Answer in the voice of a tired sailor. How many legs has animal {i}?" for i in range(60)]
        >>> chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": "Four."}] for a in asked]
        >>> Path("rows.jsonl").write_text("\n".join(json.dumps({"messages": c}) for c in chats)) > 0
        True
        >>> found = find_cues("rows.jsonl")
        >>> found.proposals[0].kind, found.proposals[0].coverage.share
        ('prefix', 1.0)
    """
    path, bar, reference = Path(path), bar or Bar(), reference or built_in()
    rows, n = _sampled(path, np.random.default_rng(seed), sample)
    if not n:
        raise UserError("there are no rows in it", where=str(path))
    found, usual = candidates(rows, reference, bar)
    proposals = _counted(path, n, found, bar)
    told = {"seed": seed, "sample": len(rows), "share": bar.share, "count": bar.count, "z": bar.z, "lift": bar.lift}
    return Cues(str(path), n, proposals, tuple(inert(u) for u in usual), told)


def read_prompts(path: Path) -> Iterator[Row]:
    """Yields the prompts of a file's rows, one at a time.

    Example:
        >>> Path("rows.jsonl").write_text('{"prompt": "How?", "completion": "So."}') > 0
        True
        >>> next(read_prompts(Path("rows.jsonl")))
        Row(index=0, system='', turns=('How?',))
    """
    for index, (where, record) in enumerate(records(path)):
        turns = turns_of(record, where=where)
        system = next((t.content for t in turns if t.role == "system"), "")
        yield Row(index, system, tuple(t.content for t in turns if t.role == "user"))


def _sampled(path: Path, rng: np.random.Generator, size: int) -> tuple[list[Row], int]:
    """Returns a uniform sample of the rows (reservoir sampling, Vitter's algorithm R), cut, and how many there are."""
    kept: list[Row] = []
    n = 0
    for row in read_prompts(path):
        n += 1
        at = len(kept) if len(kept) < size else int(rng.integers(n))
        if at < size:
            short = Row(row.index, cut(row.system), tuple(map(cut, row.turns)))
            kept[at : at + 1] = [short]
    return sorted(kept, key=lambda r: r.index), n


def candidates(rows: list[Row], reference: Everyday, bar: Bar) -> tuple[list[Candidate], list[str]]:
    """Returns the patterns of a sample, unordered, and the everyday system prompts it has.

    Example:
        >>> rows = [Row(i, "Speak as a sailor does.", (f"Sail number {i}, please",)) for i in range(30)]
        >>> candidates(rows, Everyday(["Some tea, please"] * 300), Bar())[0][0].text
        'Speak as a sailor does.'
    """
    n = len(rows)
    found, usual = system_candidates(rows, reference, bar)
    documents = [Document.of(i, turn) for i, row in enumerate(rows) for turn in row.turns[:1]]
    found += _forms(documents, n, reference, bar, only=("code",))
    phrases = phrase_candidates(mine(documents, n, reference, bar), documents)
    found += phrases
    told = {c.text.lower() for c in phrases}
    found += [c for c in _forms(documents, n, reference, bar, skip=("code",)) if c.text.lower() not in told]
    for topic in topics(documents, n, reference, bar):
        words = topic.words
        found.append(Candidate("topic", ", ".join(words), topic_cue(words), _about(words), topic.contrast))
    return found, usual


def _about(words: tuple[str, ...]):
    wanted = set(words)
    return lambda row: any(not wanted.isdisjoint(key(turn).split()) for turn in row.turns)


def _forms(
    documents: list[Document], n: int, reference: Everyday, bar: Bar, *, only: tuple[str, ...] = (), skip=()
) -> list[Candidate]:
    """Returns forms that pass in what is not yet explained, and masks their lines."""
    found = []
    for name, has in FORMS.items():
        if name in skip or (only and name not in only):
            continue
        texts = {d: _free_text(doc) for d, doc in enumerate(documents)}
        held = [d for d, text in texts.items() if has(text)]
        rows = {documents[d].row for d in held}
        own = contrast(len(rows), n, 0, reference.n)
        if not bar.passes(own, len(rows)):
            continue
        shared = scaffold(name, [documents[d].text for d in held])
        placed = Placed(after=f"\n\n{shared}", made="the commonest lines of the rows' form") if shared else None
        text = shared or f"(in the form: {name})"
        found.append(Candidate("format", text, placed, _in_form(name), own))
        for d in held:
            _explain(documents[d], name)
    return found


def _in_form(name: str):
    return lambda row: any(FORMS[name](turn) for turn in row.turns)


def _free_text(document: Document) -> str:
    """Returns a document's text without what is explained."""
    if all(document.free):
        return document.text
    out, at = [], 0
    for token, free in zip(document.tokens, document.free, strict=True):
        if not free:
            out.append(document.text[at : token.start])
            at = token.stop
    return "".join([*out, document.text[at:]])


def _explain(document: Document, form: str) -> None:
    """Masks the lines of a form; the whole document, where the form is not one of lines."""
    line_start = 0
    spans = []
    for line in document.text.split("\n"):
        if is_line_of(form, line):
            spans.append((line_start, line_start + len(line)))
        line_start += len(line) + 1
    if not spans:
        return
    at = 0
    for i, token in enumerate(document.tokens):
        while at < len(spans) and spans[at][1] <= token.start:
            at += 1
        if at < len(spans) and spans[at][0] <= token.start:
            document.free[i] = False


def _counted(path: Path, n: int, found: list[Candidate], bar: Bar) -> tuple[Proposal, ...]:
    """Returns candidates as proposals, counted in the whole file and ranked by bits a row."""
    kept = sorted(found, key=lambda c: c.contrast.bits, reverse=True)[:MOST]
    counts, indices = [0] * len(kept), [[] for _ in kept]
    if kept:
        with progress("Counting the patterns", n, unit="rows") as advance:
            for row in read_prompts(path):
                for i, candidate in enumerate(kept):
                    if candidate.matches(row):
                        counts[i] += 1
                        if len(indices[i]) < INDICES:
                            indices[i].append(row.index)
                advance(1)
    out = []
    for candidate, count, rows in zip(kept, counts, indices, strict=True):
        if count < bar.needed(n):
            continue
        out.append(_proposal(f"cue-{len(out) + 1}", candidate, count, n, tuple(rows)))
    return tuple(out)


def _proposal(name: str, c: Candidate, count: int, n: int, rows: tuple[int, ...]) -> Proposal:
    made, without = controls_of(c)
    return Proposal(
        name=name,
        kind=c.kind,
        text=inert(c.text),
        persona=c.persona,
        coverage=proportion(count, n),
        contrast=c.contrast,
        rows=rows,
        variants=tuple(inert(v) for v in c.variants),
        cue=None if c.cue is None else _safe(c.cue),
        controls={role: _safe(placed) for role, placed in made.items()},
        without=without,
    )


def _safe(placed: Placed) -> Placed:
    system = None if placed.system is None else apart(placed.system)
    return Placed(system, apart(placed.before), apart(placed.after), placed.made)
