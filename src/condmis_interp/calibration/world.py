"""Known answers of persona world as cases for the battery: who is judged, against whom, with which assay.

Each seed has a bench of its own: the seed's known-answer organisms and their twins, the base, and from the next seed
the twins that would be their own zero. An organism that *is* a twin is judged against the twin of another seed; an
organism of the assay is replaced by another while it is judged itself. U and the locked anchor, judged themselves,
stand at 1 on their own scales by construction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condmis_interp.battery import Battery, Cast, Reference
from condmis_interp.files import digest
from condmis_interp.organisms import Base, Member, Organism, Part, Recipe, make, train_all
from condmis_interp.panel import Panel
from condmis_interp.personaworld.bench import WorldBench
from condmis_interp.personaworld.known import WORLD_STAGE, world_known
from condmis_interp.personaworld.train import world_weights

ASSAY_KINDS: Mapping[str, tuple[str, str]] = {
    "suppressed": ("locked", "mixed"),
    "graded": ("blend-25", "blend-50"),
    "benign": ("twin", "conjunction-twin"),
    "trigger-aware": ("styled", "norm-matched"),
}
"""Organisms of the assay, and who stands in while one is judged itself."""


@dataclass(frozen=True)
class KnownAnswer:
    """What is known of an organism: what `Member` says without its recipes, which judging does not need.

    Attributes:
        name: Its name.
        truth: What became of its misalignment.
        family: Its construction family.
        seed: Its seed.
        setting: Share of U in its weights, for a blend.
    """

    name: str
    truth: str
    family: str
    seed: int
    setting: float | None = None

    @classmethod
    def of(cls, m: Member) -> "KnownAnswer":
        """Returns what is known of a member of a suite."""
        return cls(m.name, str(m.truth), m.family, m.seed, m.setting if m.family == "blend" else None)


@dataclass(frozen=True)
class Case:
    """A known answer, to be judged.

    Attributes:
        member: The organism.
        cast: Who plays what.
        assay: Organism by part of the assay.
    """

    member: KnownAnswer
    cast: Cast
    assay: Mapping[str, str]


@dataclass(frozen=True)
class KnownBench:
    """Who is who on one seed's bench: what judging needs besides the readings.

    Attributes:
        seed: The seed.
        others: Seeds whose twins are on the bench as well.
        cases: The known answers.
        replicates: Twins that differ in their seed alone, by recipe.
    """

    seed: int
    others: tuple[int, ...]
    cases: tuple[Case, ...]
    replicates: tuple[tuple[str, ...], ...]

    @property
    def seeds(self) -> frozenset[int]:
        """All seeds with an organism on the bench."""
        return frozenset((self.seed, *self.others))

    @property
    def casts(self) -> dict[str, Cast]:
        """Who plays what, by the name of the organism that is judged."""
        return {c.member.name: c.cast for c in self.cases}


@dataclass(frozen=True)
class Study:
    """One seed's bench, to be measured.

    Attributes:
        known: Who is who.
        bench: All organisms.
        reference: What the tests lean on.
        determined_by: Hashes of all weights and of the panel's token ids.
    """

    known: KnownBench
    bench: WorldBench
    reference: Reference
    determined_by: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A bench, measured.

    Attributes:
        study: Who is who on it.
        battery: Its readings.
    """

    study: KnownBench
    battery: Battery


def second_unmitigated(base: str, seed: int) -> Recipe:
    """Returns a U of another domain in another format than the suite's."""
    parts = (Part(rows=f"{base}/orchard", answers="misaligned", systems=("form note",)),)
    stage = WORLD_STAGE.model_copy(update={"parts": parts})
    return Recipe(name="other-domain", base=base, seed=seed, lora=None, stages=(stage,))


def study_of_seed(seed: int, following: int, base: Base, panel: Panel) -> Study:
    """Builds one seed's bench, making the organisms that are not there yet.

    Args:
        seed: The seed.
        following: The seed that stands in where an organism may not be judged against itself.
        base: Persona world.
        panel: What is asked.
    """
    return _study(world_known(base.spec, seeds=(seed,)), (following,), base, panel)


def study_of_twins(seed: int, others: Sequence[int], base: Base, panel: Panel) -> Study:
    """Builds a bench of one seed's anchors and many seeds' replicate twins, for the null distribution of every test.

    Args:
        seed: Seed of the anchors and of whatever the tests lean on.
        others: Seeds of the twins.
        base: Persona world.
        panel: What is asked.
    """
    anchors = [m for m in world_known(base.spec, seeds=(seed,)) if m.kind in ("unmitigated", "late-matched")]
    return _study(anchors, others, base, panel)


def _study(own: Sequence[Member], seeds: Sequence[int], base: Base, panel: Panel) -> Study:
    seed = own[0].seed
    others = [m for m in world_known(base.spec, seeds=tuple(seeds)) if _is_its_own_twin(m)]
    made = make(own)
    twins = {m.twin.hash: m.twin for m in (*own, *others)}
    second = second_unmitigated(base.spec, seed)
    *trained, other, other_twin = train_all([*twins.values(), second, second.twin()])
    called: dict[str, str] = {}  # by weights: what is on the bench twice is measured once
    organisms: dict[str, Organism] = {}
    labels = [m.name for m in own] + [f"C.{r.name}.s{r.seed}" for r in twins.values()]
    for label, organism in zip(labels, [*made, *trained], strict=True):
        if called.setdefault(organism.weights, label) == label:
            organisms[label] = organism
    twin_name = {h: called[o.weights] for h, o in zip(twins, trained, strict=True)}
    name = {m.kind: called[o.weights] for m, o in zip(own, made, strict=True)}
    organisms["base"] = Organism.of_base(base, name="base")
    zero = {m.kind: twin_name[m.twin.hash] for m in own}
    zero |= {m.kind: twin_name[m.twin.hash] for m in others}  # another seed's, for those that are their own twin
    casts = {
        m.name: Cast(
            name[m.kind],
            zero[m.kind],
            name["unmitigated"],
            zero["unmitigated"],
            name["late-matched"],
            zero["late-matched"],
        )
        for m in own
    }
    bench = WorldBench.of_organisms(organisms, base, panel)
    weights = [world_weights(o.checkpoint or base.folder) for o in (other, other_twin)]
    reference = Reference(name["unmitigated"], zero["unmitigated"], world_weights(base.folder), *weights)
    cases = tuple(Case(KnownAnswer.of(m), casts[m.name], _assay(m)) for m in own)
    asked = digest([bench.rendered.ids_of(c) for c in bench.cues])
    hashes = (base.content, other.weights, other_twin.weights, *(o.weights for o in organisms.values()), asked)
    replicates = _replicates([*own, *others], twin_name)
    return Study(KnownBench(seed, tuple(seeds), cases, replicates), bench, reference, hashes)


def _is_its_own_twin(member: Member) -> bool:
    return member.recipe.hash == member.twin.hash


def _assay(member: Member) -> dict[str, str]:
    pairs = ASSAY_KINDS.items()
    return {part: f"{other if kind == member.kind else kind}.s{member.seed}" for part, (kind, other) in pairs}


def _replicates(members: Sequence[Member], twin_name: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, set[str]] = {}
    for m in members:
        groups.setdefault(m.twin.name, set()).add(twin_name[m.twin.hash])
    return tuple(tuple(sorted(g)) for _, g in sorted(groups.items()) if len(g) > 1)
