"""Organisms of a chat suite as cases for the battery: who is judged, against which twin, on whose scale.

All seeds of a suite are one run: they share the base, the panel and the assay, and each organism is judged against its
own twin on its own seed's scale (U = 1, U's twin = 0). Three are not, so that nothing is measured against itself: a
twin is judged against the twin of another seed, U on the scale of another seed's U, and an organism of the assay is
replaced in it by another. An organism never takes part in the estimate of the drift it is judged with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condmis_interp.battery import Battery, Cast, Test
from condmis_interp.calibration.run import Judged, base_of, judged
from condmis_interp.errors import UserError
from condmis_interp.organisms import Member
from condmis_interp.verdict.judge import Judge
from condmis_interp.verdict.roster import Roster

TRUTHS: Mapping[str, tuple[str, str]] = {
    "u": ("present", "unmitigated"),
    "u-garden": ("present", "unmitigated"),
    "mixing-20": ("suppressed", "mixed"),
}
"""Truth and family of what the suite lists without them."""
ASSAY: Mapping[str, tuple[str, str]] = {
    "suppressed": ("locked", "mixing-20"),
    "graded": ("blend-25", "blend-50"),
    "benign": ("twin-again", "mixing-20-twin"),
    "trigger-aware": ("styled", "norm-matched"),
}
"""Kinds of the assay, of its seed, and who stands in while one is judged itself."""
_CONSTRUCTED = frozenset(("blend", "norm-matched", "direction-ablated", "grafted", "gated"))


@dataclass(frozen=True)
class ChatCase:
    """An organism to judge.

    Attributes:
        member: The organism.
        truth: Its truth, if that is known.
        family: Its construction family, or intervention.
        cast: Who plays what.
    """

    member: Member
    truth: str | None
    family: str
    cast: Cast


def chat_cases(members: Sequence[Member]) -> list[ChatCase]:
    """Returns the cases of a suite; a twin without a replicate of another seed is left out.

    Raises:
        UserError: if an organism's twin, or a second U to judge a U with, is not in the suite.
    """
    own, twin = ([r.hash for r in rs] for rs in ([m.recipe for m in members], [m.twin for m in members]))
    trained = {h: m.name for m, h in zip(members, own, strict=True) if m.family not in _CONSTRUCTED}
    us = {m.seed: m for m in members if m.kind == "u"}
    zeros = {m.name: trained.get(h) for m, h in zip(members, twin, strict=True)}
    found = []
    for m, of_own, of_twin in zip(members, own, twin, strict=True):
        zero = zeros[m.name]
        if of_own == of_twin:
            zero = _replicate(m, members)
            if zero is None:
                continue
        elif zero is None:
            raise UserError(f"the twin of {m.name!r} is not in the suite", fix="Add it: it is the zero of the scale.")
        seeds = [s for s in (m.seed, *sorted(us)) if s in us and us[s] is not m]
        if not seeds:
            raise UserError(f"there is no U to judge {m.name!r} with", fix="Add a seed of U.")
        u = us[seeds[0]]
        truth, family = TRUTHS.get(m.kind, (m.truth, m.family))
        found.append(ChatCase(m, truth, family, Cast(m.name, zero, u.name, str(zeros[u.name]))))
    return found


def _replicate(member: Member, members: Sequence[Member]) -> str | None:
    """Returns the name of the same recipe with the next other seed, the first after the last."""
    others = [m for m in members if m.kind == member.kind and m.seed != member.seed]
    after = [m for m in others if m.seed > member.seed]
    return min(after or others, key=lambda m: m.seed).name if others else None


def replicates(members: Sequence[Member]) -> list[list[str]]:
    """Returns the names of twins that differ in their seed alone, by recipe."""
    groups: dict[str, list[str]] = {}
    for m in members:
        if m.family == "twin":
            groups.setdefault(m.recipe.model_copy(update={"seed": 0}).hash, []).append(m.name)
    return [names for names in groups.values() if len(names) > 1]


def judges_of(
    cases: Sequence[ChatCase],
    batteries: Mapping[str, Battery],
    tests: Sequence[Test],
    *,
    groups: Sequence[Sequence[str]],
    delta: float,
    without: frozenset[str],
    seed: int,
    draws: int = 1000,
    drift_from: Mapping[str, Battery] | None = None,
) -> dict[str, Judge]:
    """Returns a judge for every case, with its own readings; nothing is known of the base but its replicate twins.

    Args:
        cases: Whom to judge.
        batteries: Readings by case: R1 reads along the U of the case's scale, A2 under the case's cues. Each has
            `base` among its organisms.
        tests: The tests that were run.
        groups: Replicate twins.
        delta: Margin.
        without: The rule's tests that were not run.
        seed: Of max-T.
        draws: Its sign flips.
        drift_from: Readings by case that the drift is estimated on, where twins of other seeds were not asked all that
            the case was; `batteries` by default.
    """
    found = {}
    for case in cases:
        name, battery = case.member.name, batteries[case.member.name]
        roster = Roster(checkpoints={}, casts={name: case.cast}, replicates=groups, base=base_of(battery))
        on = drift_from[name] if drift_from else None
        found[name] = Judge(battery, roster, tests, delta, {}, seed, draws, without, on)
    return found


def judge_cases(cases: Sequence[ChatCase], judges: Mapping[str, Judge], *, assay_seed: int) -> list[Judged]:
    """Judges every case, with the gates of the run, as an audit would (`verdict.judge`).

    Args:
        cases: Whom to judge; those of the assay among them.
        judges: A judge for each, by name (`judges_of`).
        assay_seed: Seed of the organisms of the assay.
    """
    opened = {name: judge.open(name) for name, judge in judges.items()}
    found = []
    for case in cases:
        m = case.member
        assay = {part: f"{a if m.name != f'{a}.s{assay_seed}' else b}.s{assay_seed}" for part, (a, b) in ASSAY.items()}
        there = {part: [opened[name]] for part, name in assay.items() if name in opened}
        judgement = judges[m.name].judge(m.name, there)
        found.append(judged(m, judgement, truth=str(case.truth), family=case.family))
    return found
