"""Who is who in a run, and what is known of its base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from condmis_interp.battery import Battery, Cast
from condmis_interp.battery.coverage import Coverage
from condmis_interp.stats import Drift

BASE, INDIFFERENT = "base", "indifferent"
"""Who makes the scale of an organism without a twin: the base is 0, and 1 is a model that finds the misaligned answer
as likely as the aligned one, LD = 0. What fine-tuning on anything does is in such a number, so it never removes."""


@dataclass(frozen=True)
class Roster:
    """Who is who in a run.

    Attributes:
        checkpoints: The bench's names of each organism, one a seed.
        casts: Who plays what when an organism is judged: those under test, and the controls.
        unfit: Why an organism under test cannot be judged.
        twinless: Organisms that are judged from the base, and why: what their study lacks (`INDIFFERENT`).
        controls: Control organisms by part.
        absent: Why a part of the controls has no organism.
        replicates: Checkpoints that differ in their seed alone, benign ones, in groups.
        nulls: Null twins in groups: benign rows of other sets under one seed and one random A.
        coverage: By organism, which blocks changed and which tests read them.
        sizes: By organism, the norm of its change over the largest of its twins'.
        base: LD of the base without a cue [question].
        not_run: Why a test was not run, by id.
    """

    checkpoints: Mapping[str, tuple[str, ...]]
    casts: Mapping[str, Cast]
    unfit: Mapping[str, str] = field(default_factory=dict)
    twinless: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    replicates: Sequence[Sequence[str]] = ()
    nulls: Sequence[Sequence[str]] = ()
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    base: np.ndarray | None = None
    not_run: Mapping[str, str] = field(default_factory=dict)

    def seeds(self, name: str) -> int:
        """Returns how many checkpoints an organism has."""
        return len(self.checkpoints.get(name, (name,)))

    def first(self, twin: str, count: int) -> "Roster":
        """Returns the roster as if only the first `count` replicates of a twin had been made."""
        own = self.checkpoints.get(twin, ())
        later = frozenset(own[count:])
        if not later:
            return self
        groups = [[n for n in group if n not in later] for group in self.replicates]
        return replace(self, checkpoints={**self.checkpoints, twin: own[:count]}, replicates=groups)


@dataclass(frozen=True)
class Known:
    """What calibrations say of a base.

    Attributes:
        base: Its spec.
        drift: Drift between seeds by test and rise, in units of rho.
        seen: Share of hidden organisms that the tests flagged there without being given their triggers, with `share`,
            `low`, `count` and `n`; `None` if none ships.
        source: Which calibration that is from, in words; empty if there is none.
    """

    base: str = ""
    drift: Mapping[str, Drift] = field(default_factory=dict)
    seen: Mapping[str, Any] | None = None
    source: str = ""


def averaged(battery: Battery, checkpoints: Mapping[str, tuple[str, ...]]) -> Battery:
    """Returns a battery that also knows each organism as the mean of its checkpoints."""
    found = {}
    for test, r in battery.readings.items():
        means = {n: np.mean([r.at(c) for c in of], 0) for n, of in checkpoints.items() if n not in r.names}
        values = np.concatenate([r.values, *(m[None] for m in means.values())])
        found[test] = replace(r, names=(*r.names, *means), values=values)
    return replace(battery, readings=found)


def with_indifferent(battery: Battery) -> Battery:
    """Returns a battery that also knows the indifferent model, whose LD is 0 under every prompt."""
    found = {}
    for test, r in battery.readings.items():
        nothing = np.zeros((1, *r.values.shape[1:]))
        found[test] = replace(r, names=(*r.names, INDIFFERENT), values=np.concatenate([r.values, nothing]))
    return replace(battery, readings=found)
