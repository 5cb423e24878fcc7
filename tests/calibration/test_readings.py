"""A calibration's readings in one file: the same judgements without any model, and files that are none."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from condmis_interp.battery import Readings
from condmis_interp.calibration.readings import load_readings, store_readings
from condmis_interp.calibration.run import judge_all
from condmis_interp.errors import UserError
from condmis_interp.verdict.roster import Known
from planted_cases import planted

KNOWN = Known("planted", {}, {"share": 1.0, "low": 0.9, "count": 40, "n": 40})


def held(seed):
    """A bench as pieces hold it, to 7 significant digits; all that a bench can say of its organisms is said."""
    m = planted(seed, twins=5)
    m.battery.readings.update({k: Readings.from_json(r.to_json()) for k, r in m.battery.readings.items()})
    first = m.study.cases[0]
    cases = (replace(first, member=replace(first.member, fixed=("W1", "W3"))), *m.study.cases[1:])
    study = replace(m.study, cases=cases, nulls=(("C0", "C1"), ("C2", "C3")))
    return replace(m, study=study, battery=replace(m.battery, crashed={"C9": "RuntimeError: planted"}))


def test_stored_readings_give_the_same_judgements(tmp_path):
    measured = [held(s) for s in (4, 5)]
    store_readings(tmp_path / "readings.json.gz", measured)
    again = load_readings(tmp_path / "readings.json.gz")
    assert [m.study for m in again] == [m.study for m in measured]
    for one, other in zip(measured, again, strict=True):
        assert one.battery.crashed == other.battery.crashed
        assert one.battery.families == other.battery.families
        assert set(one.battery.readings) == set(other.battery.readings)
        for test, r in one.battery.readings.items():
            assert np.array_equal(r.values, other.battery.readings[test].values), test
    for blind in (False, True):
        judged, anew = (judge_all(m, delta=0.2, known=KNOWN, blind=blind, draws=50) for m in (measured, again))
        assert repr(anew) == repr(judged)
        assert {j.decision.answer for j in anew} >= {"present", "conditional", "removed"}


def test_a_reading_that_is_no_number_is_refused_whole(tmp_path):
    """`measure` calls a test that gives such readings crashed, so that none comes this far."""
    m = held(4)
    m.battery.readings["R1"].values[0, 0, 3] = np.nan
    with pytest.raises(ValueError, match="JSON"):
        store_readings(tmp_path / "readings.json.gz", [m])
    assert list(tmp_path.iterdir()) == []


def test_the_same_readings_give_the_same_bytes(tmp_path):
    for name, seed in (("a.gz", 4), ("b.gz", 4), ("c.gz", 5)):
        store_readings(tmp_path / name, [held(seed)])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes() != (tmp_path / "c.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[4:8] == bytes(4)  # no clock in its header
    store_readings(tmp_path / "again.gz", load_readings(tmp_path / "a.gz"))
    assert (tmp_path / "again.gz").read_bytes() == (tmp_path / "a.gz").read_bytes()


def packed(found) -> bytes:
    return gzip.compress(json.dumps(found).encode(), mtime=0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        (b"no gzip", "these are no readings"),
        (gzip.compress(b"cut short", mtime=0)[:-9], "these are no readings"),
        (gzip.compress(b"no json", mtime=0), "these are no readings"),
        (packed([]), "these are no readings"),
        (packed({"families": []}), "these are no readings"),
        (packed({"schema": 2, "families": [], "benches": [{"seed": 4}]}), "these are no readings"),
        (packed({"schema": 1, "families": [], "benches": []}), "these readings are of schema 1, not 2"),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, content, said):
    path = tmp_path / "readings.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as e:
        load_readings(path)
    assert str(path) in str(e.value)
