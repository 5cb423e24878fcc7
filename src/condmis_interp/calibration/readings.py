"""A calibration's readings in one small file, so that known answers can be judged again without any model.

gzip'd JSON, values to 7 significant digits as pieces hold them:

    {"schema": 1, "families": [...], "benches": [{"seed", "others", "replicates", "crashed",
        "cases": [{"name", "truth", "family", "seed", "setting", "cast": {...}, "assay": {part: name}}],
        "readings": {test: {"names", "columns", "values" [organism][column][question], "rows", "notes", "void"}}}]}
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from condmis_interp.battery import Battery, Cast, Readings
from condmis_interp.calibration.world import Case, KnownAnswer, KnownBench, Measured
from condmis_interp.errors import UserError
from condmis_interp.files import whole_file

SCHEMA = 1


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
    cases = [vars(c.member) | {"cast": vars(c.cast), "assay": dict(c.assay)} for c in m.study.cases]
    about = {"seed": m.study.seed, "others": list(m.study.others), "cases": cases}
    about |= {"replicates": [list(g) for g in m.study.replicates], "crashed": dict(m.battery.crashed)}
    return about | {"readings": {test: r.to_json() for test, r in m.battery.readings.items()}}


def _measured(bench: Mapping[str, Any], families: tuple[str, ...]) -> Measured:
    cases = tuple(
        Case(
            KnownAnswer(**{k: c[k] for k in ("name", "truth", "family", "seed", "setting")}),
            Cast(**c["cast"]),
            c["assay"],
        )
        for c in bench["cases"]
    )
    known = KnownBench(bench["seed"], tuple(bench["others"]), cases, tuple(tuple(g) for g in bench["replicates"]))
    readings = {test: Readings.from_json(r) for test, r in bench["readings"].items()}
    return Measured(known, Battery(readings, bench["crashed"], families))
