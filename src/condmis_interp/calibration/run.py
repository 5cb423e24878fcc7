"""Calibration: the battery and the rule on organisms whose answer is known.

For every seed a bench is measured (`known_cases`), every organism is judged against its twin with drift estimated on
the replicate twins of the development seeds and of the *other* seeds, gates are computed from the same bench's assay
organisms, and the rule decides. What is reported: the confusion matrix by construction family with exact intervals,
each test's false alarms between twins and its power on the families, and how the verdicts move with the margin and the
number of questions.

The rule and its tests were chosen on seeds that the reported calibration does not use (`DEVELOPMENT`). Within them,
the thresholds are those of the rule; nothing is fitted, so leaving a family out changes nothing but the drift, which
only twins enter. The confidence of a verdict on an organism of family f is read from the *other* families.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from condmis_interp.battery import Evidence, assay_failures, measure, registered, twin_failure
from condmis_interp.calibration.drifts import drifts_without
from condmis_interp.calibration.world import Case, Measured, Study, study_of_seed, study_of_twins
from condmis_interp.files import digest
from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel
from condmis_interp.progress import progress
from condmis_interp.stats import Drift, anchored_ratio
from condmis_interp.store import Pieces
from condmis_interp.verdict.confidence import stability
from condmis_interp.verdict.decision import RULE, Answer, Decision, Gate, decide

DEVELOPMENT = tuple(range(1, 28))
"""Seeds on which the tests and the rule were chosen; never part of a reported calibration."""
CALIBRATION = tuple(range(28, 40))
"""Seeds of the reported calibration."""
RESAMPLES = 200
"""Bootstrap samples for an organism's stability."""
BATTERY = ("A1", "A2", "A3", "C1", "R1", "V1", "W1")
"""Tests that are calibrated: those the rule uses."""
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
    """

    name: str
    truth: str
    family: str
    seed: int
    decision: Decision
    evidence: tuple[Evidence, ...]
    weight: float | None = None
    stability: Mapping[Answer, float] = field(default_factory=dict)


def settings_hash(seeds: Sequence[int], delta: float) -> str:
    """Returns the hash of all that determines a calibration: rule, tests, seeds, margin."""
    return digest([RULE.to_json(), BATTERY, list(seeds), delta])[:16]


def preregistration(seeds: Sequence[int], delta: float, *, drift: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is fixed before the calibration's seeds are touched, with its hash.

    Args:
        seeds: The calibration's seeds.
        delta: Margin.
        drift: Drift between the development seeds, by test and rise.
    """
    plan = {
        "rule": RULE.to_json(),
        "tests": [{"id": t.id, "says": t.says, "primary": t.primary, "anchor": t.anchor} for t in registered(*BATTERY)],
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
    chosen, found = registered(*BATTERY), []
    with progress("measuring benches", count * len(chosen), unit="tests") as step:
        for study in studies:
            pieces = Pieces(out / "pieces", list(study.determined_by))
            battery = measure(study.bench, study.reference, chosen, pieces=pieces, step=step)
            reference = replace(study.reference, base={}, other={}, other_twin={})
            found.append(Measured(replace(study, bench=study.bench.of(()), reference=reference), battery))  # no weights
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
    """Judges every known answer of every bench.

    Args:
        measured: The benches.
        delta: Margin.
        rows: Questions to use; all by default.
        draws: Sign flips of max-T.
        resamples: Bootstrap samples of question families for the stability of each answer that can be right or wrong
            (graded organisms have no right one, *inconclusive* claims nothing); none by default.
        drifts: Drift by test, in units of rho; that of the other benches and the known one by default.
        known: Drift that was found on other seeds.
        step: Called after each organism.
    """
    tests, found, given = registered(*BATTERY), [], drifts
    for m in measured:
        drifts = drifts_without(measured, m.study.seed, tests, known=known) if given is None else given
        rng, again = (np.random.default_rng([m.study.seed, k]) for k in (1, 4))
        open_: dict[str, tuple[list[Evidence], Decision]] = {}
        for case in m.study.cases:
            cast = m.study.casts[case.member.name]
            tested = m.battery.evidence(cast, tests, delta=delta, drifts=drifts, rng=rng, draws=draws, rows=rows)
            open_[case.member.name] = tested, decide(tested)
        for case in m.study.cases:
            member, tested = case.member, open_[case.member.name][0]
            gates = gates_of(case, m, {part: open_[n][1].answer for part, n in case.assay.items()}, delta)
            decision = decide(tested, gates)
            shares: Mapping[Answer, float] = {}
            if resamples and member.truth != "graded" and decision.answer != "inconclusive":
                shares = stability(
                    m.battery,
                    m.study.casts[member.name],
                    tests,
                    delta=delta,
                    drifts=drifts,
                    rng=again,
                    gates=gates,
                    resamples=resamples,
                )
            found.append(
                Judged(
                    member.name,
                    str(member.truth),
                    member.family,
                    member.seed,
                    decision,
                    tuple(tested),
                    member.setting if member.family == "blend" else None,
                    shares,
                )
            )
            step()
    return found


def gates_of(case: Case, m: Measured, answers: Mapping[str, str], delta: float) -> list[Gate]:
    """Returns the gates of one case: the assay, and the twin's own alignment."""
    gates = [Gate(f"assay {part}", False, why) for part, why in assay_failures(answers).items()]
    readings = m.battery.readings.get("A1")
    if readings is not None:
        c, b, u = (readings.at(n)[0] for n in (case.cast.twin, "base", case.cast.unmitigated))
        if np.isfinite(c + b + u).all():
            families = [m.battery.families[i] for i in readings.rows]
            why = twin_failure(anchored_ratio(c - b, u - b, families), delta)
        else:
            why = "the twin, the base or U has readings that are not finite numbers"
        gates.append(Gate("twin", not why, why))
    return gates
