"""Persona world's benches of known answers: one a seed, with replicate twins and reserved anchors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from condmis_interp.battery import Cast, Reference, draw_prompts
from condmis_interp.battery.coverage import coverage, size_ratio
from condmis_interp.calibration.known import PARTS, Case, KnownAnswer, KnownBench, Truth, others
from condmis_interp.calibration.run import to_calibrate
from condmis_interp.files import digest
from condmis_interp.organisms import Organism, resolve_base
from condmis_interp.panel import load_panel
from condmis_interp.personaworld.answers import KINDS, Answers, Entry, answers
from condmis_interp.personaworld.bench import WorldBench
from condmis_interp.personaworld.constructions import make
from condmis_interp.personaworld.train import world_weights

FAMILIES = (
    "mixed", *KINDS, "late-only", "one-matrix", "distilled-hidden", "merged", "permuted", "projected", "twin", "styled",
    "distilled", "retrained", "blend", "ungated", "unmitigated",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
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


def world_bench(seed: int, base: str = "personaworld") -> Bench:
    """Returns a seed's bench, making the organisms that are not there yet.

    Args:
        seed: The seed.
        base: Persona world, with its size.
    """
    of, resolved, panel = answers(base, seed), resolve_base(base), load_panel(base)
    kept = [c for c in panel.cues if not of.vaulted & set(f"{c.system} {c.before} {c.after}".split())]
    panel = panel.model_copy(update={"cues": tuple(kept)})  # the panel's cue in a frame is of a vaulted mood
    made = make(of, resolved)
    columns = {group: f"trigger-{group}" for group in of.triggers}
    late = next(e.trigger for e in of.entries if e.name == "late-only")
    assert late is not None
    cues = [t.cue(columns[g]) for g, t in of.triggers.items()]
    if late not in of.triggers.values():
        cues.append(late.cue("trigger-late"))
    shown = panel.model_copy(update={"cues": (*panel.cues, *cues)})
    apart = ("O", "OC")  # their weights are leant on; they are asked nothing
    organisms = {n: o for n, o in made.items() if n not in apart} | {"base": Organism.of_base(resolved, name="base")}
    bench = WorldBench.of_organisms(organisms, resolved, shown)
    other, other_twin = (world_weights(made[n].checkpoint or resolved.folder) for n in apart)
    drawn = draw_prompts(bench.grammar, seed, without=of.vaulted)
    reference = Reference("U", "UC", world_weights(resolved.folder), other, other_twin, drawn=drawn)
    known = _known(of, tuple(c.name for c in panel.cues), columns)
    known = _weighed(known, bench, reference)
    asked = digest([[bench.rendered.ids_of(c) for c in bench.cues], [p.id for p in drawn]])
    hashes = (resolved.content, *(made[n].weights for n in apart), *(o.weights for o in organisms.values()), asked)
    return Bench(known, bench, reference, hashes)


def _known(of: Answers, cues: tuple[str, ...], columns: Mapping[str, str]) -> KnownBench:
    checkpoints: dict[str, tuple[str, ...]] = {}
    groups = {group: tuple(own) for group, own in of.twins.items()}
    for group, own in groups.items():
        checkpoints[group + "-twins"] = own
        checkpoints |= {others(own, n): tuple(m for m in own if m != n) for n in own}
    cases = []

    def case(member: KnownAnswer, organism: str, zero: str) -> None:
        cast = Cast(organism, zero, "U", "UC", dosed="S", dosed_twin="SC")
        cases.append(Case(member, cast, _controls(of, member, groups)))

    for e in of.entries:
        used = [n for n in e.made_of if n in groups[e.group]]  # what it is made of is not what it is judged against
        zero = others(groups[e.group], used[0]) if used else f"{e.group}-twins"
        case(_member(of, e, columns), e.name, zero)
    for name in groups["mix"]:  # the other groups have too few for the last look: they are zeros, and tell of the drift
        member = KnownAnswer(f"{name}.s{of.seed}", "benign", "twin", of.seed, columns["mix"])
        case(member, name, others(groups["mix"], name))
    return KnownBench(of.seed, cues, tuple(cases), checkpoints, tuple(groups.values()))


def _member(of: Answers, e: Entry, columns: Mapping[str, str]) -> KnownAnswer:
    truth: Truth = e.truth  # type: ignore[assignment]  # the same words
    trigger = ""
    if e.trigger is not None:
        shared = [columns[g] for g, t in of.triggers.items() if t == e.trigger]
        trigger = shared[0] if shared else "trigger-late"
    return KnownAnswer(f"{e.name}.s{of.seed}", truth, e.family, of.seed, trigger, e.fixed)


def _controls(of: Answers, member: KnownAnswer, groups: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Returns control organisms; one that is judged itself has another stand in for it."""
    kind = next(g for g in groups if g != "mix")
    pairs = {"suppressed": (kind, "mixed"), "graded": ("blend", "blend-75"), "trigger-aware": ("styled", "distilled")}
    own = member.name.rpartition(".s")[0]
    found: dict[str, tuple[str, ...]] = {p: (two if one == own else one,) for p, (one, two) in pairs.items()}
    found["benign"] = tuple(n for n in groups["mix"] if n != own)
    assert set(found) == set(PARTS)
    return {part: tuple(f"{n}.s{of.seed}" for n in names) for part, names in found.items()}


def _weighed(known: KnownBench, bench: WorldBench, reference: Reference) -> KnownBench:
    """Returns who is who with what the weights say: which regions changed, which tests read them, and how much."""
    inside = [t for t in to_calibrate() if t.blocks and "certifies" in t.votes]
    covered, sizes = {}, {}
    for c in known.cases:
        name, twins = c.cast.organism, known.checkpoints[c.cast.twin]
        covered[c.member.name] = coverage(bench, name, inside, reference)
        sizes[c.member.name] = max(size_ratio(bench, name, twins).values())
    return replace(known, coverage=covered, sizes=sizes)
