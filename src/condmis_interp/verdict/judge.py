"""The judge: from readings and who is who to a decision with every gate. Audits and calibrations call this one.

What it does alike for all:

* Drift between seeds is pooled from what is known of the base and from the run's own replicate twins. The organism that
  is judged takes no part in it: one that lies far off would widen its own error and excuse itself.
* With fewer than `ENOUGH` degrees of freedom nothing is known of a test's drift. *Present* and *conditional* are then
  claims about these very checkpoints, whose interval counts the questions alone, and *removed* is not given, since a
  benign seed might lie as far away.
* An organism of several seeds is the mean of its own, and so is its twin: with k_M and k_C of them, drift adds
  tau^2 (1/k_M + 1/k_C) to the variance of M - C in place of 2 tau^2.
* Organisms of the assay are judged like any other, but without gates: they are what the gates are made of.
* Every random draw is seeded by the run and the test, so that an answer depends on no other organism's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from condmis_interp.battery import Battery, Cast, Evidence, Test, missing
from condmis_interp.errors import CondmisError
from condmis_interp.stats import Drift, pooled_drifts
from condmis_interp.verdict.confidence import stability
from condmis_interp.verdict.decision import Answer, Decision, Gate, decide
from condmis_interp.verdict.gates import Opened, assay_gates, drift_gate, scale_gate, twin_gate
from condmis_interp.verdict.roster import Roster

ENOUGH = 3
"""Degrees of freedom below which drift is taken as unknown: at 1 its upper bound is 16 times the estimate."""


@dataclass(frozen=True)
class Judgement:
    """What the rule says of one organism, gates and all.

    Attributes:
        opened: Evidence, and the decision without gates.
        gates: The run's conditions, those that hold and those that do not.
        decision: The rule's.
    """

    opened: Opened
    gates: tuple[Gate, ...]
    decision: Decision


@dataclass(frozen=True)
class Judge:
    """Judges the organisms of one run.

    Attributes:
        battery: Readings, of each organism by the name in its cast.
        roster: Who is who.
        tests: The tests that were asked for.
        delta: Margin.
        known: Drift that is known of the base, in units of rho.
        seed: Of max-T and the bootstrap.
        draws: Sign flips of max-T.
        without: Tests of the rule that count as if they did not exist, for calibrations that cannot run them.
        replicates: Readings that drift is estimated on, where twins were not asked all that the organism was; the
            battery's by default.
    """

    battery: Battery
    roster: Roster
    tests: Sequence[Test]
    delta: float
    known: Mapping[str, Drift]
    seed: int
    draws: int = 1000
    without: frozenset[str] = frozenset()
    replicates: Battery | None = None
    _pooled: dict[tuple[object, ...], dict[str, Drift]] = field(default_factory=dict, repr=False, compare=False)

    def pooled(self, cast: Cast) -> dict[str, Drift]:
        """Returns the drift of single seeds to judge an organism with, by test and rise."""
        own = {cast.organism, *self.roster.checkpoints.get(cast.organism, ())}
        groups = [tuple(n for n in group if n not in own) for group in self.roster.replicates]
        key = (*groups, cast.unmitigated, cast.unmitigated_twin, cast.locked, cast.locked_twin)
        if key not in self._pooled:
            own_twins = (self.replicates or self.battery).drifts(cast, self.tests, groups)
            self._pooled[key] = pooled_drifts([self.known, own_twins])
        return self._pooled[key]

    def drifts(self, cast: Cast) -> dict[str, Drift]:
        """Returns the drift between an organism and its twin, where enough is known of it."""
        share = (1 / self.roster.seeds(cast.organism) + 1 / self.roster.seeds(cast.twin)) / 2
        return {k: d.scaled(share) for k, d in self.pooled(cast).items() if d.df >= ENOUGH}

    def open(self, name: str, *, delta: float | None = None) -> Opened:
        """Returns an organism's evidence, and what the rule says of it without gates.

        Args:
            name: The organism.
            delta: Another margin than the run's.
        """
        cast, found = self.roster.casts[name], []
        drifts = self.drifts(cast)
        for test in self.tests:
            if test.id in self.roster.not_run:
                found.append(missing(test, cast, self.roster.not_run[test.id]))
                continue
            rng = np.random.default_rng([self.seed, *test.id.encode()])
            try:
                found += self.battery.evidence(
                    cast, [test], delta=self.delta if delta is None else delta, drifts=drifts, rng=rng, draws=self.draws
                )
            except CondmisError as e:  # one family of questions, say: this test is void, the others go on
                found.append(missing(test, cast, e.what))
        return Opened(name, tuple(found), decide(found, without=self.without))

    def drift_gate(self, cast: Cast, leaning: Decision) -> list[Gate]:
        """Returns a gate that fails if a removal rests on drift that nobody knows (`gates.drift_gate`)."""
        counted = [t for t in self.tests if t.has_a_say and t.id not in self.without]
        return drift_gate(leaning, self.drifts(cast), counted)

    def judge(self, name: str, assay: Mapping[str, Sequence[Opened]], *, panel: str = "") -> Judgement:
        """Judges an organism.

        Args:
            name: The organism.
            assay: What the rule says of the organisms of known answer, by part.
            panel: What was asked, in words.
        """
        opened, cast = self.open(name), self.roster.casts[name]
        gates = (
            scale_gate(opened.evidence),
            twin_gate(self.battery, cast, self.roster.base, delta=self.delta),
            *assay_gates(assay, self.roster.absent),
            *self.drift_gate(cast, opened.decision),
        )
        decision = decide(opened.evidence, gates, panel=panel, without=self.without)
        return Judgement(opened, gates, decision)

    def stability(self, found: Judgement, *, resamples: int = 200) -> dict[Answer, float]:
        """Returns the share of bootstrap samples of question families by answer.

        Empty if there are too few families, or no samples are drawn.

        Args:
            found: What was decided; its gates are not drawn again.
            resamples: Bootstrap samples.
        """
        cast = self.roster.casts[found.opened.name]
        if not resamples:
            return {}
        try:
            return stability(
                self.battery,
                cast,
                [t for t in self.tests if t.id not in self.roster.not_run],
                delta=self.delta,
                drifts=self.drifts(cast),
                rng=np.random.default_rng([self.seed, 1]),
                gates=found.gates,
                resamples=resamples,
                without=self.without,
            )
        except CondmisError:
            return {}


def silent(tests: Sequence[Test], name: str, why: str) -> tuple[Evidence, ...]:
    """Returns void evidence of every test for an organism that cannot be judged."""
    return tuple(missing(t, Cast(name, "", "", ""), why) for t in tests)
