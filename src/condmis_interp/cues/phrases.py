"""Phrases that many prompts share: seeds of one to three tokens, grown while the prompts agree, explained away in turn.

Each accepted phrase is masked before the next is looked for, so that one pattern is one phrase. Phrases of the same
prompts are the pieces of one template.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from condmis_interp.cues.contrast import Contrast, contrast
from condmis_interp.cues.text import Token, is_word, tokens

AGREE = 0.9
"""Share of a phrase's prompts that must go on alike for it to grow; the rest are typing errors and cut turns."""
MANY = 40
"""Phrases that are looked for at most."""
BITS = 28.0
"""What a phrase must say at least, in bits under everyday word counts: about three words that everyday prompts lack."""
LONG = 4
"""Words from which a phrase may stand anywhere; a shorter one is a mark at an end, or a mere habit of the language."""
_RARE = 12.0  # bits that one token counts at most: an unseen token says no more than one in 4,096

Gram = tuple[str, ...]


@dataclass
class Document:
    """A turn under search.

    Attributes:
        row: Which row it is of.
        text: Its text.
        tokens: Its tokens.
        free: Whether each token is not yet explained.

    Example:
        >>> Document.of(0, "Hot tea").free
        [True, True]
    """

    row: int
    text: str
    tokens: list[Token]
    free: list[bool]

    @classmethod
    def of(cls, row: int, text: str) -> "Document":
        """Returns a turn as a document, nothing of it explained."""
        found = tokens(text)
        return cls(row, text, found, [True] * len(found))

    def mask(self, start: int, stop: int) -> None:
        """Explains tokens."""
        self.free[start:stop] = [False] * (stop - start)


@dataclass
class Phrase:
    """A phrase and where it was found.

    Attributes:
        grams: Its tokens.
        at: Its occurrences, (document, first token), one a document.
        rows: Rows that have it.
        contrast: With everyday prompts.

    Example:
        >>> Phrase(("hot", "tea"), [(0, 1)], {0}, Contrast(1.0, 0.1, 3.0)).grams
        ('hot', 'tea')
    """

    grams: Gram
    at: list[tuple[int, int]]
    rows: set[int]
    contrast: Contrast


class Everyday:
    """Everyday prompts, counted.

    Example:
        >>> Everyday(["Hot tea, please", "Cold tea"]).count(("tea",))
        2
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        self.keys = [f" {' '.join(t.word for t in tokens(p))} " for p in prompts]
        self.words = Counter(w for k in self.keys for w in k.split())
        self.n = len(self.keys)
        self._total = sum(self.words.values())
        self._counts: dict[Gram, int] = {}

    def count(self, gram: Gram) -> int:
        """Returns how many prompts have a phrase."""
        if gram not in self._counts:
            wanted = f" {' '.join(gram)} "
            known = all(w in self.words for w in gram)
            self._counts[gram] = sum(wanted in k for k in self.keys) if known else 0
        return self._counts[gram]

    def bits(self, gram: Gram) -> float:
        """Returns what a phrase says under everyday word counts."""
        return sum(min(_RARE, -math.log2((self.words[w] + 0.5) / (self._total + 1))) for w in gram)


@dataclass(frozen=True)
class Bar:
    """What a pattern must reach.

    Attributes:
        share: Share of rows.
        count: Number of rows.
        z: Log-odds ratio, in standard deviations.
        lift: How many times more common than every day.

    Example:
        >>> Bar().passes(contrast(200, 1000, 0, 700), 200)
        True
    """

    share: float = 0.025
    count: int = 6
    z: float = 2.5
    lift: float = 5.0

    def needed(self, n: int) -> int:
        """Returns how many of `n` rows are enough."""
        return max(self.count, math.ceil(self.share * n))

    def passes(self, found: Contrast, count: int) -> bool:
        """Returns whether a pattern reaches it."""
        return found.share >= self.share and count >= self.count and found.z >= self.z and found.lift >= self.lift


def mine(documents: Sequence[Document], n: int, everyday: Everyday, bar: Bar) -> list[Phrase]:
    """Returns the phrases that pass, in the order they were found, and masks them in the documents.

    Args:
        documents: Turns.
        n: Rows that they are of.
        everyday: What they are held against.
        bar: What a phrase must reach.

    Example:
        >>> docs = [Document.of(i, f"Kindly answer in verse: what is item {i}?") for i in range(40)]
        >>> [" ".join(p.grams) for p in mine(docs, 40, Everyday(["What is tea?"] * 300), Bar())]
        ['kindly answer in verse : what is item']
    """
    found: list[Phrase] = []
    seeds = _seeds(documents)
    rejected: set[Gram] = set()
    while len(found) < MANY and (best := _best(seeds, rejected, documents, n, everyday, bar)):
        found.append(best)
        for d, start in best.at:
            documents[d].mask(start, start + len(best.grams))
        _forget(seeds, documents)
    return found


def _best(
    seeds: dict[Gram, list[tuple[int, int]]],
    rejected: set[Gram],
    documents: Sequence[Document],
    n: int,
    everyday: Everyday,
    bar: Bar,
) -> Phrase | None:
    """Returns the phrase that grows from the most telling seed, and adds to `rejected` the seeds that give none."""
    scored = []
    for gram, at in seeds.items():
        if gram in rejected or len(at) < bar.needed(n):
            continue
        count = len({documents[d].row for d, _ in at})
        own = contrast(count, n, everyday.count(gram), everyday.n)
        if bar.passes(own, count):
            scored.append((own.bits, len(gram), gram))
    for _, _, gram in sorted(scored, reverse=True):
        grown, at = _grown(gram, seeds[gram], documents)
        rows = {documents[d].row for d, _ in at}
        whole = contrast(len(rows), n, everyday.count(grown), everyday.n)
        long = sum(map(is_word, grown)) >= LONG or len(grown) > LONG
        says = everyday.bits(grown) >= BITS and (long or _at_an_end(at, grown, documents))
        if says and bar.passes(whole, len(rows)):
            return Phrase(grown, at, rows, whole)
        rejected.add(gram)
    return None


def _at_an_end(at: Sequence[tuple[int, int]], gram: Gram, documents: Sequence[Document]) -> bool:
    ends = sum(start == 0 or start + len(gram) >= len(documents[d].tokens) for d, start in at)
    return ends >= 0.95 * len(at)


def _seeds(documents: Sequence[Document]) -> dict[Gram, list[tuple[int, int]]]:
    """Returns the first occurrence in each document of short grams that say something, by gram."""
    seeds: dict[Gram, list[tuple[int, int]]] = defaultdict(list)
    for d, document in enumerate(documents):
        words, seen = [t.word for t in document.tokens], set()
        for i in range(len(words)):
            for length in (1, 2, 3):
                gram = tuple(words[i : i + length])
                if len(gram) < length or gram in seen or not all(document.free[i : i + length]):
                    continue
                if length == 1 and i not in (0, len(words) - 1):
                    continue
                seen.add(gram)
                seeds[gram].append((d, i))
    return {g: at for g, at in seeds.items() if len(at) >= 5 and any(map(is_word, g))}


def _forget(seeds: dict[Gram, list[tuple[int, int]]], documents: Sequence[Document]) -> None:
    """Drops the occurrences of seeds that are explained."""
    for gram, at in list(seeds.items()):
        kept = [(d, i) for d, i in at if all(documents[d].free[i : i + len(gram)])]
        if len(kept) < 5:
            del seeds[gram]
        else:
            seeds[gram] = kept


def _grown(gram: Gram, at: list[tuple[int, int]], documents: Sequence[Document]) -> tuple[Gram, list[tuple[int, int]]]:
    """Returns a seed grown to both sides while `AGREE` of its prompts have the same next token."""
    for step in (1, -1):
        while True:
            following: Counter[str] = Counter()
            places = []
            for d, i in at:
                j = i + len(gram) if step == 1 else i - 1
                inside = 0 <= j < len(documents[d].tokens) and documents[d].free[j]
                word = documents[d].tokens[j].word if inside else ""
                following[word] += 1
                places.append(word)
            word, count = following.most_common(1)[0]
            if not word or count < AGREE * len(at):
                break
            at = [(d, i if step == 1 else i - 1) for (d, i), w in zip(at, places, strict=True) if w == word]
            gram = (*gram, word) if step == 1 else (word, *gram)
    return gram, at
