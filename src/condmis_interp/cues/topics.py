"""Topics: words that the rows have and everyday prompts have not, where no phrase explains them."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from condmis_interp.cues.contrast import Contrast, contrast
from condmis_interp.cues.phrases import Bar, Document, Everyday
from condmis_interp.cues.text import is_word

WORDS = 24
"""Words of a topic at most."""
_LEAST = 4  # letters of a word that can be of a topic: shorter ones are mostly grammar
_VARIED = 0.1  # share of rows below which a word is one of many that a topic has in its place
_TOGETHER = 2.0  # how many times more often than by chance two words of one topic stand in the same row


@dataclass(frozen=True)
class Topic:
    """Words that go together.

    Attributes:
        words: The words, the most telling first.
        rows: Rows that have one of them.
        contrast: Of rows with one of them.

    Example:
        >>> Topic(("tea",), {0}, Contrast(1.0, 0.1, 3.0)).words
        ('tea',)
    """

    words: tuple[str, ...]
    rows: set[int]
    contrast: Contrast


def topics(documents: Sequence[Document], n: int, everyday: Everyday, bar: Bar, *, most: int = 2) -> list[Topic]:
    """Returns topics, the most telling first.

    A topic is grown from its most telling word. A word joins if it stands with the topic's first word more often than
    by chance, or, where the first word is nearly everywhere (nothing is more often with it than by chance), at all.

    Example:
        >>> docs = [Document.of(i, f"which sail and mast for my boat {i}") for i in range(40)]
        >>> sorted(topics(docs, 40, Everyday(["which coat for my walk"] * 300), Bar())[0].words)
        ['boat', 'mast', 'sail']
    """
    where: dict[str, set[int]] = defaultdict(set)
    for document in documents:
        for token, free in zip(document.tokens, document.free, strict=True):
            if (
                free
                and is_word(token.word)
                and len(token.word) >= _LEAST
                and token.word.isalpha()
                and token.word not in ENGLISH_STOP_WORDS
            ):
                where[token.word].add(document.row)
    everyday_rows = _rows_with(everyday, set(where))
    scored: Counter[str] = Counter()
    for word, rows in where.items():
        own = contrast(len(rows), n, len(everyday_rows[word]), everyday.n)
        if len(rows) >= max(4, 0.004 * n) and own.z >= bar.z and own.lift >= bar.lift:
            scored[word] = int(1e6 * own.bits)
    found: list[Topic] = []
    left = [w for w, _ in scored.most_common()]
    while left and len(found) < most:
        hub = left[0]
        members = [hub, *(w for w in left[1:] if _with(where[hub], where[w], n))]
        left = [w for w in left if w not in members]
        # half of the words name what all rows share, half what varies from row to row
        varied = [w for w in members[WORDS // 2 :] if len(where[w]) < _VARIED * n]
        words = tuple(dict.fromkeys([*members[: WORDS // 2], *varied, *members]))[:WORDS]
        rows = set().union(*(where[w] for w in words))
        seen = set().union(*(everyday_rows[w] for w in words))
        whole = contrast(len(rows), n, len(seen), everyday.n)
        # one word is a habit of the writer; three that go together are a topic
        if len(words) >= 3 and len(where[hub]) >= bar.needed(n) and bar.passes(whole, len(rows)):
            found.append(Topic(words, rows, whole))
    return found


def _with(hub: set[int], word: set[int], n: int) -> bool:
    both, chance = len(hub & word), len(hub) * len(word) / n
    return both >= 3 and (both >= _TOGETHER * chance or (len(hub) >= 0.5 * n and both >= 0.5 * len(word)))


def _rows_with(everyday: Everyday, words: set[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for i, key in enumerate(everyday.keys):
        for word in words & set(key.split()):
            found[word].add(i)
    return found
