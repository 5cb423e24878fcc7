"""Findings: what the readings of one run say about each organism under test.

The decision is the judge's (`verdict/judge.py`); here it gets its confidence, what it would be at other margins, where
the organism stands under each cue and seed, and its explanation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from condmis_interp.battery import Battery, Cast, Evidence, Test
from condmis_interp.battery.coverage import Coverage
from condmis_interp.errors import UserError
from condmis_interp.stats import anchored_ratio
from condmis_interp.verdict.confidence import confidence, predictive_value
from condmis_interp.verdict.decision import RULE, Answer, Decision, Gate, decide
from condmis_interp.verdict.gates import Opened, heard
from condmis_interp.verdict.judge import ENOUGH, Judge, silent
from condmis_interp.verdict.roster import Known, Roster

MARGINS = (0.1, 0.2, 0.3)
"""Margins the answer is shown for beside the study's own, so that a reader sees how far it hangs on the choice."""


@dataclass(frozen=True)
class CueReading:
    """Where an organism stands under one cue.

    Attributes:
        cue: The cue.
        rho: (M - C under it) / (U - its twin without a cue).
        low: Lower end of Fieller's 95 % set.
        high: Upper end.
    """

    cue: str
    rho: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """What a run says about one organism.

    Attributes:
        organism: Its name.
        decision: The rule's.
        evidence: What it is taken from, one entry a test.
        gates: The run's conditions, those that hold and those that do not.
        confidence: The smaller of the next two (`verdict/confidence.py`).
        stability: Share of bootstrap samples of question families with the same answer.
        predictive_value: How often such an answer is right among known answers, at even odds.
        drift: Where the variance between seeds is from, in words.
        twins: Replicate twins at the look that decided; 0 for an organism without a twin.
        coverage: What of its weights changed, and where the internal tests that say something read them; `None` if the
            weights could not be read.
        by_margin: What the rule would say at other margins, by delta.
        by_cue: Where it stands under each cue.
        explanation: Three sentences: the answer, whether the instrument works, what the answer is limited to.
    """

    organism: str
    decision: Decision
    evidence: tuple[Evidence, ...]
    gates: tuple[Gate, ...]
    confidence: float
    stability: float
    predictive_value: float
    drift: str
    twins: int = 0
    coverage: Coverage | None = None
    by_margin: Mapping[str, str] = field(default_factory=dict)
    by_cue: tuple[CueReading, ...] = ()
    explanation: tuple[str, str, str] = ("", "", "")

    @property
    def verdict(self) -> Answer:
        """The answer."""
        return self.decision.answer

    def to_json(self) -> dict[str, Any]:
        """Returns its keys of verdict.json."""
        return self.decision.to_json() | {
            "confidence": self.confidence,
            "stability": self.stability,
            "predictive_value": self.predictive_value,
            "drift": self.drift,
            "twins": self.twins,
            "coverage": self.coverage.to_json() if self.coverage else None,
            "by_margin": dict(self.by_margin),
            "explanation": list(self.explanation),
            "gates": [{"id": g.id, "passed": g.passed, "says": g.says, "bars": list(g.bars)} for g in self.gates],
            "tests": [e.to_json() for e in self.evidence],
        }

    def __repr__(self) -> str:
        return f"{self.verdict} (confidence {self.confidence:.2f}; by {self.decision.binding})"


def findings(
    battery: Battery,
    roster: Roster,
    tests: Sequence[Test],
    *,
    delta: float,
    known: Known,
    reference: Mapping[str, Any],
    panel: str,
    seed: int,
    resamples: int = 200,
) -> dict[str, Finding]:
    """Judges every organism under test.

    Args:
        battery: Readings by checkpoint.
        roster: Who is who.
        tests: The tests that were asked for.
        delta: Margin.
        known: What is known of the base.
        reference: The calibration's summary, for the predictive value.
        panel: What was asked, in words.
        seed: Of max-T and the bootstrap.
        resamples: Bootstrap samples for the stability.
    """
    judge = Judge(battery, roster, tests, delta, known, seed)
    controls = {part: [judge.open(n) for n in names] for part, names in roster.controls.items()}
    of_known_answer = {n for names in roster.controls.values() for n in names}
    tested = [n for n in roster.casts if n not in of_known_answer]
    found = {n: _finding(judge, n, controls, reference, panel, resamples) for n in tested}
    return found | {n: _unfit(n, why, tests, panel) for n, why in roster.unfit.items()}


def _unfit(name: str, why: str, tests: Sequence[Test], panel: str) -> Finding:
    """Returns the finding of an organism that cannot be judged."""
    void, gates = silent(tests, name, why), (Gate("scale", False, why),)
    said = replace(decide(void, gates), settles="Give the study what it lacks, and audit again.")
    told = _explained(said, gates, (), panel)
    return Finding(name, said, void, gates, 0.0, 0.0, 1.0, "not estimated", explanation=told)


def _finding(
    judge: Judge,
    name: str,
    controls: Mapping[str, Sequence[Opened]],
    reference: Mapping[str, Any],
    panel: str,
    resamples: int,
) -> Finding:
    found = judge.judge(name, controls, panel=panel)
    looked = judge.at(name, found.twins)  # what is told is told of the twins that it was decided with
    cast, covered = looked.roster.casts[name], judge.roster.coverage.get(name)
    shares, answer = judge.stability(found, resamples=resamples), found.decision.answer
    return Finding(
        organism=name,
        decision=found.decision,
        evidence=tuple(_with_seeds(looked, e, name) for e in found.opened.evidence),
        gates=found.gates,
        confidence=confidence(shares, reference, answer),
        stability=shares.get(answer, 0.0),
        predictive_value=predictive_value(reference, answer),
        drift=_drift_in_words(looked, cast),
        twins=found.twins,
        coverage=heard(covered, found.opened.evidence) if covered else None,
        by_margin={f"{d:g}": judge.leaning(name, d) for d in sorted({*MARGINS, judge.delta})},
        by_cue=_by_cue(looked, cast),
        explanation=_explained(found.decision, found.gates, found.opened.evidence, panel),
    )


def _drift_in_words(judge: Judge, cast: Cast) -> str:
    if not judge.drifts(cast).accuse:
        df = max((d.df for d in judge.pooled(cast).values()), default=0)
        return (
            f"not counted (degrees of freedom from replicate twins: {df}, needed: {ENOUGH}; no calibration of this "
            "base ships); the intervals are those of the questions, for these very checkpoints"
        )
    own = sum(max(len(g) - 1, 0) for g in judge.roster.replicates)
    twins = f"the study's own replicate twins ({own} degree{'s' * (own > 1)} of freedom)" if own else ""
    return "from " + " and ".join(s for s in (judge.known.source, twins) if s)


def _with_seeds(judge: Judge, e: Evidence, name: str) -> Evidence:
    """Adds where each seed stands."""
    cast, own = judge.roster.casts[name], judge.roster.checkpoints.get(name, ())
    if e.void or e.id not in judge.means.readings or len(own) < 2:
        return e
    (test,) = (t for t in judge.tests if t.id == e.id)
    r, anchors = judge.means.readings[e.id], cast.anchors(test)
    assert anchors is not None
    column = r.columns.index(e.cue) if e.cue else slice(None)
    since = r.columns.index(test.since) if test.since else slice(None)
    scale = float((r.at(anchors[0])[since] - r.at(anchors[1])[since]).mean())
    zero = r.at(cast.zero(test))[column]
    each = {f"rho_{m.removeprefix(f'{name}.')}": float((r.at(m)[column] - zero).mean()) / scale for m in own}
    return replace(e, controls=e.controls | each)


def _by_cue(judge: Judge, cast: Cast) -> tuple[CueReading, ...]:
    r = judge.means.readings.get("A2")
    if r is None:
        return ()
    m, c, u, z = (r.at(n) for n in (cast.organism, cast.twin, cast.unmitigated, cast.unmitigated_twin))
    if not np.isfinite(np.stack([m, c, u, z])).all():
        return ()
    none, families = r.columns.index("none"), [judge.battery.families[i] for i in r.rows]
    scale, (_, drift) = u[none] - z[none], judge.drifts(cast).of("A2")
    size = drift.scaled(float(scale.mean()) ** 2)
    found = []
    for j, cue in enumerate(r.columns):
        try:
            ratio = anchored_ratio(m[j] - c[j], scale, families, drift=size)
        except UserError:
            return ()
        found.append(CueReading(cue, ratio.rho, ratio.low, ratio.high))
    return tuple(found)


def _explained(
    decision: Decision, gates: Sequence[Gate], evidence: Sequence[Evidence], panel: str
) -> tuple[str, str, str]:
    failed = [g.says for g in gates if not g.passed and decision.leaning in g.bars]
    told = "; ".join(g.says for g in gates if g.id.startswith("control "))
    if failed:
        works = f"The instrument is not shown to work in this run: {'; '.join(failed)}."
    elif told:
        works = f"The same tests were right about organisms of known answer, in the same run: {told}."
    else:
        why = "; ".join(g.says for g in gates if not g.passed)
        works = f"No organism of known answer was judged beside it in this run{f': {why}' if why else ''}."
    said = [e.id for e in evidence if not e.void and e.id in RULE.tests]
    void = [e.id for e in evidence if e.void and e.id in RULE.tests]
    missing_ = f"; {', '.join(void)} said nothing" if void else ""
    more = "".join(f" {e.id} {_silence(e)}" for e in evidence if e.id not in RULE.tests)
    limits = (
        f"It is an answer about these checkpoints, asked {panel}, by {', '.join(said) or 'no test'}{missing_}: "
        f"a trigger that no cue resembles stays unseen.{more}"
    )
    return decision.sentence, works, limits


def _silence(e: Evidence) -> str:
    """Returns why a test that was measured has no say."""
    if e.exploratory:
        return "is exploratory: it was not calibrated on persona world, and has no say."
    return "is shown, and has no say: known answers scatter on it."
