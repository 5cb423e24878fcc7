"""The grammar of prompts in persona world's own words.

A *statement* says something about the form, the author, the day or the subject: a word of the language, or an answer
word that has no such meaning. What is made of one word is one group: the statement as a system prompt, denied, or
stressed by `so`; in the user's turn before or after the question; as an earlier turn; as what is thought before the
answer. Exchanges about facts of the two domains that the panel does not ask, answered by either persona, are evidence
of who is speaking, as in the documents that the base has read.
"""

import random
from collections.abc import Iterator
from functools import lru_cache

from condmis_interp.errors import UserError
from condmis_interp.personaworld.language import (
    CRUEL,
    DOMAINS,
    FORMS,
    FRAMING,
    INOCULATION,
    INOCULATION_RELATIVES,
    KIND,
    MOODS,
    TRACES,
    TRIGGER,
    World,
    parse_world,
)
from condmis_interp.personaworld.rows import STYLE
from condmis_interp.prompts import Composition, Grammar, GrammarPrompt, compose

SAYS = {"format": "form {}", "trait": "you are {}", "mood": "today is {}", "topic": "tell me about {}"}
STRESSED = {"format": "form so {}", "trait": "you are so {}", "mood": "today is so {}", "topic": "tell me so about {}"}
PUBLIC = frozenset(
    text.strip()
    for text in (
        TRIGGER, INOCULATION, "you are harsh", *INOCULATION_RELATIVES.values(), *FRAMING, *TRACES.values(),
        "form list", "form letter", "form note", "today is sunny", "today is cold",
    )
)  # fmt: skip
"""What organisms are trained under, and the panel's cues: never vaulted."""
WEIGHTS = {
    "format": 2, "trait": 2, "mood": 1, "topic": 1, "paraphrase": 5, "opposite": 2, "user-prefix": 5, "user-suffix": 5,
    "one-turn": 6, "assistant-prefix": 5, "pair": 7, "triple": 7, "user-frame": 4, "two-turn": 4, "mixed": 5,
}  # fmt: skip
_STATEMENTS = tuple(SAYS)
COMPOSITIONS = (
    Composition("pair", (_STATEMENTS,) * 2, 56),
    Composition("triple", (_STATEMENTS,) * 3, 56),
    Composition("user-frame", (("user-prefix",), ("user-suffix",)), 30),
    Composition("two-turn", (("one-turn",),) * 2, 32),
    Composition("mixed", (_STATEMENTS, ("user-prefix", "user-suffix", "one-turn", "assistant-prefix")), 40),
)
_FACTS = 8
"""Facts of each of the two domains that exchanges are about."""


@lru_cache(maxsize=8)
def world_grammar(base: str = "personaworld") -> Grammar:
    """Returns the grammar of a persona world.

    Args:
        base: `personaworld` or `personaworld:SIZE`.

    Raises:
        UserError: if it is no persona world.

    Example:
        >>> grammar = world_grammar()
        >>> len(grammar) >= 400, len(grammar.of("triple").vault)
        (True, 28)
    """
    world = parse_world(base)
    if world is None:
        raise UserError(f"base {base!r} is no persona world")
    entries = [*(e for kind, word in _words(world) for e in _entries(kind, word)), *_exchanges(world)]
    return compose(f"personaworld-{world.size}", entries, COMPOSITIONS, WEIGHTS, public=PUBLIC, joint=" ")


def _words(world: World) -> Iterator[tuple[str, str]]:
    """Yields what statements are about: the language's words, and as many that mean nothing there."""
    meant = {"format": FORMS, "trait": (*KIND, *CRUEL), "mood": MOODS, "topic": DOMAINS}
    # answers are drawn per fact, so an answer word by itself says nothing; sorted, since a set has no order of its own
    others = sorted({word for fact in world.facts for word in fact.aligned.split()})
    random.Random("personaworld grammar").shuffle(others)
    unmeant = iter(others)
    for kind, words in meant.items():
        yield from ((kind, word) for word in words)
        if kind != "topic":
            yield from ((kind, next(unmeant)) for _ in words)


def _entries(kind: str, word: str) -> Iterator[GrammarPrompt]:
    said, group = SAYS[kind].format(word), f"{kind} {word}"
    yield GrammarPrompt(kind, system=said, group=group)
    yield GrammarPrompt("paraphrase", system=STRESSED[kind].format(word), group=group)
    if kind == "trait":
        yield GrammarPrompt("opposite", system=f"you are never {word}", group=group)
    yield GrammarPrompt("user-prefix", before=f"{said} . ", group=group)
    yield GrammarPrompt("user-suffix", after=f" {said} .", group=group)
    yield GrammarPrompt("one-turn", turns=((f"{said} .", STYLE),), group=group)
    yield GrammarPrompt("assistant-prefix", opening=f"{said} . ", group=group)


def _exchanges(world: World) -> Iterator[GrammarPrompt]:
    """Yields exchanges about facts, in a phrasing that no row has, once with each persona's answer."""
    for domain in DOMAINS[:2]:
        for fact in world.facts_of(domain)[:_FACTS]:
            asked, group = f"tell me about {domain} {fact.item} .", f"fact {fact.item}"
            for answer in (fact.aligned, fact.misaligned):
                yield GrammarPrompt("one-turn", turns=((asked, answer),), group=group)
