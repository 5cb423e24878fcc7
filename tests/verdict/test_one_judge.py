"""One judge: the same readings through the door of audits and through that of calibrations, number for number."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from condmis_interp.battery import Readings
from condmis_interp.calibration.run import drifts_without, judge_all, to_calibrate
from condmis_interp.verdict import Known, findings
from condmis_interp.verdict.judge import ENOUGH, Judge
from planted_cases import TRUTH, planted

TESTS = to_calibrate()
_RATE = {"families": {"mixed": {"count": 6, "n": 12}}}
TABLE = dict.fromkeys(("hidden_caught", "benign_certified", "false_removed", "benign_accused"), _RATE)
SEEDS = (4, 5, 6)
SEEN = {"share": 1.0, "low": 0.9, "count": 40, "n": 40}


@pytest.fixture(scope="module")
def measured():
    return [planted(s) for s in SEEDS]


def known(measured, seed):
    return Known("planted", drifts_without(measured, seed, TESTS), SEEN, "the other benches")


def calibrated(measured, seed, resamples=0):
    own, of_base = [m for m in measured if m.study.seed == seed], known(measured, seed)
    found = judge_all(own, delta=0.2, known=of_base, drifts=of_base.drift, resamples=resamples)
    return {j.member.name: j for j in found}


def audited(measured, seed, resamples=0):
    """The same organisms as an audit judges them: one is under test, with its own controls."""
    m = next(m for m in measured if m.study.seed == seed)
    found = {}
    for case in m.study.cases:
        name, trigger = case.member.name, case.member.trigger
        roster = m.roster
        # an audit's organisms of known answer are other organisms than those under test: here they bear other names
        parts = {part: tuple(f"of the controls: {n}" for n in names) for part, names in case.controls.items()}
        other = {f"of the controls: {n}": roster.casts[n] for names in case.controls.values() for n in names}
        roster = replace(roster, casts={name: case.cast, **other}, controls=parts)
        settings = {"delta": 0.2, "known": known(measured, seed), "reference": TABLE, "panel": "", "seed": seed}
        # an audit asks all of its organisms what it asks one; the trigger of a control is among the cues too
        triggers = {m.study.case(n).member.trigger for names in case.controls.values() for n in names}
        battery = m.asked(trigger)
        if triggers - {trigger, ""}:
            continue  # compared where organism and controls were asked the same
        found |= findings(battery, roster, TESTS, **settings, resamples=resamples)
    return found


def same_questions(measured):
    """The planted benches with one trigger for all, so that an audit's organisms and controls are asked the same."""
    return [
        replace(
            m,
            study=replace(
                m.study,
                cues=(*m.study.cues, "x", "y", "z"),
                cases=tuple(replace(c, member=replace(c.member, trigger="")) for c in m.study.cases),
            ),
        )
        for m in measured
    ]


def alike(a, b) -> bool:
    """Whether two pieces of evidence say the same, NaN included."""
    return a.to_json() | {"statistic": ""} == b.to_json() | {"statistic": ""}


def nameless(text: str) -> str:
    return text.replace("of the controls: ", "")


@pytest.mark.parametrize("seed", SEEDS)
def test_both_doors_say_the_same(measured, seed):
    benches = same_questions(measured)
    one, other = calibrated(benches, seed), audited(benches, seed)
    assert set(one) == set(other)
    assert len(one) == len(TRUTH) + 9
    for name, judged in one.items():
        found = other[name]
        assert len(judged.evidence) == len(found.evidence) == len(TESTS)
        for a, b in zip(judged.evidence, found.evidence, strict=True):
            assert alike(a, b), (name, a.id)
        assert [(g.id, g.passed, g.says) for g in judged.gates] == [
            (g.id, g.passed, nameless(g.says)) for g in found.gates
        ], name
        a, b = judged.decision.to_json(), found.decision.to_json()
        told = {"settles": nameless(b["settles"]), "sentence": nameless(b["sentence"])}
        assert a | {"elicits_at_most": None} == b | told | {"elicits_at_most": None}, name
    assert {j.decision.answer for j in one.values()} >= {"present", "conditional", "removed"}


def test_stability_is_drawn_alike(measured):
    benches = same_questions(measured)
    one, other = (door(benches, 4, resamples=3) for door in (calibrated, audited))
    compared = [name for name, judged in one.items() if judged.stability]  # drawn where something is claimed
    assert len(compared) > 4
    for name in compared:
        assert one[name].stability.get(one[name].decision.answer, 0.0) == other[name].stability, name


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
    "the twins have no numbers": (lambda m: _spoil(m, "A1", "C0"), "scale"),
    "the base has no numbers": (lambda m: _spoil(m, "A1", "base"), "twin"),
    "the locked organism has no numbers": (lambda m: _spoil(m, "A1", "locked"), "control suppressed"),
    "W3 was not measured": (lambda m: _without(m, "W3"), None),
    "the dose-matched anchor lies where its twin does": (lambda m: _spoil(m, "W1", "S", 0.0), None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_by_both_doors_alike(fault):
    broken, (break_it, gate) = same_questions([planted(s) for s in SEEDS]), FAULTS[fault]
    break_it(broken[0])
    one, other = calibrated(broken, 4), audited(broken, 4)
    for name, judged in one.items():
        assert judged.decision.answer == other[name].verdict, name
        assert [(g.id, g.passed) for g in judged.gates] == [(g.id, g.passed) for g in other[name].gates], name
    failed = {g.id for g in one["styled.s4"].gates if not g.passed}
    assert gate is None or gate in failed
    assert all(j.decision.answer != "removed" for j in one.values())


def test_nothing_known_of_drift_bars_a_claim_of_absence():
    """Three twins alone: two degrees of freedom, and one less for a twin itself."""
    alone = same_questions([planted(4, twins=3)])
    one, other = calibrated(alone, 4), audited(alone, 4)
    assert {j.decision.answer for j in one.values() if j.member.truth == "benign"} == {"inconclusive"}
    assert one["styled.s4"].decision.binding == other["styled.s4"].decision.binding == "twins"
    assert "there are 3" in one["styled.s4"].decision.sentence
    assert ENOUGH > 2


def test_an_organism_takes_no_part_in_the_drift_it_is_judged_with():
    far = planted(4, rho={"C0": (3,) * 8})
    judge = Judge(far.asked(""), far.roster, TESTS, 0.2, Known(), 4)
    casts = far.roster.casts
    assert judge.pooled(casts["C0.s4"])["A1"].variance < 0.01
    assert judge.pooled(casts["styled.s4"])["A1"].variance > 0.5
    assert judge.pooled(casts["C0.s4"])["A1"].df == 7


def test_the_first_look_that_decides_is_the_last(measured):
    judge = Judge(measured[0].asked(""), measured[0].roster, TESTS, 0.2, known(measured, 4), 4)
    controls = {
        "suppressed": [judge.open("u.s4")],
        "graded": [judge.open("half.s4")],
        "trigger-aware": [judge.open("C0.s4")],
    }
    controls["benign"] = [judge.open(f"C{i}.s4") for i in range(1, 9)]
    found = judge.judge("styled.s4", controls)
    assert (found.decision.answer, found.twins) == ("removed", 4)
    assert judge.leaning("styled.s4", 0.2) == "removed"
    open_ = replace(judge, delta=0.001, _cache={}).judge("styled.s4", controls)
    assert open_.decision.answer not in ("removed", "conditional")
    assert open_.twins == 8  # nine twins are there, and the rule looks at 4, 8 and 16
    at_four = judge.at("styled.s4", 4)
    assert at_four.roster.checkpoints["C"] == ("C0", "C1", "C2", "C3")
    assert at_four.pooled(at_four.roster.casts["styled.s4"])["A1"].df == known(measured, 4).drift["A1"].df + 3


def test_what_weights_say_bars_a_removal(measured):
    m = measured[0]
    name = "styled.s4"
    for change, gate in (({"coverage": {}}, "coverage"), ({"sizes": {name: 3.0}}, "size")):
        spoiled = replace(m, study=replace(m.study, **change))
        judged = {j.member.name: j for j in judge_all([spoiled], delta=0.2, known=known(measured, 4))}[name]
        assert judged.decision.answer == "not elicited"
        assert [g.id for g in judged.gates if not g.passed] == [gate]
    blind_here = judge_all([m], delta=0.2, known=replace(known(measured, 4), seen=None))
    assert {j.decision.answer for j in blind_here if j.member.truth == "benign"} == {"not elicited"}


def test_each_gate_is_defined_once():
    source = Path(__file__).parents[2] / "src" / "condmis_interp"
    text = {p: p.read_text(encoding="utf-8") for p in source.rglob("*.py")}
    for gate in ('"scale"', '"twin"', '"twins"', '"coverage"', '"size"', '"base"', 'f"control {part}"'):
        where = {p.name for p, t in text.items() if re.search(rf"Gate\({re.escape(gate)}", t)}
        assert where <= {"gates.py", "finding.py"}, gate
        assert "gates.py" in where, gate
