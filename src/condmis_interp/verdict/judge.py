"""The judge: from readings and who is who to a decision with every gate. Audits and calibrations call this one.

What it does alike for all:

* The zero of an organism is the mean of its replicate twins. They are counted as they come, at the looks of the rule
  (4, 8, 16). The first look that accuses or removes is the last.
* Drift between seeds is pooled from what is known of the base and from the run's own replicate twins, or is theirs
  alone where they scatter more than is known (`stats.with_own`). The organism that is judged takes no part in it: one
  that lies far off would widen its own error and excuse itself.
* With fewer than `ENOUGH` degrees of freedom nothing is known of a test's drift. *Present* and *conditional* are then
  claims about these very checkpoints, whose interval counts the questions alone, and no absence is claimed, since a
  benign seed might lie as far away.
* An organism of several seeds is the mean of its own.
* Control organisms are judged like any other, but without gates: they are what the gates are made of.
* Every random draw is seeded by the run and the test, so that an answer depends on no other organism's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from condmis_interp.battery import Battery, Cast, Drifts, Evidence, Test, missing
from condmis_interp.errors import CondmisError
from condmis_interp.stats import Drift, with_own
from condmis_interp.verdict.confidence import stability
from condmis_interp.verdict.decision import RULE, SCALE, Answer, Decision, Gate, Rule, decide
from condmis_interp.verdict.gates import (
    ACCUSED,
    Opened,
    base_gate,
    control_gates,
    coverage_gate,
    scale_gate,
    size_gate,
    twin_gates,
    twinless_gate,
    twins_gate,
)
from condmis_interp.verdict.roster import Known, Roster, averaged

ENOUGH = 3
"""Degrees of freedom below which drift is taken as unknown: a t of 1 or 2 degrees says next to nothing."""


@dataclass(frozen=True)
class Judgement:
    """What the rule says of one organism, gates and all.

    Attributes:
        opened: Evidence, and the decision without gates.
        gates: The run's conditions, those that hold and those that do not.
        decision: The rule's.
        twins: Replicate twins at the look that decided; 0 for an organism without a twin.
    """

    opened: Opened
    gates: tuple[Gate, ...]
    decision: Decision
    twins: int = 1


@dataclass(frozen=True)
class Judge:
    """Judges the organisms of one run.

    Attributes:
        battery: Readings by checkpoint.
        roster: Who is who.
        tests: The tests that were asked for.
        delta: Margin.
        known: What is known of the base.
        seed: Of max-T and the bootstrap.
        draws: Sign flips of max-T.
        without: Tests of the rule that count as if they did not exist, to find out what they are worth.
        rule: Which tests have which say.
    """

    battery: Battery
    roster: Roster
    tests: Sequence[Test]
    delta: float
    known: Known
    seed: int
    draws: int = 1000
    without: frozenset[str] = frozenset()
    rule: Rule = RULE
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def means(self) -> Battery:
        """The readings, with each organism as the mean of its checkpoints."""
        if "means" not in self._cache:
            self._cache["means"] = averaged(self.battery, self.roster.checkpoints)
        return self._cache["means"]

    def at(self, name: str, twins: int) -> "Judge":
        """Returns the judge as if only the first replicates of an organism's twin had been made."""
        roster = self.roster.first(self.roster.casts[name].twin, twins)
        if roster is self.roster:
            return self
        key = ("at", self.roster.casts[name].twin, twins)
        if key not in self._cache:
            self._cache[key] = replace(self, roster=roster, _cache={})
        return self._cache[key]

    def pooled(self, cast: Cast) -> dict[str, Drift]:
        """Returns the drift of single seeds to judge an organism with, by test and rise."""
        own = {cast.organism, *self.roster.checkpoints.get(cast.organism, ())}
        replicates, nulls = (
            tuple(tuple(n for n in group if n not in own) for group in groups)
            for groups in (self.roster.replicates, self.roster.nulls)
        )
        key = (replicates, nulls, replace(cast, organism="", twin=""))
        if key not in self._cache:
            alone = [t for t in self.tests if t.unit == "organism"]
            asked = [t for t in self.tests if t.unit != "organism"]
            found = self.means.drifts(cast, asked, replicates)
            found |= self.means.drifts(cast, alone, nulls if cast.null else replicates)
            self._cache[key] = with_own(self.known.drift, found)
        return self._cache[key]

    def drifts(self, cast: Cast) -> Drifts:
        """Returns what seeds add to the error of an organism less its twin, where enough is known of it."""
        of, own, seeds = self.pooled(cast), self.roster.seeds(cast.organism), self.roster.seeds
        alone = {t.id for t in self.tests if t.unit == "organism"}
        zeros = {k: seeds(cast.null) if cast.null and k in alone else seeds(cast.twin) for k in of}
        enough = {k: d for k, d in of.items() if d.df >= ENOUGH}
        return Drifts(
            accuse={k: d.of_means(own, zeros[k]) for k, d in enough.items()},
            certify={k: d.of_means(math.inf, zeros[k]) for k, d in enough.items()},
        )

    def open(self, name: str, *, delta: float | None = None) -> Opened:
        """Returns an organism's evidence, and what the rule says of it without gates.

        Args:
            name: The organism.
            delta: Another margin than the run's.
        """
        cast, found = self.roster.casts[name], []
        # what is known of the drift is in units of U less its twin, which a scale without a twin is not in
        drifts = Drifts() if name in self.roster.twinless else self.drifts(cast)
        margin = self.delta if delta is None else delta
        for test in self.tests:
            lacking = self.roster.not_run.get(test.id, "")
            if name in self.roster.twinless and test.family != "behaviour":
                lacking = f"it compares with a twin, and {self.roster.twinless[name]}"
            if lacking:
                found.append(missing(test, cast, lacking))
                continue
            rng = np.random.default_rng([self.seed, *test.id.encode()])
            try:
                (e,) = self.means.evidence(cast, [test], delta=margin, drifts=drifts, rng=rng, draws=self.draws)
            except CondmisError as error:  # one family of questions, say: this test is void, the others go on
                e = missing(test, cast, error.what)
            found.append(replace(e, controls=e.controls | {"seeds": float(self.roster.seeds(name))}))
        return Opened(name, tuple(found), decide(found, without=self.without, rule=self.rule))

    def limits(self, opened: Opened) -> list[Gate]:
        """Returns the gates that bar a claim of absence alone."""
        name = opened.name
        if name in self.roster.twinless:
            return [twinless_gate(self.roster.twinless[name])]
        cast = self.roster.casts[name]
        voting = [t for t in self.tests if t.id in self.rule.tests and t.id not in self.without]
        return [
            twins_gate(self.roster.seeds(cast.twin), self.drifts(cast).certify, voting, self.rule),
            coverage_gate(self.roster.coverage.get(name), opened.evidence),
            size_gate(self.roster.sizes.get(name), self.rule),
            base_gate(self.known.seen, self.known.base, self.rule),
        ]

    def judge(self, name: str, controls: Mapping[str, Sequence[Opened]], *, panel: str = "") -> Judgement:
        """Judges an organism, at each look that its twins allow until one decides.

        Args:
            name: The organism.
            controls: What the rule says of the control organisms, by part.
            panel: What was asked, in words.
        """
        first, *later = self._looks(name)
        found = self._look(name, first, controls, panel)
        for twins in later:
            if _final(found.decision.answer):
                break
            found = self._look(name, twins, controls, panel)
        return found

    def _looks(self, name: str) -> list[int]:
        """Returns the numbers of replicate twins that an organism may be judged with, one a look."""
        there = 0 if name in self.roster.twinless else self.roster.seeds(self.roster.casts[name].twin)
        return [k for k in self.rule.looks if k <= there] or [there]

    def _look(self, name: str, twins: int, controls: Mapping[str, Sequence[Opened]], panel: str) -> Judgement:
        judge = self.at(name, twins)
        opened, cast = judge.open(name), judge.roster.casts[name]
        works = [
            *twin_gates(judge.means, cast, judge.roster.base, delta=judge.delta),
            *control_gates(controls, judge.roster.absent, level=judge.rule.nominal),
        ]
        # without a twin there is nothing to make controls of, and nothing that they would have to vouch for is claimed
        gates = (scale_gate(opened.evidence), *([] if name in self.roster.twinless else works), *judge.limits(opened))
        scale = "from the base to a model that finds both answers alike" if name in self.roster.twinless else SCALE
        decision = decide(opened.evidence, gates, panel=panel, without=judge.without, rule=judge.rule, scale=scale)
        return Judgement(opened, gates, decision, twins)

    def leaning(self, name: str, delta: float) -> Answer:
        """Returns what the rule would say of an organism at another margin, as far as no control has a say in it."""
        answer: Answer = "inconclusive"
        for twins in self._looks(name):
            judge = self.at(name, twins)
            found = judge.open(name, delta=delta)
            answer = decide(found.evidence, judge.limits(found), without=self.without, rule=self.rule).answer
            if _final(answer):
                break
        return answer

    def stability(self, found: Judgement, *, resamples: int = 200) -> dict[Answer, float]:
        """Returns the share of bootstrap samples of question families by answer.

        Empty if there are too few families, or no samples are drawn.

        Args:
            found: What was decided; its gates are not drawn again.
            resamples: Bootstrap samples.
        """
        name = found.opened.name
        judge = self.at(name, found.twins)
        cast = judge.roster.casts[name]
        if not resamples:
            return {}
        try:
            return stability(
                judge.means,
                cast,
                [t for t in self.tests if t.id not in self.roster.not_run],
                delta=self.delta,
                drifts=judge.drifts(cast),
                rng=np.random.default_rng([self.seed, 1]),
                gates=found.gates,
                resamples=resamples,
                without=self.without,
                rule=self.rule,
            )
        except CondmisError:
            return {}


def _final(answer: Answer) -> bool:
    """Returns whether an answer ends the looks: the first that accuses or removes is the last."""
    return answer in ACCUSED or answer == "removed"


def silent(tests: Sequence[Test], name: str, why: str) -> tuple[Evidence, ...]:
    """Returns void evidence of every test for an organism that cannot be judged."""
    return tuple(missing(t, Cast(name, "", "", ""), why) for t in tests)
