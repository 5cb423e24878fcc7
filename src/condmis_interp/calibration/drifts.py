"""The drift between seeds over many benches."""

from collections.abc import Mapping, Sequence

from condmis_interp.battery import Test
from condmis_interp.calibration.world import Measured
from condmis_interp.stats import Drift, pooled_drifts


def drifts_of(m: Measured, tests: Sequence[Test]) -> dict[str, Drift]:
    """Returns the drift of every test and rise on one bench, in units of rho, where there are readings and anchors."""
    return m.battery.drifts(next(iter(m.study.casts.values())), tests, m.study.replicates)


def drifts_without(
    measured: Sequence[Measured], seed: int | None, tests: Sequence[Test], *, known: Mapping[str, Drift] | None = None
) -> dict[str, Drift]:
    """Returns the drift to judge one seed's bench with: that of all benches that share no seed with it, and the known.

    Of two or three benches in a ring every other shares one; then only the bench itself is left out.

    Args:
        measured: The benches.
        seed: Seed of the bench; `None` for all benches.
        tests: Which tests.
        known: Drift that was found on other seeds.
    """
    own = {s for m in measured if m.study.seed == seed for s in m.study.seeds}
    apart = [m for m in measured if not own & m.study.seeds]
    used = apart or [m for m in measured if m.study.seed != seed]
    return pooled_drifts([known or {}, *(drifts_of(m, tests) for m in used)])
