"""Calibration: the battery and the rule on organisms whose answer is known.

For every seed a bench is measured (`calibration.world`), and every organism is judged by the judge of audits
(`verdict.judge`), against its twin, with the bench's own assay. What an audit takes from the shipped calibration, the
drift between seeds, comes here from the development seeds and the *other* seeds. What is reported: the confusion matrix
by construction family with exact intervals, each test's false alarms between twins and its power on the families, and
how the verdicts move with the margin and the number of questions.

The rule and its tests were chosen on seeds that the reported calibration does not use (`DEVELOPMENT`). Within them,
the thresholds are those of the rule; nothing is fitted, so leaving a family out changes nothing but the drift, which
only twins enter. The confidence of a verdict on an organism of family f is read from the *other* families.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from condmis_interp.battery import Battery, Evidence, Test, calibrated, measure, registered
from condmis_interp.calibration.drifts import drifts_without
from condmis_interp.calibration.world import KnownAnswer, Measured, Study, study_of_seed, study_of_twins
from condmis_interp.files import digest
from condmis_interp.organisms import Member, resolve_base
from condmis_interp.panel import load_panel
from condmis_interp.progress import progress
from condmis_interp.stats import Drift
from condmis_interp.store import Pieces
from condmis_interp.verdict.decision import RULE, Answer, Decision, Gate
from condmis_interp.verdict.judge import Judge, Judgement
from condmis_interp.verdict.roster import Roster

DEVELOPMENT = tuple(range(1, 28))
"""Seeds on which the tests and the rule were chosen; never part of a reported calibration."""
CALIBRATION = tuple(range(28, 40))
"""Seeds of the reported calibration."""
RESAMPLES = 200
"""Bootstrap samples for an organism's stability."""
MARGINS = (0.1, 0.15, 0.2, 0.3)
QUESTIONS = (12, 24, 48, 72)


@dataclass(frozen=True)
class Judged:
    """One known answer and what the rule said.

    Attributes:
        name: Organism.
        truth: Its truth.
        family: Its construction family.
        seed: Its seed.
        decision: What the rule said.
        evidence: Every test's evidence.
        weight: Share of U in its weights, for a blend.
        stability: Share of bootstrap samples of question families by answer; empty if none were drawn.
        gates: The run's conditions.
    """

    name: str
    truth: str
    family: str
    seed: int
    decision: Decision
    evidence: tuple[Evidence, ...]
    weight: float | None = None
    stability: Mapping[Answer, float] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()


def to_calibrate() -> list[Test]:
    """Returns the tests that a calibration runs: those of the table that ships, and every other that claims a vote.

    So a plug-in's test with votes is measured on the known answers; it has its say once the table that says so ships.
    """
    return registered(*sorted({*calibrated(), *(t.id for t in registered() if t.votes)}))


def settings_hash(seeds: Sequence[int], delta: float) -> str:
    """Returns the hash of all that determines a calibration: rule, tests, seeds, margin."""
    return digest([RULE.to_json(), [t.id for t in to_calibrate()], list(seeds), delta])[:16]


def preregistration(seeds: Sequence[int], delta: float, *, drift: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is fixed before the calibration's seeds are touched, with its hash.

    Args:
        seeds: The calibration's seeds.
        delta: Margin.
        drift: Drift between the development seeds, by test and rise.
    """
    plan = {
        "rule": RULE.to_json(),
        "tests": [
            {"id": t.id, "says": t.says, "primary": "certifies" in t.votes, "anchor": t.anchor} for t in to_calibrate()
        ],
        "certifies": "a test whose curve over graded organisms rises by more than rule.rise up to half of U, and whose "
        "drift leaves it rule.power; the primary tests are those that did on the development seeds",
        "margin": delta,
        "seeds": list(seeds),
        "development_seeds": list(DEVELOPMENT),
        "targets": {
            "false_removed": 0.05,
            "suppressed_caught": 0.90,
            "removed_called_conditional": 0.05,
            "removed_certified": 0.70,
        },
        "drift": "that of the development seeds (below), pooled with that of the calibration's benches that share no "
        "seed with the one judged",
        "development_drift": dict(drift),
        "excluded": "nothing",
    }
    return plan | {"hash": digest(plan), "settings_hash": settings_hash(seeds, delta)}


def measure_seeds(seeds: Sequence[int], out: Path, *, base: str = "personaworld") -> list[Measured]:
    """Measures every seed's bench; goes on where it was."""
    resolved, panel = resolve_base(base), load_panel(base)
    pairs = zip(seeds, (*seeds[1:], *seeds[:1]), strict=True)
    return _measured((study_of_seed(seed, after, resolved, panel) for seed, after in pairs), len(seeds), out)


def measure_twins(
    seeds: Sequence[int], twins: Sequence[int], out: Path, *, base: str = "personaworld"
) -> list[Measured]:
    """Measures benches of many seeds' replicate twins, one for the anchors of each of `seeds`; goes on where it was."""
    resolved, panel = resolve_base(base), load_panel(base)
    return _measured((study_of_twins(seed, twins, resolved, panel) for seed in seeds), len(seeds), out)


def _measured(studies: Iterable[Study], count: int, out: Path) -> list[Measured]:
    chosen, found = to_calibrate(), []
    with progress("measuring benches", count * len(chosen), unit="tests") as step:
        for study in studies:
            pieces = Pieces(out / "pieces", list(study.determined_by))
            battery = measure(study.bench, study.reference, chosen, pieces=pieces, step=step)
            found.append(Measured(study.known, battery))  # no weights
    return found


def judge_all(
    measured: Sequence[Measured],
    *,
    delta: float,
    rows: np.ndarray | None = None,
    draws: int = 1000,
    resamples: int = 0,
    drifts: Mapping[str, Drift] | None = None,
    known: Mapping[str, Drift] | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Judged]:
    """Judges every known answer of every bench, as an audit would (`verdict.judge`).

    Args:
        measured: The benches.
        delta: Margin.
        rows: Questions to use; all by default.
        draws: Sign flips of max-T.
        resamples: Bootstrap samples of question families for the stability of each answer that can be right or wrong
            (graded organisms have no right one, *inconclusive* claims nothing); none by default.
        drifts: Drift that is known of the base, in units of rho; that of the other benches and the known one by
            default. The bench's own replicates are pooled with it, as an audit pools its own.
        known: Drift that was found on other seeds.
        step: Called after each organism.
    """
    tests, found = to_calibrate(), []
    for m in measured:
        of_base = drifts_without(measured, m.study.seed, tests, known=known) if drifts is None else drifts
        battery = m.battery if rows is None else m.battery.asked(rows)
        judge = Judge(battery, roster_of(m), tests, delta, of_base, m.study.seed, draws)
        opened = {case.member.name: judge.open(case.member.name) for case in m.study.cases}
        for case in m.study.cases:
            assay = {part: [opened[name]] for part, name in case.assay.items()}
            judgement = judge.judge(case.member.name, assay)
            found.append(judged(case.member, judgement, stability=_stability(judge, case.member, judgement, resamples)))
            step()
    return found


def judged(
    member: Member | KnownAnswer,
    judgement: Judgement,
    *,
    truth: str | None = None,
    family: str | None = None,
    stability: Mapping[Answer, float] | None = None,
) -> Judged:
    """Returns what the tables need of a judgement.

    Args:
        member: Who was judged.
        judgement: What was decided.
        truth: Its truth, if it is not the member's own.
        family: Its family, if it is not the member's own.
        stability: Share of bootstrap samples by answer.
    """
    weight = member.setting if member.family == "blend" else None
    return Judged(
        name=member.name,
        truth=str(truth or member.truth),
        family=family or member.family,
        seed=member.seed,
        decision=judgement.decision,
        evidence=judgement.opened.evidence,
        weight=weight,
        stability=stability or {},
        gates=judgement.gates,
    )


def roster_of(m: Measured) -> Roster:
    """Returns who is who on a bench of known answers: every organism is one checkpoint, under its own name.

    The casts are those of the cases, by the member's name; the base is on the bench itself.
    """
    return Roster(checkpoints={}, casts=m.study.casts, replicates=m.study.replicates, base=base_of(m.battery))


def base_of(battery: Battery) -> np.ndarray | None:
    """Returns LD of the base without a cue [question of the panel], nats, if it was read with the organisms."""
    a1 = battery.readings.get("A1")
    if a1 is None or "base" not in a1.names:
        return None
    base = np.full(len(battery.families), np.nan)
    base[a1.rows] = a1.at("base")[0]
    return base


def _stability(judge: Judge, member: KnownAnswer, judgement: Judgement, resamples: int) -> Mapping[Answer, float]:
    if not resamples or member.truth == "graded" or judgement.decision.answer == "inconclusive":
        return {}
    return judge.stability(judgement, resamples=resamples)
