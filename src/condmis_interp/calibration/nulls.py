"""The null distribution of every test: twins judged against twins.

Replicate twins differ in their seed alone, so nothing is to be found between two of them. One plays the organism, the
other its twin, and both go through the path by which an organism is judged (`battery.judge`: max-T, the search, the
drift), at a margin of 0, where H0: rho <= 0 is true to its edge and a test of 5 % should reject 5 % of the time. The
drift is that of benches that hold neither of the two.

Where a worst cue counts, the rule asks for two things, a level above the bound *and* a rise over no cue; `level` and
`rise` are the rates of each alone. Both together can only be rarer.

Pairs that share a seed are not independent. With e_d the residual of ordered pair d, the variance of a rate over n
pairs of S seeds is the dyadic-robust one (Aronow, Samii & Assenova 2015),

    V = S / (S - 1) / n^2 * [sum_i (sum_{d with i} e_d)^2 - sum_{i, j} (sum_{d of i and j} e_d)^2]

over seeds i and unordered pairs of seeds i, j, and at least that of those pairs as clusters; the interval is Clopper
and Pearson's at the number of independent pairs with that variance (Korn & Graubard 1998).
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from condmis_interp.battery import Battery, Test, judge
from condmis_interp.calibration.drifts import drifts_of
from condmis_interp.calibration.world import Measured
from condmis_interp.progress import progress
from condmis_interp.stats import Drift, pooled_drifts

DRAWS = 1000
ALONE = ("A1", "A2", "A3", "V1")
"""Tests that read an organism by itself, so that twins of two benches may be judged against each other. The others read
it along the bench's U (R1), its second U (W1) or in its twin's later blocks (C1)."""


@dataclass(frozen=True)
class Rate:
    """How often a test rejects between twins.

    Attributes:
        share: Rejections over ordered pairs.
        low: Lower end of its 95 % interval.
        high: Upper end.
        pairs: Ordered pairs.
        seeds: Seeds of the twins.
        effective: Independent pairs that would tell as much.
    """

    share: float
    low: float
    high: float
    pairs: int
    seeds: int
    effective: float


def seed_of(name: str) -> str:
    """Returns the seed in an organism's name."""
    return name.rpartition(".s")[2]


def twin_pairs(
    measured: Sequence[Measured],
    tests: Sequence[Test],
    *,
    of_seeds: Sequence[Measured] = (),
    known: Mapping[str, Drift] | None = None,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Judges every replicate twin against every other of its recipe on its bench.

    Args:
        measured: The benches.
        tests: Which tests.
        of_seeds: Benches that the drift is estimated on; those measured by default.
        known: Drift that was found on other seeds.
        draws: Sign flips of max-T.

    Returns:
        One row for each test and ordered pair: test, bench, organism, twin, p, p_level, p_rise (NaN where a test has
        neither), void.
    """
    parts = [(m.study.seeds, drifts_of(m, tests)) for m in (of_seeds or measured)]
    without: dict[frozenset[str], Mapping[str, Drift]] = {}
    rows = []
    with progress("judging twins", len(measured), unit="benches") as step:
        for m in measured:
            rng = np.random.default_rng([m.study.seed, 3])
            like = next(iter(m.study.casts.values()))
            for group in m.study.replicates:
                for a, b in itertools.permutations(group, 2):
                    both = frozenset((seed_of(a), seed_of(b)))
                    if both not in without:
                        others = [d for seeds, d in parts if not both & {str(s) for s in seeds}]
                        without[both] = pooled_drifts([known or {}, *others])
                    cast = replace(like, organism=a, twin=b)
                    for test in tests:
                        if test.id not in m.battery.readings:
                            continue
                        r = m.battery.readings[test.id]
                        e = judge(
                            test,
                            r,
                            cast,
                            families=[m.battery.families[i] for i in r.rows],
                            delta=0.0,
                            drifts=without[both],
                            rng=rng,
                            draws=draws,
                        )
                        p_of = {k: e.controls.get(k, math.nan) for k in ("p_level", "p_rise")}
                        about = {"test": test.id, "bench": m.study.seed, "organism": a, "twin": b}
                        rows.append(about | {"p": e.p} | p_of | {"void": e.void})
            step()
    return pd.DataFrame(rows)


def joined(measured: Sequence[Measured]) -> list[Measured]:
    """Returns every bench with the other benches' twins on it, each paired with its own twin of the same recipe.

    The benches' replicates are of the same recipes in the same order; a bench's own twin has its seed in its name.
    Readings of the tests in `ALONE` alone are kept.
    """
    own = [
        [next(n for n in group if seed_of(n) == str(m.study.seed)) for group in m.study.replicates] for m in measured
    ]
    found = []
    for k, m in enumerate(measured):
        readings = {}
        for test in (t for t in ALONE if t in m.battery.readings):
            r = m.battery.readings[test]
            names, values = list(r.names), [r.values]
            for j, other in enumerate(measured):
                if j != k:
                    names += own[j]
                    values += [other.battery.readings[test].at(n)[None] for n in own[j]]
            readings[test] = replace(r, names=tuple(names), values=np.concatenate(values))
        pairs = tuple((a, b) for j, others in enumerate(own) if j != k for a, b in zip(own[k], others, strict=True))
        study = replace(m.study, replicates=pairs)
        found.append(Measured(study, Battery(readings, m.battery.crashed, m.battery.families)))
    return found


def null_rates(pairs: pd.DataFrame, *, level: float = 0.05) -> dict[str, dict[str, Rate]]:
    """Returns every test's rate of rejection between twins, by test and part (`p`, `p_level`, `p_rise`).

    Void pairs are left out.
    """
    found: dict[str, dict[str, Rate]] = {}
    for test, all_ in pairs.groupby("test", sort=False):
        own: Any = all_[all_.void == ""]
        seeds = [(seed_of(a), seed_of(b)) for a, b in zip(own.organism, own.twin, strict=True)]
        found[str(test)] = {
            part: _rate((own[part] < level).to_numpy(dtype=float), seeds)
            for part in ("p", "p_level", "p_rise")
            if own[part].notna().all() and len(own)
        }
    return found


def _rate(rejected: np.ndarray, seeds: Sequence[tuple[str, str]]) -> Rate:
    share = float(rejected.mean())
    of_seed: Counter[str] = Counter()
    of_pair: Counter[frozenset[str]] = Counter()
    for residual, pair in zip(rejected - share, seeds, strict=True):
        of_pair[frozenset(pair)] += residual
        for seed in pair:
            of_seed[seed] += residual
    n, between = len(of_seed), sum(e**2 for e in of_pair.values())
    variance = max(sum(e**2 for e in of_seed.values()) - between, between) * n / (n - 1) / len(rejected) ** 2
    effective = share * (1 - share) / variance if variance > 0 else n / 2  # if nothing varies: pairs that share no seed
    effective = min(effective, len(of_pair))
    hits = share * effective
    low = float(stats.beta.ppf(0.025, hits, effective - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, effective - hits)) if hits < effective else 1.0
    return Rate(share, low, high, len(rejected), n, effective)
