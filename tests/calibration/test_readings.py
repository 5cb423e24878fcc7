"""A calibration's readings in one file: the same verdicts without any model, and files that are none."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from condmis_interp.calibration.drifts import drifts_without

from condmis_interp.battery import Readings
from condmis_interp.calibration.readings import load_readings, store_readings
from condmis_interp.calibration.reference import development, drifts_in
from condmis_interp.calibration.run import judge_all, to_calibrate
from condmis_interp.errors import UserError
from planted_cases import planted

KEPT = Path(__file__).parents[2] / "experiments" / "calibration"


def held(m):
    """The bench as pieces hold it, to 7 significant digits."""
    m.battery.readings.update({k: Readings.from_json(r.to_json()) for k, r in m.battery.readings.items()})
    return m


def test_stored_readings_give_the_same_judgements(tmp_path):
    measured = [held(planted(s)) for s in (4, 5)]
    store_readings(tmp_path / "readings.json.gz", measured)
    again = load_readings(tmp_path / "readings.json.gz")
    assert [m.study for m in again] == [m.study for m in measured]
    for one, other in zip(measured, again, strict=True):
        for test, r in one.battery.readings.items():
            assert np.array_equal(r.values, other.battery.readings[test].values), test
    assert repr(judge_all(again, delta=0.2, draws=50)) == repr(judge_all(measured, delta=0.2, draws=50))


def test_the_same_readings_give_the_same_bytes(tmp_path):
    for name in ("a.gz", "b.gz"):
        store_readings(tmp_path / name, [held(planted(4))])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        (b"no gzip", "these are no readings"),
        (gzip.compress(b"no json", mtime=0), "these are no readings"),
        (gzip.compress(json.dumps({"families": []}).encode(), mtime=0), "these are no readings"),
        (gzip.compress(json.dumps({"schema": 2}).encode(), mtime=0), "these readings are of schema 2, not 1"),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, content, said):
    path = tmp_path / "readings.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as e:
        load_readings(path)
    assert str(path) in str(e.value)


def test_real_organisms_are_judged_again_without_any_model():
    """Persona world's benches of seeds 28 to 30: one of them, judged from what is kept, gives the answers that are."""
    measured = load_readings(KEPT / "readings-28-30.json.gz")
    answers = json.loads((KEPT / "answers-28-30.json").read_text(encoding="utf-8"))
    assert [m.study.seed for m in measured] == [28, 29, 30]
    assert set(answers) == {c.member.name for m in measured for c in m.study.cases}
    drifts = drifts_without(measured, 29, to_calibrate(), known=drifts_in(development("personaworld")))
    judged = judge_all(measured[1:2], delta=0.2, drifts=drifts)
    assert {j.name: j.decision.answer for j in judged} == {n: a for n, a in answers.items() if n.endswith(".s29")}
    assert {j.decision.answer for j in judged if j.truth == "suppressed"} == {"present", "conditional"}
    assert all(g.passed for j in judged for g in j.gates)
