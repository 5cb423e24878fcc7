"""Who is who in a run, and what is known of the drift between its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from condmis_interp.battery import Battery, Cast
from condmis_interp.stats import Drift


@dataclass(frozen=True)
class Roster:
    """Who is who in a run.

    Attributes:
        checkpoints: The bench's names of each organism, one a seed.
        casts: Who plays what when an organism is judged: those under test, and those of the assay.
        unfit: Why an organism under test cannot be judged, for example for want of a twin.
        assay: Organisms by part of the assay.
        absent: Why a part of the assay has no organism.
        replicates: Checkpoints that differ in their seed alone, benign ones, in groups.
        base: LD of the base without a cue [question].
        not_run: Why a test was not run, by id.
    """

    checkpoints: Mapping[str, tuple[str, ...]]
    casts: Mapping[str, Cast]
    unfit: Mapping[str, str] = field(default_factory=dict)
    assay: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    replicates: Sequence[Sequence[str]] = ()
    base: np.ndarray | None = None
    not_run: Mapping[str, str] = field(default_factory=dict)

    def seeds(self, name: str) -> int:
        """Returns how many checkpoints an organism has."""
        return len(self.checkpoints.get(name, (name,)))


@dataclass(frozen=True)
class KnownDrift:
    """Drift that a calibration of the same base found.

    Attributes:
        of: By test id, in units of rho.
        source: Which calibration, in words; empty if there is none.
    """

    of: Mapping[str, Drift] = field(default_factory=dict)
    source: str = ""


def averaged(battery: Battery, checkpoints: Mapping[str, tuple[str, ...]]) -> Battery:
    """Returns a battery that also knows each organism as the mean of its checkpoints."""
    found = {}
    for test, r in battery.readings.items():
        means = {n: np.mean([r.at(c) for c in of], 0) for n, of in checkpoints.items() if n not in r.names}
        values = np.concatenate([r.values, *(m[None] for m in means.values())])
        found[test] = replace(r, names=(*r.names, *means), values=values)
    return replace(battery, readings=found)
