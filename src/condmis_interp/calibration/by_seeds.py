"""Verdicts on several seeds of one recipe: what more seeds buy.

An intervention is judged better by several checkpoints than by one: drift between seeds, which no question shows, falls
with their number. Benches hold the same kinds of organism in the same order, so the benches of a group of seeds make
one bench whose every organism is the mean of its kind; a test's drift is that of single organisms divided by their
number. The benches of a group share no seed: organisms that are their own twin are judged against the next seed's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from condmis_interp.battery import Battery
from condmis_interp.calibration.drifts import drifts_of
from condmis_interp.calibration.run import Judged, judge_all, to_calibrate
from condmis_interp.calibration.world import Measured
from condmis_interp.errors import CheckError
from condmis_interp.stats import Drift, pooled_drifts, proportion


def together(benches: Sequence[Measured]) -> Measured:
    """Returns one bench whose readings are the means of the benches', under the names of the first.

    Raises:
        CheckError: if the benches share a seed, or do not hold the same kinds in the same order.
    """
    first, readings = benches[0], {}
    seeds = [s for m in benches for s in m.study.seeds]
    if len(set(seeds)) < len(seeds):
        shared = next(s for s in seeds if seeds.count(s) > 1)
        raise CheckError(f"seed {shared} is on two benches of a group, whose means then hang together")
    for test, own in first.battery.readings.items():
        each = [m.battery.readings[test] for m in benches]
        for m, r in zip(benches, each, strict=True):
            if [_kind(n, m) for n in r.names] != [_kind(n, first) for n in own.names] or r.columns != own.columns:
                raise CheckError(f"the bench of seed {m.study.seed} holds other organisms than that of the first")
        readings[test] = replace(own, values=np.mean([r.values for r in each], 0))
    crashed = {k: v for m in benches for k, v in m.battery.crashed.items()}
    return Measured(first.study, Battery(readings, crashed, first.battery.families))


def _kind(name: str, m: Measured) -> str:
    """Returns a name without its seed; seeds of the bench are told by how far they lie from its own."""
    stem, _, seed = name.rpartition(".s")
    if not stem or not seed.isdigit():
        return name
    return f"{stem}.{'own' if int(seed) % 1000 == m.study.seed else 'other'}{int(seed) // 1000}"


def groups(measured: Sequence[Measured], size: int) -> list[list[Measured]]:
    """Returns as many groups of benches as there are, such that a group shares no seed and no bench is in two."""
    left, found = list(measured), []
    while left:
        group: list[Measured] = []
        for m in left:
            if len(group) < size and not any(m.study.seeds & g.study.seeds for g in group):
                group.append(m)
        if len(group) < size:
            break
        found.append(group)
        left = [m for m in left if m not in group]
    return found


def judge_together(
    measured: Sequence[Measured],
    size: int,
    *,
    delta: float,
    known: Mapping[str, Drift] | None = None,
    draws: int = 1000,
) -> list[Judged]:
    """Judges every known answer by the mean of `size` seeds.

    Args:
        measured: The benches, one a seed.
        size: Seeds a verdict.
        delta: Margin.
        known: Drift of single organisms that was found on other seeds.
        draws: Sign flips of max-T.
    """
    tests, found = to_calibrate(), []
    for group in groups(measured, size):
        m, own = together(group), frozenset().union(*(b.study.seeds for b in group))
        apart = [b for b in measured if not own & b.study.seeds]
        of_one = pooled_drifts([known or {}, *(drifts_of(b, tests) for b in apart)])
        drifts: Mapping[str, Drift] = {k: d.scaled(1 / size) for k, d in of_one.items()}
        found += judge_all([m], delta=delta, draws=draws, drifts=drifts)
    return found


def by_seeds(
    measured: Sequence[Measured],
    *,
    delta: float,
    known: Mapping[str, Drift] | None = None,
    sizes: Sequence[int] = (1, 2, 3),
) -> pd.DataFrame:
    """Returns the rates of right and wrong answers against the number of seeds a verdict, with exact intervals.

    Columns: seeds, truth, n, and for each answer its share with `_low` and `_high`.
    """
    rows: list[dict[str, Any]] = []
    for size in sizes:
        judged = judge_together(measured, size, delta=delta, known=known)  # none, where seeds are too few for a group
        for truth in ("suppressed", "removed") if judged else ():
            of = Counter(j.decision.answer for j in judged if j.truth == truth)
            row: dict[str, Any] = {"seeds": size, "truth": truth, "n": sum(of.values())}
            for answer in ("present", "conditional", "removed", "inconclusive"):
                p = proportion(of[answer], sum(of.values()))
                row |= {answer: p.share, f"{answer}_low": p.low, f"{answer}_high": p.high}
            rows.append(row)
    return pd.DataFrame(rows)
