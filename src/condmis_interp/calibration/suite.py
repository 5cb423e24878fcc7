"""Which known answers a base has, on which seeds, and their benches measured."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from condmis_interp.battery import measure
from condmis_interp.calibration.known import Measured
from condmis_interp.calibration.run import to_calibrate
from condmis_interp.calibration.world import FAMILIES, Bench, world_bench
from condmis_interp.errors import UserError
from condmis_interp.progress import progress
from condmis_interp.store import Pieces

DEVELOPMENT: Mapping[str, tuple[int, ...]] = {"personaworld": (41, 42, 43, 44)}
"""Seeds on which tests, families and the plan were chosen, by base; never part of a reported calibration."""
CALIBRATION: Mapping[str, tuple[int, ...]] = {"personaworld": tuple(range(50, 58))}
"""Seeds of the reported calibration, by base."""
_BENCHES: Mapping[str, tuple[Callable[[int], Bench], tuple[str, ...]]] = {"personaworld": (world_bench, FAMILIES)}


def families_of(base: str) -> tuple[str, ...]:
    """Returns the construction families of a base's known answers.

    Raises:
        UserError: if there are none.
    """
    return _known(base)[1]


def measure_seeds(base: str, seeds: Sequence[int], out: Path) -> list[Measured]:
    """Measures every seed's bench; goes on where it was.

    Args:
        base: Spec of the base.
        seeds: Seeds.
        out: Folder for finished pieces.

    Raises:
        UserError: if there are no known answers on the base.
    """
    build, found = _known(base)[0], []
    tests = to_calibrate()
    with progress("measuring benches", len(seeds) * len(tests), unit="tests") as step:
        for seed in seeds:
            made = build(seed)
            pieces = Pieces(out / "pieces", list(made.determined_by))
            found.append(Measured(made.known, measure(made.bench, made.reference, tests, pieces=pieces, step=step)))
    return found


def _known(base: str) -> tuple[Callable[[int], Bench], tuple[str, ...]]:
    if base not in _BENCHES:
        raise UserError(f"there are no known answers on {base!r}", fix=f"There are on {', '.join(_BENCHES)}.")
    return _BENCHES[base]
