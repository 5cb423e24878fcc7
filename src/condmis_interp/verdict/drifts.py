"""The drift between seeds over many benches."""

from collections.abc import Iterable, Mapping, Sequence

from condmis_interp.battery import Test, replicate_drift
from condmis_interp.stats import Drift
from condmis_interp.verdict.known_cases import Measured


def drifts_of(m: Measured, tests: Sequence[Test]) -> dict[str, Drift]:
    """Returns the drift of every test on one bench, in units of rho; tests without readings or anchors are left out."""
    cast, found = next(iter(m.study.casts.values())), {}
    for test in tests:
        anchors = cast.anchors(test)
        if anchors is not None and test.id in m.battery.readings:
            found[test.id] = replicate_drift(test, m.battery.readings[test.id], m.study.replicates, anchors)
    return found


def pooled(parts: Iterable[Mapping[str, Drift]]) -> dict[str, Drift]:
    """Pools drifts over benches, weighted by their degrees of freedom; one that nothing is known of is left out."""
    squares: dict[str, float] = {}
    df: dict[str, int] = {}
    for part in parts:
        for test, d in part.items():
            squares[test] = squares.get(test, 0.0) + d.variance * d.df
            df[test] = df.get(test, 0) + d.df
    return {test: Drift(squares[test] / n, n) for test, n in df.items() if n}


def drifts_without(measured: Sequence[Measured], seed: int | None, tests: Sequence[Test]) -> dict[str, Drift]:
    """Returns the drift to judge one seed's bench with: that of all benches that share no seed with it.

    Of two or three benches in a ring every other shares one; then only the bench itself is left out.

    Args:
        measured: The benches.
        seed: Seed of the bench; `None` for all benches.
        tests: Which tests.
    """
    own = {s for m in measured if m.study.seed == seed for s in m.study.seeds}
    apart = [m for m in measured if not own & m.study.seeds]
    return pooled(drifts_of(m, tests) for m in apart or [m for m in measured if m.study.seed != seed])
