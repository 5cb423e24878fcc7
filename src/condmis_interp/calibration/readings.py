"""A calibration's readings in one small file, so that known answers can be judged again without any model.

gzip'd JSON, values to 7 significant digits as pieces hold them. A bench is what `KnownBench` says, under the same
names, with `crashed` and `readings` by test.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from condmis_interp.battery import Battery, Cast, Readings
from condmis_interp.battery.coverage import Coverage
from condmis_interp.calibration.known import Case, KnownAnswer, KnownBench, Measured
from condmis_interp.errors import UserError
from condmis_interp.files import whole_file

SCHEMA = 2


def store_readings(path: Path, measured: Sequence[Measured]) -> None:
    """Writes the readings of all benches; the same readings give the same bytes.

    Args:
        path: The file, `readings.json.gz`.
        measured: The benches, of one panel.
    """
    found = {"schema": SCHEMA, "families": list(measured[0].battery.families), "benches": [_bench(m) for m in measured]}
    text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    with whole_file(path) as part:
        part.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def load_readings(path: Path) -> list[Measured]:
    """Reads what `store_readings` wrote.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        if found["schema"] != SCHEMA:
            raise UserError(f"these readings are of schema {found['schema']}, not {SCHEMA}", where=str(path))
        return [_measured(bench, tuple(found["families"])) for bench in found["benches"]]
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as e:
        fix = "Give the readings.json.gz of a calibration."
        raise UserError(f"these are no readings ({type(e).__name__}: {e})", where=str(path), fix=fix) from None


def _bench(m: Measured) -> dict[str, Any]:
    s = m.study
    return {
        "seed": s.seed,
        "cues": list(s.cues),
        "cases": [asdict(c.member) | {"cast": asdict(c.cast), "controls": dict(c.controls)} for c in s.cases],
        "checkpoints": dict(s.checkpoints),
        "replicates": s.replicates,
        "nulls": s.nulls,
        "coverage": {name: c.to_json() for name, c in s.coverage.items()},
        "sizes": {name: float(f"{size:.7g}") for name, size in s.sizes.items()},
        "crashed": dict(m.battery.crashed),
        "readings": {test: r.to_json() for test, r in m.battery.readings.items()},
    }


def _measured(bench: Mapping[str, Any], families: tuple[str, ...]) -> Measured:
    cases = []
    for c in bench["cases"]:
        about: dict[str, Any] = {k: v for k, v in c.items() if k not in ("cast", "controls")}
        about["fixed"] = tuple(about["fixed"])
        member = KnownAnswer(**about)
        controls = {part: tuple(names) for part, names in c["controls"].items()}
        cases.append(Case(member, Cast(**c["cast"]), controls))
    known = KnownBench(
        seed=bench["seed"],
        cues=tuple(bench["cues"]),
        cases=tuple(cases),
        checkpoints={name: tuple(own) for name, own in bench["checkpoints"].items()},
        replicates=tuple(map(tuple, bench["replicates"])),
        nulls=tuple(map(tuple, bench["nulls"])),
        coverage={
            name: Coverage(c["changed"], {t: tuple(r) for t, r in c["read"].items()})
            for name, c in bench["coverage"].items()
        },
        sizes=bench["sizes"],
    )
    readings = {test: Readings.from_json(r) for test, r in bench["readings"].items()}
    return Measured(known, Battery(readings, bench["crashed"], families))
