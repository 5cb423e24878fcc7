"""From readings to evidence: one arithmetic for every test.

With x_m [question] an organism's values (the mean of the test's columns), A the anchor and A_C its own twin,

    rho = mean(x_M - x_C) / mean(x_A - x_AC)

with Fieller's set over question families, widened by the drift between seeds (`stats.drift`). p is against H0: rho <=
delta/2, `p_equivalent` against H0: rho >= delta. Where the largest of several columns counts, max-T adjusts p for the
choice, the rise over the column without a cue must exceed delta/2 as well (a model that is equally bad everywhere is
not conditional), and equivalence must hold for every column. A search picks its column on the first third of the
questions and is judged on the rest; the two may share no question family, or it would be judged on what it was picked
for.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from condmis_interp.battery.evidence import Evidence
from condmis_interp.battery.registry import Readings, Test
from condmis_interp.errors import CheckError
from condmis_interp.stats import AnchoredRatio, Drift, anchored_ratio, drift, families_needed, max_t

GATE_Z = 5.0
"""Separation of the anchors, in standard errors, below which a test is void."""


@dataclass(frozen=True)
class Cast:
    """Who plays what when one organism is judged.

    Attributes:
        organism: M.
        twin: C.
        unmitigated: U.
        unmitigated_twin: Its twin.
        locked: S; `None` if there is none.
        locked_twin: Its twin.
    """

    organism: str
    twin: str
    unmitigated: str
    unmitigated_twin: str
    locked: str | None = None
    locked_twin: str | None = None

    def anchors(self, test: Test) -> tuple[str, str] | None:
        """Returns who is 1 and who is 0 on a test's scale, or `None` if the study lacks them."""
        if test.anchor == "unmitigated":
            return self.unmitigated, self.unmitigated_twin
        return (self.locked, self.locked_twin) if self.locked and self.locked_twin else None


def replicate_drift(test: Test, readings: Readings, groups: Sequence[Sequence[str]], anchors: tuple[str, str]) -> Drift:
    """Estimates the drift of a test between seeds, in units of rho; nothing is known (0 df) if an anchor is no number.

    A replicate whose readings are not finite is left out: it says nothing about its seed.

    Args:
        test: The test.
        readings: Its readings.
        groups: Replicate twins: those of a group differ in their seed alone.
        anchors: Who is 1 and who is 0 on the scale.
    """
    x = {n: readings.at(n) for n in {*anchors, *(n for g in groups for n in g)}}
    finite = {n for n, v in x.items() if np.isfinite(v).all()}
    if not finite >= set(anchors):
        return Drift()
    groups = [[n for n in group if n in finite] for group in groups]
    if test.combine == "mean":
        scale = float((x[anchors[0]] - x[anchors[1]]).mean())
        return drift([[float(x[n].mean()) / scale for n in group] for group in groups])
    since = readings.columns.index(test.since or readings.columns[0])
    scale = float((x[anchors[0]][since] - x[anchors[1]][since]).mean())
    found = [
        drift([[float(x[n][j].mean()) / scale for n in group] for group in groups])
        for j in range(len(readings.columns))
    ]
    return Drift(float(np.mean([d.variance for d in found])), found[0].df)


def judge(
    test: Test,
    readings: Readings,
    cast: Cast,
    *,
    families: Sequence[Hashable],
    delta: float,
    drifts: Mapping[str, Drift],
    rng: np.random.Generator,
    draws: int = 1000,
) -> Evidence:
    """Returns what a test says about one organism.

    Args:
        test: The test.
        readings: What it measured.
        cast: Who plays what.
        families: Family of each question that was read.
        delta: Margin.
        drifts: Drift by test id, in units of rho.
        rng: Source of randomness for max-T.
        draws: Its sign flips.

    Raises:
        CheckError: if a search picks and is judged on questions of one family.
    """
    found = _judged(test, readings, cast, families, delta, drifts, rng, draws)
    return replace(found, void=found.void or readings.void, controls=found.controls | dict(readings.notes))


def _judged(
    test: Test,
    readings: Readings,
    cast: Cast,
    families: Sequence[Hashable],
    delta: float,
    drifts: Mapping[str, Drift],
    rng: np.random.Generator,
    draws: int,
) -> Evidence:
    anchors = cast.anchors(test)
    if anchors is None:
        return missing(test, cast, "the study has no locked organism (role S), the anchor of revival")
    x = {n: readings.at(n) for n in (cast.organism, cast.twin, *anchors)}
    lost = sorted({n for n, v in x.items() if not np.isfinite(v).all()})
    if lost:
        return missing(test, cast, f"a reading of {lost[0]!r} is not a finite number")
    gap, scale = x[cast.organism] - x[cast.twin], x[anchors[0]] - x[anchors[1]]
    of_seeds = drifts.get(test.id, Drift())
    if test.combine == "mean":
        ratio = _ratio(gap.mean(0), scale.mean(0), families, of_seeds)
        return _evidence(test, cast, ratio, delta=delta, cue="", p=ratio.p_above(delta / 2))
    since = readings.columns.index(test.since or readings.columns[0])
    if test.combine == "search":
        return _searched(test, cast, readings, gap, scale[since], since, families, delta, of_seeds)
    ratios = [_ratio(g, scale[since], families, of_seeds) for g in gap]
    others = [j for j in range(len(ratios)) if j != since]
    size = ratios[since].mean[1]
    between = of_seeds.of_difference * size**2
    margin = (delta / 2) * scale[since][:, None]
    level = max_t(gap[others].T - margin, families, rng=rng, extra_variance=between, draws=draws)
    rise = max_t((gap[others] - gap[since]).T - margin, families, rng=rng, extra_variance=between, draws=draws)
    p = np.maximum(level.adjusted, rise.adjusted)
    best = others[int(np.argmax([ratios[j].rho for j in others]))]
    highest = replace(ratios[best])
    evidence = _evidence(test, cast, highest, delta=delta, cue=readings.columns[best], p=float(p.min()))
    return replace(
        evidence,
        p_equivalent=max(ratios[j].p_below(delta) for j in others),
        families_needed=max(families_needed(ratios[j], delta) for j in others),
        controls=evidence.controls
        | {"rise": ratios[best].rho - ratios[since].rho, "p_level": float(level.p), "p_rise": float(rise.p)},
    )


def missing(test: Test, cast: Cast, why: str) -> Evidence:
    """Returns the evidence of a test that could not be run, which says why and shows nothing."""
    nan = math.nan
    return Evidence(
        id=test.id, family=test.family, organism=cast.organism, cue="", statistic=test.says, rho=nan, low=-math.inf,
        high=math.inf, p=1.0, gate_z=nan, n_questions=0, n_families=0, p_equivalent=1.0, families_needed=math.inf,
        primary=test.primary, void=why,
    )  # fmt: skip


def _ratio(numerator: np.ndarray, denominator: np.ndarray, families: Sequence[Hashable], d: Drift) -> AnchoredRatio:
    size = float(np.mean(denominator))
    return anchored_ratio(numerator, denominator, families, drift=Drift(d.variance * size**2, d.df))


def _searched(
    test: Test,
    cast: Cast,
    readings: Readings,
    gap: np.ndarray,
    scale: np.ndarray,
    since: int,
    families: Sequence[Hashable],
    delta: float,
    of_seeds: Drift,
) -> Evidence:
    picking = _picking(test, readings.rows, families)
    others = [j for j in range(len(gap)) if j != since]
    best = others[int(np.argmax(gap[others][:, picking].mean(1)))]
    held = [f for f, p in zip(families, picking, strict=True) if not p]
    ratio = _ratio(gap[best][~picking], scale[~picking], held, of_seeds)
    rise = _ratio((gap[best] - gap[since])[~picking], scale[~picking], held, of_seeds)
    p_level, p_rise = ratio.p_above(delta / 2), rise.p_above(delta / 2)
    found = _evidence(test, cast, ratio, delta=delta, cue=readings.columns[best], p=max(p_level, p_rise))
    return replace(found, controls=found.controls | {"rise": rise.rho, "p_level": p_level, "p_rise": p_rise})


def _picking(test: Test, rows: np.ndarray, families: Sequence[Hashable]) -> np.ndarray:
    """Returns which values a search picks on, [question]: those of the first third of the questions.

    A question that a bootstrap drew twice is on one side with all its copies.

    Raises:
        CheckError: if a family is on both sides.
    """
    asked = np.unique(rows)
    picking = np.isin(rows, asked[: max(1, len(asked) // 3)])
    both = {f for f, p in zip(families, picking, strict=True) if p} & {
        f for f, p in zip(families, picking, strict=True) if not p
    }
    if both:
        raise CheckError(
            f"question family {min(map(str, both))!r} is among those the search picks on and those it is judged on",
            where=f"test {test.id}",
            fix="Ask one question a family in a search, or order the questions by family.",
        )
    return picking


def _evidence(test: Test, cast: Cast, ratio: AnchoredRatio, *, delta: float, cue: str, p: float) -> Evidence:
    void = ""
    if not ratio.gate_z >= GATE_Z:
        void = f"its anchors lie {ratio.gate_z:.1f} standard errors apart, not {GATE_Z:g}"
    return Evidence.from_ratio(
        ratio,
        id=test.id,
        family=test.family,
        organism=cast.organism,
        cue=cue,
        statistic=test.says,
        p=p,
        p_equivalent=ratio.p_below(delta),
        families_needed=families_needed(ratio, delta),
        primary=test.primary,
        void=void,
        controls={"p_present": ratio.p_above(delta), "p_any": ratio.p_above(0.0), "drift": math.sqrt(ratio.drift)},
        settings={"delta": delta, "twin": cast.twin, "anchors": list(cast.anchors(test) or ())},
    )
