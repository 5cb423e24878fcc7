"""The size of every test: benign twins judged against their fellows.

Replicate twins differ in rows, order and seed alone, so nothing is to be found between one and the mean of the others.
Each goes through the path by which an organism is judged (`battery.judge`: max-T, the search, the drift), at a margin
of 0, where H0: rho <= 0 is true to its edge and a test of 5 % should reject 5 % of the time.

Where a worst cue counts, the rule asks for two things, a level above the bound *and* a rise over no cue; `level` and
`rise` are the rates of each alone. Both together can only be rarer.

Twins of one bench are not independent: they share anchors, and each is part of the others' mean. With e_i the residual
of twin i and s_b their sum over bench b, the variance of a rate over n twins of B benches is

    V = B / (B - 1) * sum_b s_b^2 / n^2,

at least that of independent twins, and the interval is Clopper and Pearson's at the number of independent twins with
that variance (Korn & Graubard 1998).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from condmis_interp.battery import Test
from condmis_interp.calibration.known import Measured
from condmis_interp.calibration.run import drifts_without
from condmis_interp.progress import progress
from condmis_interp.stats import Drift
from condmis_interp.verdict.judge import Judge
from condmis_interp.verdict.roster import Known

DRAWS = 1000
LEVEL = 0.05


@dataclass(frozen=True)
class Rate:
    """How often a test rejects between twins.

    Attributes:
        share: Rejections over twins.
        low: Lower end of its 95 % interval.
        high: Upper end.
        twins: Twins.
        benches: Benches they are from.
        effective: Independent twins that would tell as much.
    """

    share: float
    low: float
    high: float
    twins: int
    benches: int
    effective: float


def twin_p_values(
    measured: Sequence[Measured], tests: Sequence[Test], *, known: Mapping[str, Drift] | None = None, draws: int = DRAWS
) -> pd.DataFrame:
    """Judges every replicate twin against the others of its recipe at a margin of 0.

    Args:
        measured: The benches; those of other seeds are what the drift is known from, besides the bench's own twins.
        tests: Which tests.
        known: Drift that was found on other seeds.
        draws: Sign flips of max-T.

    Returns:
        One row for each test and twin: test, bench, twin, p, p_level, p_rise (NaN where a test has neither), void.
    """
    rows = []
    with progress("judging twins", len(measured), unit="benches") as step:
        for m in measured:
            drifts = drifts_without(measured, m.study.seed, tests, known=known)
            twins = {n for group in m.study.replicates for n in group}
            judge = Judge(m.asked(""), m.roster, tests, 0.0, Known("", drifts), m.study.seed, draws)
            for case in (c for c in m.study.cases if c.cast.organism in twins and c.member.truth == "benign"):
                for e in judge.open(case.member.name).evidence:
                    parts = {k: e.controls.get(k, math.nan) for k in ("p_level", "p_rise")}
                    about = {"test": e.id, "bench": m.study.seed, "twin": case.member.name}
                    rows.append(about | {"p": e.p} | parts | {"void": e.void})
            step()
    return pd.DataFrame(rows)


def null_rates(found: pd.DataFrame, *, level: float = LEVEL) -> dict[str, dict[str, Rate]]:
    """Returns every test's rate of rejection between twins, by test and part (`p`, `p_level`, `p_rise`).

    Void ones are left out.
    """
    rates: dict[str, dict[str, Rate]] = {}
    for test, all_ in found.groupby("test", sort=False):
        own: Any = all_[all_.void == ""]
        rates[str(test)] = {
            part: rate_of((own[part] < level).to_numpy(dtype=float), own.bench.tolist())
            for part in ("p", "p_level", "p_rise")
            if len(own) and own[part].notna().all()
        }
    return rates


def rate_of(rejected: np.ndarray, benches: Sequence[int]) -> Rate:
    """Returns a rate with its interval, benches being the clusters.

    Args:
        rejected: 0 or 1 for each twin.
        benches: The bench of each.
    """
    n, share = len(rejected), float(rejected.mean())
    of = np.asarray(benches)
    sums = np.array([(rejected - share)[of == bench].sum() for bench in np.unique(of)])
    b = len(sums)
    variance = max(b / (b - 1) * float((sums**2).sum()) / n**2 if b > 1 else 0.0, share * (1 - share) / n)
    effective = min(share * (1 - share) / variance if variance > 0 else n, n)
    hits = share * effective
    low = float(stats.beta.ppf(0.025, hits, effective - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, effective - hits)) if hits < effective else 1.0
    return Rate(share, low, high, n, b, effective)
