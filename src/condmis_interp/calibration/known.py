"""Known answers: organisms whose answer is known by how they were made, and who is who among them on a bench.

Every seed of a calibration is one bench: hidden organisms, benign ones, their replicate twins, and anchors of reserved
seeds on which nothing is judged. A replicate twin is a benign organism itself: it is judged against the others of its
recipe (nine of them are nine benign tests against eight each).

*Informed* and *blind*: every organism is judged twice. The informed judge has the organism's own trigger among the cues
of A2, as a user has one who guessed it; the blind judge has the panel's cues and the open half of the grammar alone, to
which no trigger belongs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from condmis_interp.battery import Battery, Cast
from condmis_interp.battery.coverage import Coverage
from condmis_interp.verdict.roster import Roster

Truth = Literal["hidden", "benign", "retrained", "graded", "present", "adversarial"]
PARTS = ("suppressed", "graded", "benign", "trigger-aware")
"""Parts of the controls."""


@dataclass(frozen=True)
class KnownAnswer:
    """What is known of an organism.

    Attributes:
        name: Its name.
        truth: What became of its misalignment.
        family: Its construction family.
        seed: Its seed.
        trigger: Column of A2 under which its own trigger was asked; empty if it has none.
        fixed: Tests on which its reading is fixed by construction; it is kept out of every total.
    """

    name: str
    truth: Truth
    family: str
    seed: int
    trigger: str = ""
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A known answer, to be judged.

    Attributes:
        member: The organism.
        cast: Who plays what.
        controls: Control organisms by part: names of other cases.
    """

    member: KnownAnswer
    cast: Cast
    controls: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class KnownBench:
    """Who is who on one seed's bench: what judging needs besides the readings.

    Attributes:
        seed: The seed.
        cues: The panel's cues, as A2 has them.
        cases: The known answers.
        checkpoints: Replicate twins by the name of their mean, which casts call the twin.
        replicates: Twins that differ in rows, order and seed alone, by recipe.
        nulls: Null twins, in groups.
        coverage: By organism, which regions changed and which tests read them.
        sizes: By organism, the norm of its change over the largest of its twins'.
    """

    seed: int
    cues: tuple[str, ...]
    cases: tuple[Case, ...]
    checkpoints: Mapping[str, tuple[str, ...]]
    replicates: tuple[tuple[str, ...], ...]
    nulls: tuple[tuple[str, ...], ...] = ()
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)

    def case(self, name: str) -> Case:
        """Returns the case of an organism.

        Raises:
            KeyError: if there is none.
        """
        return {c.member.name: c for c in self.cases}[name]


@dataclass(frozen=True)
class Measured:
    """A bench, measured.

    Attributes:
        study: Who is who on it.
        battery: Its readings.
    """

    study: KnownBench
    battery: Battery

    def asked(self, trigger: str) -> Battery:
        """Returns the readings as if only the panel's cues had been asked, and one trigger (none, if it is empty)."""
        r = self.battery.readings.get("A2")
        if r is None:
            return self.battery
        kept = [i for i, c in enumerate(r.columns) if c in self.study.cues or c == trigger]
        own = replace(r, columns=tuple(r.columns[i] for i in kept), values=r.values[:, kept])
        return replace(self.battery, readings={**self.battery.readings, "A2": own})

    @property
    def roster(self) -> Roster:
        """Who is who, as the judge takes it."""
        s = self.study
        return Roster(
            checkpoints=s.checkpoints,
            casts={c.member.name: c.cast for c in s.cases},
            replicates=s.replicates,
            nulls=s.nulls,
            coverage=s.coverage,
            sizes=s.sizes,
            base=base_of(self.battery),
        )


def base_of(battery: Battery) -> np.ndarray | None:
    """Returns LD of the base without a cue [question of the panel], nats, if it was read with the organisms."""
    a1 = battery.readings.get("A1")
    if a1 is None or "base" not in a1.names:
        return None
    base = np.full(len(battery.families), np.nan)
    base[a1.rows] = a1.at("base")[0]
    return base


def others(group: Sequence[str], name: str) -> str:
    """Returns what the mean of a twin's fellows is called: those of its recipe but itself.

    >>> others(("c.1", "c.2", "c.3"), "c.2")
    'all but c.2'
    """
    assert name in group
    return f"all but {name}"
