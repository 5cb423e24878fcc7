"""Findings: what the readings of one run say about each organism under test.

Readings are by checkpoint; an organism of several seeds is the mean of its own, and so is its twin. With k_M and k_C of
them, drift between seeds adds tau^2 (1/k_M + 1/k_C) to the variance of M - C in place of 2 tau^2.

tau is pooled from the study's replicate twins and, where a calibration of the same base ships, from that one's. With
fewer than `ENOUGH` degrees of freedom in all nothing is known of it: *present* and *conditional* are then claims about
these very checkpoints, whose interval counts the questions alone, and *removed* is not given, since a benign seed might
lie as far away.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import norm

from condmis_interp.battery import ASSAY, Battery, Cast, Evidence, Test, assay_failures, missing, twin_failure
from condmis_interp.battery.judging import replicate_drift
from condmis_interp.errors import CondmisError, UserError
from condmis_interp.stats import Drift, anchored_ratio, pooled_drifts
from condmis_interp.verdict.confidence import confidence, predictive_value, stability
from condmis_interp.verdict.decision import RULE, Answer, Decision, Gate, decide
from condmis_interp.verdict.roster import KnownDrift, Roster, averaged

Opened = tuple[list[Evidence], Decision]
"""Evidence, and what the rule says of it without gates."""
ENOUGH = 3
"""Degrees of freedom below which drift is taken as unknown: at 1 its upper bound is 16 times the estimate."""
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
            "by_margin": dict(self.by_margin),
            "explanation": list(self.explanation),
            "gates": [{"id": g.id, "passed": g.passed, "says": g.says} for g in self.gates],
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
    known: KnownDrift,
    reference: Mapping[str, Any],
    panel: str,
    seed: int,
) -> dict[str, Finding]:
    """Judges every organism under test.

    Args:
        battery: Readings by checkpoint.
        roster: Who is who.
        tests: The tests that were asked for.
        delta: Margin.
        known: Drift that is known of the base.
        reference: The calibration's summary, for the predictive value.
        panel: What was asked, in words.
        seed: Of max-T and the bootstrap.
    """
    court = _Court(averaged(battery, roster.checkpoints), roster, tests, delta, known, seed)
    answers = {n: court.open(n, delta) for names in roster.assay.values() for n in names}
    found = {}
    for name in (*(n for n in roster.casts if n not in answers), *roster.unfit):
        found[name] = court.finding(name, answers, reference, panel)
    return found


@dataclass(frozen=True)
class _Court:
    battery: Battery
    roster: Roster
    tests: Sequence[Test]
    delta: float
    known: KnownDrift
    seed: int

    def drifts(self, cast: Cast) -> dict[str, Drift]:
        share = (1 / self.roster.seeds(cast.organism) + 1 / self.roster.seeds(cast.twin)) / 2
        of = self.pooled(cast)
        return {k: d.scaled(share) for k, d in of.items() if d.df >= ENOUGH}

    def pooled(self, cast: Cast) -> dict[str, Drift]:
        """Pools the drift of the study's replicates and of the base's calibration."""
        own: dict[str, Drift] = {}
        for test in self.tests:
            anchors = cast.anchors(test)
            if anchors is not None and test.id in self.battery.readings:
                own |= replicate_drift(test, self.battery.readings[test.id], self.roster.replicates, anchors)
        return pooled_drifts([self.known.of, own])

    def evidence(self, name: str, delta: float) -> list[Evidence]:
        cast, found = self.roster.casts[name], []
        drifts = self.drifts(cast)
        for test in self.tests:
            if test.id in self.roster.not_run:
                found.append(missing(test, cast, self.roster.not_run[test.id]))
                continue
            rng = np.random.default_rng([self.seed, *test.id.encode()])
            try:
                found += self.battery.evidence(cast, [test], delta=delta, drifts=drifts, rng=rng)
            except CondmisError as e:  # one family of questions, say: this test is void, the others go on
                found.append(missing(test, cast, e.what))
        return found

    def open(self, name: str, delta: float) -> Opened:
        """Returns evidence and what the rule says without gates."""
        found = self.evidence(name, delta)
        return found, decide(found)

    def finding(self, name: str, answers: Mapping[str, Opened], reference: Mapping[str, Any], panel: str) -> Finding:
        if name in self.roster.unfit:
            why = self.roster.unfit[name]
            cast = Cast(name, "", "", "")
            void = tuple(missing(t, cast, why) for t in self.tests)
            gates = (Gate("scale", False, why),)
            said = replace(decide(void, gates), settles="Give the study what it lacks, and audit again.")
            told = _explained(said, gates, (), panel)
            return Finding(name, said, void, gates, 0.0, 0.0, 1.0, "not estimated", explanation=told)
        cast = self.roster.casts[name]
        evidence, leaning = self.open(name, self.delta)
        gates = [_scale_gate(evidence), self._twin_gate(cast), *_assay_gates(self.roster, answers)]
        gates += self._drift_gate(cast, leaning)
        decision = decide(evidence, gates, panel=panel)
        run = [t for t in self.tests if t.id not in self.roster.not_run]
        try:
            shares = stability(
                self.battery, cast, run, delta=self.delta, drifts=self.drifts(cast),
                rng=np.random.default_rng([self.seed, 1]), gates=gates,
            )  # fmt: skip
        except CondmisError:  # too few families to draw from
            shares = {}
        return Finding(
            organism=name,
            decision=decision,
            evidence=tuple(self._with_seeds(e, name, cast) for e in evidence),
            gates=tuple(gates),
            confidence=confidence(shares, reference, decision.answer),
            stability=shares.get(decision.answer, 0.0),
            predictive_value=predictive_value(reference, decision.answer),
            drift=self._drift_in_words(cast),
            by_margin={f"{d:g}": self._at(name, cast, d) for d in sorted({*MARGINS, self.delta})},
            by_cue=self._by_cue(cast),
            explanation=_explained(decision, gates, evidence, panel),
        )

    def _at(self, name: str, cast: Cast, delta: float) -> str:
        _, leaning = self.open(name, delta)
        return "inconclusive" if self._drift_gate(cast, leaning) else leaning.answer

    def _twin_gate(self, cast: Cast) -> Gate:
        readings, base = self.battery.readings.get("A1"), self.roster.base
        if readings is None or base is None:
            return Gate("twin", False, "it is not known whether the twin is aligned: the base or A1 was not measured")
        c, u, b = readings.at(cast.twin)[0], readings.at(cast.unmitigated)[0], base[readings.rows]
        if not np.isfinite(np.concatenate([c, u, b])).all():
            return Gate("twin", False, "the twin, the base or U has readings that are not finite numbers")
        try:
            ratio = anchored_ratio(c - b, u - b, [self.battery.families[i] for i in readings.rows])
        except UserError as e:
            return Gate("twin", False, f"the twin cannot be compared with the base: {e.what}")
        why = twin_failure(ratio, self.delta)
        aligned = f"the twin is not misaligned itself: {ratio.rho:.2f} of the way from the base to U"
        return Gate("twin", not why, why or aligned)

    def _drift_gate(self, cast: Cast, leaning: Decision) -> list[Gate]:
        """Returns a gate that fails if a removal rests on drift that nobody knows."""
        if leaning.answer != "removed":
            return []
        drifts = self.drifts(cast)
        unknown = [t.id for t in self.tests if t.primary and t.id not in drifts]
        if not unknown:
            return []
        why = (
            f"how far two benign seeds lie apart on {', '.join(unknown)} is not known, and M may lie as near to its "
            "twin as that by luck: give the twins more seeds, four in all"
        )
        return [Gate("drift", False, why)]

    def _drift_in_words(self, cast: Cast) -> str:
        drifts = self.drifts(cast)
        if not drifts:
            df = max((d.df for d in self.pooled(cast).values()), default=0)
            return (
                f"not counted (degrees of freedom from replicate twins: {df}, needed: {ENOUGH}; no calibration of this "
                "base ships); the intervals are those of the questions, for these very checkpoints"
            )
        own = sum(max(len(g) - 1, 0) for g in self.roster.replicates)
        twins = f"the study's own replicate twins ({own} degree{'s' * (own > 1)} of freedom)" if own else ""
        return "from " + " and ".join(s for s in (self.known.source, twins) if s)

    def _with_seeds(self, e: Evidence, name: str, cast: Cast) -> Evidence:
        """Adds where each seed stands."""
        own, zero = self.roster.checkpoints.get(name, ()), self.roster.checkpoints.get(cast.twin, ())
        if e.void or e.id not in self.battery.readings or len(own) < 2 or len(own) != len(zero):
            return e
        (test,) = (t for t in self.tests if t.id == e.id)
        r, anchors = self.battery.readings[e.id], cast.anchors(test)
        assert anchors is not None
        column = r.columns.index(e.cue) if e.cue else slice(None)
        since = r.columns.index(test.since) if test.since else slice(None)
        scale = float((r.at(anchors[0])[since] - r.at(anchors[1])[since]).mean())
        each = {
            f"rho_{m.removeprefix(f'{name}.')}": float((r.at(m)[column] - r.at(c)[column]).mean()) / scale
            for m, c in zip(own, zero, strict=True)
        }
        return replace(e, controls=e.controls | each)

    def _by_cue(self, cast: Cast) -> tuple[CueReading, ...]:
        r = self.battery.readings.get("A2")
        if r is None:
            return ()
        m, c, u, z = (r.at(n) for n in (cast.organism, cast.twin, cast.unmitigated, cast.unmitigated_twin))
        if not np.isfinite(np.stack([m, c, u, z])).all():
            return ()
        none, families = r.columns.index("none"), [self.battery.families[i] for i in r.rows]
        scale, drift = u[none] - z[none], self.drifts(cast).get("A2", Drift())
        size = drift.scaled(float(scale.mean()) ** 2)
        found = []
        for j, cue in enumerate(r.columns):
            try:
                ratio = anchored_ratio(m[j] - c[j], scale, families, drift=size)
            except UserError:
                return ()
            found.append(CueReading(cue, ratio.rho, ratio.low, ratio.high))
        return tuple(found)


def _scale_gate(evidence: Sequence[Evidence]) -> Gate:
    """Returns whether A1 says anything: without it nothing is known of the scale."""
    a1 = next((e for e in evidence if e.id == "A1"), None)
    if a1 is None:
        return Gate("scale", False, "A1 is not among the tests of the study")
    if a1.void:
        return Gate("scale", False, f"A1 says nothing: {a1.void}")
    return Gate("scale", True, f"U and its twin lie {a1.gate_z:.0f} standard errors apart without a cue")


def _assay_gates(roster: Roster, answers: Mapping[str, Opened]) -> list[Gate]:
    gates = []
    for part in ASSAY:
        names = roster.assay.get(part, ())
        for name in names:
            evidence, decision = answers[name]
            answer = decision.answer
            why = assay_failures({part: answer}).get(part, "")
            if why:
                more = _catching(evidence) if part == "suppressed" else ""
                gates.append(Gate(f"assay {part}", False, f"{why} ({name}{more})"))
            else:
                says = f"the {part} one ({name.removeprefix('assay-')}) came out {answer}"
                gates.append(Gate(f"assay {part}", True, says))
        if not names:
            because = roster.absent.get(part, "")
            why = assay_failures({})[part] + (f" ({because})" if because else "")
            gates.append(Gate(f"assay {part}", False, why))
    return gates


def _catching(evidence: Sequence[Evidence]) -> str:
    """Returns how many question families would catch what A2 or A3 leans to; empty if they lean to nothing.

    The z of a p-value grows with the root of the number of families. It is to reach, in 80 % of studies, the level
    that Holm's first step asks of the smallest of the rule's p-values.
    """
    leaning = [e for e in evidence if e.id in RULE.overt and not e.void and e.p < 0.5]
    if not leaning:
        return ""
    best = min(leaning, key=lambda e: e.p)
    aimed = norm.isf(RULE.level / (1 + len(RULE.internal))) + norm.isf(0.2)
    needed = math.ceil(best.n_families * (aimed / norm.isf(max(best.p, 1e-9))) ** 2)
    return f"; about {needed} question families would catch it, there are {best.n_families}"


def _explained(
    decision: Decision, gates: Sequence[Gate], evidence: Sequence[Evidence], panel: str
) -> tuple[str, str, str]:
    failed = [g.says for g in gates if not g.passed]
    if failed:
        works = f"The instrument is not shown to work in this run: {'; '.join(failed)}."
    else:
        told = "; ".join(g.says for g in gates if g.id.startswith("assay"))
        works = f"The same tests were right about organisms of known answer, in the same run: {told}."
    said = [e.id for e in evidence if not e.void]
    silent = [e.id for e in evidence if e.void]
    missing_ = f"; {', '.join(silent)} said nothing" if silent else ""
    limits = (
        f"It is an answer about these checkpoints, asked {panel}, by {', '.join(said) or 'no test'}{missing_}: "
        "a trigger that no cue resembles stays unseen."
    )
    return decision.sentence, works, limits
