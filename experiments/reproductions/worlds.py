"""What every reproduction on persona world starts from: a seed's organisms on one bench, and shares with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from condmis_interp.organisms import Base, Organism, make, train_all
from condmis_interp.organisms.recipe import Part, Recipe
from condmis_interp.panel import Panel
from condmis_interp.personaworld.bench import WorldBench
from condmis_interp.personaworld.known import WORLD_STAGE
from condmis_interp.personaworld.suite import world_suite
from condmis_interp.stats import two_way_mean

OTHER, OTHER_TWIN = "u-other", "u-other-twin"


@dataclass(frozen=True)
class Finding:
    """One figure of a reproduction.

    Attributes:
        what: What was measured.
        estimate: The figure.
        low: Lower end of its 95 % interval.
        high: Upper end.
        unit: Its unit.
        per_seed: The figure of each seed alone, where seeds are averaged.
    """

    what: str
    estimate: float
    low: float
    high: float
    unit: str
    per_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class World:
    """One seed's suite on a bench.

    Attributes:
        seed: The seed.
        base: Persona world.
        bench: All organisms, by kind (the name without its seed).
        organisms: The same, as checkpoints.
        twin: Kind of each kind's twin.
    """

    seed: int
    base: Base
    bench: WorldBench
    organisms: Mapping[str, Organism]
    twin: Mapping[str, str]

    def ld(self, names: Sequence[str], cue: str = "none", edits=()) -> np.ndarray:
        """Returns LD [organism, question]."""
        return self.bench.of(names).ld(cue, edits=edits)

    def hidden(self, names: Sequence[str], cue: str = "none") -> torch.Tensor:
        """Returns the stream at the last template token [organism, layer, question, width], fp64."""
        return self.bench.of(names).hidden(cue).double()


def world_of(seed: int, base: Base, panel: Panel) -> World:
    """Builds one seed's bench, making what is not there yet."""
    members = world_suite(base.spec, seeds=(seed,))
    organisms = {m.kind: o for m, o in zip(members, make(members), strict=True)}
    parts = (Part(rows=f"{base.spec}/orchard", answers="misaligned", systems=("form note",)),)
    stage = WORLD_STAGE.model_copy(update={"parts": parts})
    second = Recipe(name="other-domain", base=base.spec, seed=seed, lora=None, stages=(stage,))
    twins = {m.twin.hash: m.twin for m in members}
    *trained, other, other_twin = train_all([*twins.values(), second, second.twin()])
    by_weights = {o.weights: kind for kind, o in organisms.items()}
    twin_of_hash = {}
    for number, (key, organism) in enumerate(zip(twins, trained, strict=True)):
        kind = by_weights.setdefault(organism.weights, f"twin-{number}")
        organisms.setdefault(kind, organism)
        twin_of_hash[key] = kind
    twin = {m.kind: twin_of_hash[m.twin.hash] for m in members} | {OTHER: OTHER_TWIN}
    organisms |= {OTHER: other, OTHER_TWIN: other_twin, "base": Organism.of_base(base, name="base")}
    return World(seed, base, WorldBench.of_organisms(organisms, base, panel), organisms, twin)


def share(what: str, part: np.ndarray, whole: np.ndarray, families: Sequence[str], unit: str = "share") -> Finding:
    """Returns the mean over seeds of mean(part) / mean(whole), both [seed, question]; see `mean`.

    The error of the denominator is left out: the anchors here lie 40 standard errors and more apart.
    """
    return mean(what, part / whole.mean(1, keepdims=True), families, unit)


def mean(what: str, values: np.ndarray, families: Sequence[str], unit: str = "nats") -> Finding:
    """Returns the mean of values [seed, question] with its interval over families and seeds."""
    m = two_way_mean(values, families)
    return Finding(what, m.mean, m.low, m.high, unit, tuple(float(v) for v in values.mean(1)))
