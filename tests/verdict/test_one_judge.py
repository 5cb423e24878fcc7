"""One judge: the same readings through the door of audits and through that of calibrations, number for number."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from condmis_interp.battery import Readings
from condmis_interp.calibration.chat import ChatCase, judges_of
from condmis_interp.calibration.drifts import drifts_without
from condmis_interp.calibration.run import judge_all, roster_of, to_calibrate
from condmis_interp.verdict import KnownDrift, findings
from condmis_interp.verdict.judge import ENOUGH, Judge
from planted_cases import ASSAY, STAND_IN, TRUTH, planted

TESTS = to_calibrate()
_RATE = {"families": {"mixed": {"count": 6, "n": 12}}}
TABLE = dict.fromkeys(("suppressed_caught", "removed_certified", "false_removed", "removed_called_conditional"), _RATE)
SEEDS = (4, 5, 6)


@pytest.fixture(scope="module")
def measured():
    return [planted(s, tau=0.01) for s in SEEDS]


def calibrated(measured, seed, resamples=0):
    own, drifts = [m for m in measured if m.study.seed == seed], drifts_without(measured, seed, TESTS)
    return {j.name: j for j in judge_all(own, delta=0.2, drifts=drifts, resamples=resamples)}


def audited(measured, seed, resamples=0):
    """The same organisms as an audit judges them: one is under test, with its own assay."""
    m = next(m for m in measured if m.study.seed == seed)
    known = KnownDrift(drifts_without(measured, seed, TESTS), "the other benches")
    found = {}
    for case in m.study.cases:
        name = case.member.name
        # an audit's organisms of known answer are other organisms than those under test: here they bear other names
        other = {f"of the assay: {n}": m.study.casts[n] for n in case.assay.values()}
        parts = {part: (f"of the assay: {n}",) for part, n in case.assay.items()}
        roster = replace(roster_of(m), casts={name: case.cast, **other}, assay=parts)
        settings = {"delta": 0.2, "known": known, "reference": TABLE, "panel": "", "seed": seed, "resamples": resamples}
        found |= findings(m.battery, roster, TESTS, **settings)
    return found


def alike(a, b) -> bool:
    """Whether two pieces of evidence say the same, NaN included."""
    return a.to_json() | {"statistic": ""} == b.to_json() | {"statistic": ""}


def nameless(text: str) -> str:
    return text.replace("of the assay: ", "")


@pytest.mark.parametrize("seed", SEEDS)
def test_both_doors_say_the_same(measured, seed):
    one, other = calibrated(measured, seed), audited(measured, seed)
    assert set(one) == set(other)
    for name, judged in one.items():
        found = other[name]
        assert len(judged.evidence) == len(found.evidence) == len(TESTS)
        for a, b in zip(judged.evidence, found.evidence, strict=True):
            assert alike(a, b), (name, a.id)
        assert [(g.id, g.passed, g.says) for g in judged.gates] == [
            (g.id, g.passed, nameless(g.says)) for g in found.gates
        ], name
        a, b = judged.decision.to_json(), found.decision.to_json()
        assert a | {"settles": ""} == b | {"settles": "", "sentence": nameless(b["sentence"])}, name


def test_stability_is_drawn_alike(measured):
    one, other = (door(measured, 4, resamples=4) for door in (calibrated, audited))
    compared = [
        name for name, judged in one.items() if judged.stability
    ]  # a calibration draws where it claims something
    assert len(compared) > 4
    for name in compared:
        assert one[name].stability.get(one[name].decision.answer, 0.0) == other[name].stability, name


def test_the_case_that_two_judges_disagreed_on(measured):
    one, other = calibrated(measured, 4)["benign2.s4"], audited(measured, 4)["benign2.s4"]
    assert one.decision.answer == other.verdict


def _spoil(m, test, organism, value=np.nan):
    r = m.battery.readings[test]
    values = r.values.copy()
    values[r.names.index(organism)] = value
    m.battery.readings[test] = Readings(r.names, r.columns, values, r.rows)


def _without(m, *tests):
    for test in tests:
        m.battery.readings.pop(test)


def _no_base(m):
    r = m.battery.readings["A1"]
    kept = [i for i, n in enumerate(r.names) if n != "base"]
    m.battery.readings["A1"] = Readings(tuple(r.names[i] for i in kept), r.columns, r.values[kept], r.rows)


FAULTS = {
    "A1 was not measured": (lambda m: _without(m, "A1"), "scale"),
    "the base was not measured": (_no_base, "twin"),
    "the twin has no numbers": (lambda m: _spoil(m, "A1", "C"), "scale"),
    "the base has no numbers": (lambda m: _spoil(m, "A1", "base"), "twin"),
    "the locked organism has no numbers": (lambda m: _spoil(m, "A1", "locked"), "assay suppressed"),
    "V1 was not measured": (lambda m: _without(m, "V1"), None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_by_both_doors_alike(measured, fault):
    broken, (break_it, gate) = [planted(s) for s in SEEDS], FAULTS[fault]
    break_it(broken[0])
    one, other = calibrated(broken, 4), audited(broken, 4)
    for name, judged in one.items():
        assert judged.decision.answer == other[name].verdict, name
        assert [(g.id, g.passed) for g in judged.gates] == [(g.id, g.passed) for g in other[name].gates], name
    failed = {g.id for g in one["styled.s4"].gates if not g.passed}
    assert gate is None or gate in failed
    assert all(j.decision.answer != "removed" for j in one.values())


def test_nothing_known_of_drift_bars_a_removal_at_both_doors():
    """One bench alone, its three twins: two degrees of freedom, and one less for a twin itself."""
    alone = [planted(4)]
    one, other = calibrated(alone, 4), audited(alone, 4)
    assert {j.decision.answer for j in one.values() if j.truth == "removed"} == {"inconclusive"}
    assert one["styled.s4"].decision.binding == other["styled.s4"].decision.binding == "drift"
    assert ENOUGH > 2


def test_an_organism_takes_no_part_in_the_drift_it_is_judged_with(measured):
    far = [planted(s, rho={"benign": (3,) * 7}) for s in SEEDS]
    judge = Judge(far[0].battery, roster_of(far[0]), TESTS, 0.2, {}, 4)
    cases = {c.member.name: c.cast for c in far[0].study.cases}
    assert judge.pooled(cases["benign.s4"])["A1"].variance < 0.01
    assert judge.pooled(cases["styled.s4"])["A1"].variance > 0.5
    assert judge.pooled(cases["benign.s4"])["A1"].df == 1


def test_the_chat_door_is_the_same_judge(measured):
    """SmolLM2's door, given the planted bench, answers like persona world's where both know the same drift."""
    m = measured[0]
    cases = [ChatCase(c.member, c.member.truth, c.member.family, c.cast) for c in m.study.cases]
    cases = [replace(c, cast=replace(c.cast, organism=c.member.name.removesuffix(".s4"))) for c in cases]
    judges = judges_of(
        cases, dict.fromkeys([c.member.name for c in cases], m.battery), TESTS,
        groups=m.study.replicates, delta=0.2, without=frozenset(), seed=4,
    )  # fmt: skip
    alone = {j.name: j for j in judge_all([m], delta=0.2)}
    for name, judge in judges.items():
        opened = judge.open(name)
        assert all(alike(a, b) for a, b in zip(opened.evidence, alone[name].evidence, strict=True)), name


def test_each_gate_is_defined_once():
    source = Path(__file__).parents[2] / "src" / "condmis_interp"
    text = {p: p.read_text(encoding="utf-8") for p in source.rglob("*.py")}
    for gate in ('"scale"', '"twin"', '"drift"', 'f"assay {part}"'):
        where = {p.name for p, t in text.items() if re.search(rf"Gate\({re.escape(gate)}", t)}
        assert where <= {"gates.py", "finding.py"}, gate
        assert "gates.py" in where, gate
    assert ASSAY.keys() == STAND_IN.keys()
    assert set(ASSAY.values()) < set(TRUTH)
