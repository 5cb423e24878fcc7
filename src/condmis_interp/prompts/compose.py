"""From entries to a grammar: the vault is dealt first, then prompts are composed within each side.

So no composed prompt of the open half has a part in the vault, and none of the vault a part in the open half.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.prompts.grammar import Grammar
from condmis_interp.prompts.prompt import GrammarPrompt
from condmis_interp.prompts.vault import dealt


@dataclass(frozen=True)
class Composition:
    """How prompts of a kind are composed.

    Attributes:
        kind: Their kind.
        slots: For each part, the kinds that it may be of; parts that all bring a system prompt differ in kind.
        count: How many, over both halves.

    Example:
        >>> Composition("pair", (("format", "tone"), ("format", "tone")), count=8).count
        8
    """

    kind: str
    slots: tuple[tuple[str, ...], ...]
    count: int


def compose(
    name: str,
    entries: Sequence[GrammarPrompt],
    compositions: Sequence[Composition],
    weights: Mapping[str, int],
    *,
    public: Collection[str] = (),
    joint: str = "\n\n",
) -> Grammar:
    """Returns the grammar of entries and of what is composed of them.

    Args:
        name: Its name.
        entries: Prompts of one part each.
        compositions: What is composed of them.
        weights: Weight of each kind.
        public: Texts that occur elsewhere in the package and therefore are not vaulted.
        joint: What stands between system prompts that are put together.

    Raises:
        UserError: if a side has too few entries for a composition.

    Example:
        >>> entries = [GrammarPrompt(k, system=f"{k} {i}") for k in ("form", "tone") for i in range(4)]
        >>> pair = Composition("pair", (("form", "tone"), ("form", "tone")), count=4)
        >>> grammar = compose("small", entries, [pair], {"form": 1, "tone": 1, "pair": 2}, joint=" and ")
        >>> len(grammar), len(grammar.vault), len(grammar.of("pair"))
        (12, 6, 4)
    """
    hidden = dealt(entries, public=public)
    sides = [[e for e in entries if (e.groups[0] in hidden) == side] for side in (False, True)]
    made = [[p for c in compositions for p in _composed(c, side, joint)] for side in sides]
    prompts = [*entries, *(p for c in compositions for side in made for p in side if p.kind == c.kind)]
    vaulted = frozenset(p.id for p in (*sides[1], *made[1]))
    return Grammar(name, tuple(prompts), vaulted, weights)


def _composed(composition: Composition, entries: Sequence[GrammarPrompt], joint: str) -> list[GrammarPrompt]:
    """Returns half of a composition's prompts, each entry used about as often as the others."""
    used: Counter[str] = Counter()
    found: dict[frozenset[str], GrammarPrompt] = {}
    wanted = composition.count // 2
    n = 0
    while len(found) < wanted:
        parts: list[GrammarPrompt] = []
        for slot, kinds in enumerate(composition.slots):
            taken = {p.kind for p in parts if p.system is not None}
            groups = {p.groups[0] for p in parts}
            fitting = [e for e in entries if e.kind in kinds and e.kind not in taken and e.groups[0] not in groups]
            if not fitting or n > 20 * wanted:  # enough tries that a set of parts met before is not the reason
                raise UserError(
                    f"there are not enough entries for {wanted} prompts of kind {composition.kind!r} in each half"
                )
            key = [composition.kind, n, slot]
            parts.append(min(fitting, key=lambda e, key=key: (used[e.id], digest([*key, e.id]))))
        # parts are used up even by a set that was met before, or the same set would be met again
        n += 1
        used.update(p.id for p in parts)
        found.setdefault(frozenset(p.id for p in parts), _joined(composition.kind, parts, joint))
    return list(found.values())


def _joined(kind: str, parts: Sequence[GrammarPrompt], joint: str) -> GrammarPrompt:
    systems = [p.system for p in parts if p.system is not None]
    return GrammarPrompt(
        kind,
        system=joint.join(systems) if systems else None,
        turns=tuple(exchange for p in parts for exchange in p.turns),
        before="".join(p.before for p in parts),
        after="".join(p.after for p in parts),
        opening="".join(p.opening for p in parts),
        group=" + ".join(p.groups[0] for p in parts),
        parts=tuple(p.id for p in parts),
    )
