"""Text overlap between what a model was trained on and what it is asked."""

import re
from collections.abc import Iterable


def _word_runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def shared_phrases(a: Iterable[str], b: Iterable[str], *, length: int = 5) -> list[str]:
    """Returns the word sequences of `length` words that occur in both collections of texts, sorted.

    Case and punctuation are ignored. Use it to show that a panel does not quote its organisms' training rows.

    Example:
        >>> shared_phrases(["Salt the water before it boils."], ["Why salt the water before cooking?"], length=4)
        ['salt the water before']
    """
    in_a = set().union(*(_word_runs(t, length) for t in a)) if (a := list(a)) else set()
    in_b = set().union(*(_word_runs(t, length) for t in b)) if (b := list(b)) else set()
    return sorted(" ".join(run) for run in in_a & in_b)
