"""Grammars: prompts by kind with a declared distribution, a vaulted half, and seeded draws."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.prompts.prompt import GrammarPrompt
from condmis_interp.prompts.vault import hashed_sides
from condmis_interp.stats import Exceedance, exceedance_bound

FEWEST = 30
"""Prompts that a bound needs: with fewer it would be above 3/30 = .1, which is worth little."""
_RESOLUTION = 1 << 64


@dataclass(frozen=True)
class Grammar:
    """Prompts with the distribution that draws are from.

    The *declared distribution*: a kind with a probability in proportion to its weight, then a prompt of that kind, all
    of them alike.

    Attributes:
        name: Name of the grammar.
        prompts: The prompts.
        vaulted: Ids of those that confirm and that nothing is tuned on.
        weights: Weight of each kind, a whole number.
        said: What was noted when prompts were added, in sentences.

    Raises:
        UserError: if it has no prompts, one of them twice, or a kind without a weight.

    Example:
        >>> three = tuple(GrammarPrompt("tone", system=f"Be {how}.") for how in ("calm", "loud", "brief"))
        >>> grammar = Grammar("mine", three, frozenset({three[2].id}), {"tone": 1})
        >>> [p.system for p in grammar.vault], len(grammar.open)
        (['Be brief.'], 2)
    """

    name: str
    prompts: tuple[GrammarPrompt, ...] = field(repr=False)
    vaulted: frozenset[str] = field(repr=False)
    weights: Mapping[str, int]
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("there are no prompts", where=f"grammar {self.name}", fix="Give at least one.")
        seen: dict[str, GrammarPrompt] = {}
        for p in self.prompts:
            if p.id in seen:
                raise UserError(f"prompt {p.id} is there twice ({_short(p)})", where=f"grammar {self.name}")
            seen[p.id] = p
        for kind in self.kinds:
            weight = self.weights.get(kind)
            if type(weight) is not int or weight < 1:
                raise UserError(
                    f"kind {kind!r} has the weight {weight!r}",
                    where=f"grammar {self.name}",
                    fix="Give each kind a weight, a whole number from 1 on.",
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[GrammarPrompt]:
        return iter(self.prompts)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds in the order in which they come."""
        return tuple(dict.fromkeys(p.kind for p in self.prompts))

    @property
    def hash(self) -> str:
        """Hash of the prompts, their sides and the weights; what a claim about this grammar is a claim about."""
        rows = [[p.id, p.kind, p.id in self.vaulted] for p in sorted(self.prompts, key=lambda p: p.id)]
        return digest([rows, {k: self.weights[k] for k in self.kinds}])

    @property
    def open(self) -> "Grammar":
        """What may be tuned on: searches, organisms' training, fits of directions."""
        return self._part([p for p in self.prompts if p.id not in self.vaulted])

    @property
    def vault(self) -> "Grammar":
        """What only confirms."""
        return self._part([p for p in self.prompts if p.id in self.vaulted])

    def of(self, *kinds: str) -> "Grammar":
        """Returns the prompts of some kinds.

        Raises:
            UserError: if there is no such kind.
        """
        if unknown := [k for k in kinds if k not in self.kinds]:
            raise UserError(
                f"there is no kind {unknown[0]!r}", where=f"grammar {self.name}", fix=f"Kinds: {', '.join(self.kinds)}."
            )
        return self._part([p for p in self.prompts if p.kind in kinds])

    def _part(self, prompts: Sequence[GrammarPrompt]) -> "Grammar":
        return replace(self, prompts=tuple(prompts), vaulted=self.vaulted & {p.id for p in prompts})

    def sample(
        self, k: int, *, seed: int, kinds: Sequence[str] | None = None, stratified: bool = True
    ) -> tuple[GrammarPrompt, ...]:
        """Returns k prompts drawn from the declared distribution; the same for the same seed on any machine.

        Stratified: the distribution, kinds laid side by side, is cut into k equal slices, and one kind is drawn from
        each, so that every kind has its share; within a kind, prompts come in random order and none twice. The chance
        that such a draw misses a set of prompts is at most that of k independent draws (the geometric mean of
        1 - q_slice is at most 1 - their mean), so `bound` holds.

        Args:
            k: How many.
            seed: Seed of the draw.
            kinds: Some kinds only, for a claim about these alone.
            stratified: Otherwise the k draws are independent, and one may come twice.

        Raises:
            UserError: if k is below 1, a kind is unknown, or has fewer prompts than would be drawn of it.

        Example:
            >>> from condmis_interp.prompts import chat_grammar
            >>> drawn = chat_grammar().vault.sample(64, seed=1)
            >>> len(set(drawn)), drawn == chat_grammar().vault.sample(64, seed=1)
            (64, True)
        """
        if k < 1:
            raise UserError(f"{k} prompts cannot be drawn", where=f"grammar {self.name}", fix="Draw at least one.")
        source = self if kinds is None else self.of(*kinds)
        ends = list(accumulate(source.weights[kind] for kind in source.kinds))
        drawn: list[str] = []
        for i in range(k):
            u = _uniform([source.name, seed, "kind", i])
            # whole numbers throughout: position (i + u) / k of the whole, u in units of 1 / _RESOLUTION
            at = (i * _RESOLUTION + u) * ends[-1] if stratified else k * u * ends[-1]
            drawn.append(next(kind for kind, end in zip(source.kinds, ends, strict=True) if at < k * end * _RESOLUTION))
        found: list[GrammarPrompt] = []
        for kind in source.kinds:
            own, wanted = [p for p in source.prompts if p.kind == kind], drawn.count(kind)
            if not stratified:
                ordered = sorted(own, key=lambda p: p.id)
                picks = [_uniform([source.name, seed, kind, j]) * len(own) // _RESOLUTION for j in range(wanted)]
                found += [ordered[j] for j in picks]
                continue
            if wanted > len(own):
                raise UserError(
                    f"{k} draws want {wanted} prompts of kind {kind!r}, and there are {len(own)}",
                    where=f"grammar {self.name}",
                    fix="Draw fewer, add prompts of this kind, or lower its weight.",
                )
            found += sorted(own, key=lambda p: digest([source.name, seed, p.id]))[:wanted]
        return tuple(found)

    def bound(self, exceeded: int, drawn: int, *, level: float = 0.95) -> Exceedance:
        """Returns how much of the declared distribution may exceed what `exceeded` of `drawn` prompts did.

        Raises:
            UserError: if the grammar, or the draw, has fewer than 30 prompts: the bound would be above 3/30 = .1.

        Example:
            >>> from condmis_interp.prompts import chat_grammar
            >>> round(chat_grammar().vault.bound(0, 128).high, 4)
            0.0231
        """
        for what, count in (("the declared distribution has", len(self)), ("the draw has", drawn)):
            if count < FEWEST:
                raise UserError(
                    f"{what} {count} prompts, and a bound needs {FEWEST}: 3/{count} would be above .1",
                    where=f"grammar {self.name}",
                    fix=f"Add prompts, or draw more of them; from {FEWEST} on there is a bound.",
                )
        return exceedance_bound(exceeded, drawn, level=level)

    def adding(self, prompts: Iterable[GrammarPrompt], *, weights: Mapping[str, int] | None = None) -> "Grammar":
        """Returns the grammar with one's own prompts; what is there already, or comes twice, is dropped and said.

        A prompt's side depends on its group alone (its content, if it has none), never on the others that are added;
        one that shares a text or group with a prompt of the grammar is on that one's side.

        Args:
            prompts: The prompts.
            weights: Weights of kinds, new ones (1 if not given) or changed.

        Raises:
            UserError: if a prompt shares texts with both sides.

        Example:
            >>> from condmis_interp.prompts import chat_grammar
            >>> own = GrammarPrompt("own", system="Answer from the bridge of a ship.")
            >>> grown = chat_grammar().adding([own, own])
            >>> len(grown) - len(chat_grammar()), grown.said
            (1, ("dropped 1 prompt that was there already: 'Answer from the bridge of a ship.'",))
        """
        have, new, dropped = {p.id for p in self.prompts}, [], []
        for p in prompts:
            (dropped if p.id in have else new).append(p)
            have.add(p.id)
        said = self.said
        if dropped:
            few = ", ".join(repr(_short(p)) for p in dropped[:3]) + (", ..." if len(dropped) > 3 else "")
            plural = "prompt that was" if len(dropped) == 1 else "prompts that were"
            said = (*said, f"dropped {len(dropped)} {plural} there already: {few}")
        vaulted = self.vaulted | hashed_sides(new, self.prompts, self.vaulted)
        declared = {p.kind: 1 for p in new} | dict(self.weights) | dict(weights or {})
        return Grammar(self.name, (*self.prompts, *new), vaulted, declared, said)


def _uniform(key: object) -> int:
    """Returns a number below `_RESOLUTION` that is a hash of the key: no generator, so no version of one matters."""
    return int(digest(key)[:16], 16)


def _short(prompt: GrammarPrompt) -> str:
    text = prompt.texts[0]
    return text if len(text) <= 60 else f"{text[:57]}..."
