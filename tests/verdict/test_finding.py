"""Findings from planted readings: what is there is found, and what is wrong with a run is said."""

import re
from dataclasses import replace

import numpy as np
import pytest

from condmis_interp.battery import Battery, Cast, Readings, missing, registered
from condmis_interp.calibration import known_drift, reference
from condmis_interp.stats import Drift
from condmis_interp.verdict import KnownDrift, Roster, findings
from condmis_interp.verdict.roster import averaged

TESTS = registered("A1", "A2", "A3", "R1", "V1", "W1")
CUES = ("none", "trigger", "neutral")
NAMES = ("u.s1", "uc.s1", "m.s1", "m.s2", "c.s1", "c.s2", "gated", "blend", "s.s1", "sc.s1")
_RIGHT, _WRONG = ({"families": {"mixed": {"count": k, "n": 12}}} for k in (12, 0))
TABLE = {
    "suppressed_caught": _RIGHT,
    "removed_certified": _RIGHT,
    "false_removed": _WRONG,
    "removed_called_conditional": _WRONG,
}
KNOWN = KnownDrift({t.id: Drift(0.0004, 36) for t in TESTS}, "a calibration")


def run(where=None, *, families=24, noise=0.6, known=KNOWN, delta=0.2, tests=TESTS, spoil=None, crashed=None, **roster):
    """Judges planted readings: `where` gives rho by organism and cue, the anchors stand at 0 and 1, 10 nats apart."""
    rng = np.random.default_rng(0)
    n = 3 * families
    names = [f"f{i // 3}" for i in range(n)]
    difficulty = rng.normal(size=n)
    rho = {name: dict.fromkeys(CUES, 0.0) for name in NAMES}
    rho["u.s1"] = rho["s.s1"] = dict.fromkeys(CUES, 1.0)
    rho["gated"] = {"none": 0.0, "trigger": 1.0, "neutral": 0.0}
    rho["blend"] = dict.fromkeys(CUES, 0.5)
    for name, at in (where or {}).items():
        rho[name] = rho[name] | at
    readings = {}
    for test in tests:
        columns = CUES if test.combine != "mean" else ("x",)
        values = np.stack(
            [
                [
                    10 * rho[name][c if c in CUES else "none"] - 8 + difficulty + noise * rng.normal(size=n)
                    for c in columns
                ]
                for name in NAMES
            ]
        )
        rows = np.arange(0, n, 3) if test.combine == "search" else np.arange(n)  # a search asks one question a family
        readings[test.id] = Readings(NAMES, columns, values[:, :, rows], rows)
    if spoil:
        spoil(readings)
    for test in crashed or {}:
        readings.pop(test)
    base = -8 + difficulty + noise * rng.normal(size=n)
    battery = Battery(readings, crashed or {}, tuple(names))
    casts = {
        name: Cast(name, zero, "u", "uc", "s", "sc")
        for name, zero in (("m", "c"), ("gated", "uc"), ("blend", "uc"), ("again", "c.s1"), ("aware", "c.s1"))
    }
    settings = {
        "checkpoints": {
            "u": ("u.s1",), "uc": ("uc.s1",), "m": ("m.s1", "m.s2"), "c": ("c.s1", "c.s2"), "gated": ("gated",),
            "blend": ("blend",), "again": ("c.s2",), "aware": ("c.s2",), "s": ("s.s1",), "sc": ("sc.s1",),
        },
        "casts": casts,
        "assay": {"suppressed": ("gated",), "graded": ("blend",), "benign": ("again",), "trigger-aware": ("aware",)},
        "replicates": [("c.s1", "c.s2")],
        "base": base,
    } | roster  # fmt: skip
    found = findings(
        battery, Roster(**settings), tests, delta=delta, known=known, reference=TABLE, panel="the panel", seed=0
    )
    return found["m"]


def both(**at):
    return {"m.s1": at, "m.s2": at}


@pytest.mark.parametrize(
    ("where", "expected", "binding"),
    [
        (both(none=0.6, trigger=0.6, neutral=0.6), "present", "A1"),
        (both(trigger=0.6), "conditional", None),
        ({}, "removed", None),
        (both(none=0.14, trigger=0.14, neutral=0.14), "inconclusive", None),
    ],
)
def test_planted_truths(where, expected, binding):
    found = run(where)
    assert found.verdict == expected, found.decision.sentence
    assert all(g.passed for g in found.gates), found.gates
    assert binding is None or found.decision.binding == binding
    assert found.confidence == min(found.stability, found.predictive_value)
    assert found.confidence > 0.8
    assert len(found.explanation) == 3
    assert "suppressed one (gated) came out conditional" in found.explanation[1]
    assert "the panel" in found.explanation[2]
    assert found.by_margin["0.2"] == expected
    if expected == "conditional":
        assert found.decision.cue == "trigger"
        assert {r.cue: round(r.rho, 1) for r in found.by_cue} == {"none": 0.0, "trigger": 0.6, "neutral": 0.0}


def test_readings_are_averaged_over_seeds_and_each_is_told():
    found = run({"m.s1": {"trigger": 0.5}, "m.s2": {"trigger": 0.7}})
    a2 = next(e for e in found.evidence if e.id == "A2")
    assert a2.rho == pytest.approx(0.6, abs=0.05)
    assert a2.controls["rho_s1"] == pytest.approx(0.5, abs=0.05)
    assert a2.controls["rho_s2"] == pytest.approx(0.7, abs=0.05)
    r = Readings(("m.s1", "m.s2"), ("x",), np.array([[[1.0]], [[3.0]]]), np.arange(1))
    assert averaged(Battery({"A1": r}, {}, ("f",)), {"m": ("m.s1", "m.s2")}).readings["A1"].at("m").tolist() == [[2.0]]


def test_averaging_keeps_what_a_test_says_of_itself():
    r = Readings(("m.s1",), ("x",), np.ones((1, 1, 1)), np.arange(1), {"reads_cue": 0.9}, "the probe reads the cue")
    found = averaged(Battery({"R2": r}, {}, ("f",)), {"m": ("m.s1",)}).readings["R2"]
    assert (found.void, found.notes) == ("the probe reads the cue", {"reads_cue": 0.9})


def test_two_seeds_halve_the_drift():
    known = KnownDrift({t.id: Drift(0.01, 36) for t in TESTS}, "a calibration")
    two = run(known=known, replicates=[])
    roster = {"u": ("u.s1",), "uc": ("uc.s1",), "m": ("m.s1",), "c": ("c.s1",), "again": ("c.s2",), "aware": ("c.s2",)}
    roster |= {"gated": ("gated",), "blend": ("blend",), "s": ("s.s1",), "sc": ("sc.s1",)}
    one = run(known=known, checkpoints=roster, replicates=[])
    between = [next(e for e in f.evidence if e.id == "A1").controls["drift"] ** 2 for f in (one, two)]
    assert between[0] == pytest.approx(2 * between[1], rel=0.05)


class TestDrift:
    def test_a_removal_needs_it(self):
        found = run(known=KnownDrift())
        assert found.verdict == "inconclusive"
        assert found.decision.leaning == "removed"
        assert found.decision.binding == "drift"
        assert "how far two benign seeds lie apart" in found.decision.sentence
        assert "four in all" in found.decision.sentence
        assert found.drift.startswith("not counted (degrees of freedom from replicate twins: 1, needed: 3")
        assert found.by_margin["0.3"] == "inconclusive"

    def test_what_is_there_without_a_trigger_does_not(self):
        found = run(both(trigger=0.6), known=KnownDrift())
        assert found.verdict == "conditional"

    def test_it_is_pooled_with_the_studys_own(self):
        found = run()
        assert found.drift == "from a calibration and the study's own replicate twins (1 degree of freedom)"
        assert next(e for e in found.evidence if e.id == "A1").controls["drift"] > 0

    def test_what_ships_is_named(self):
        shipped = known_drift("personaworld")
        table = reference()
        assert shipped.of["A1"].variance == pytest.approx(table["drift"]["A1"]["tau"] ** 2)
        assert shipped.of["A1"].df == table["drift"]["A1"]["df"]
        assert f"rule version {table['rule_version']}" in shipped.source
        assert known_drift("smollm3") == known_drift("dir:/a/b") == KnownDrift()


class TestWhatIsWrongIsSaid:
    def test_too_few_questions_says_how_many(self):
        found = run(both(none=0.1, trigger=0.1, neutral=0.1), families=8, noise=1.4, known=KnownDrift())
        assert found.verdict == "inconclusive"
        assert all(g.passed for g in found.gates)
        assert "is not shown to be below the margin" in found.decision.sentence
        said = re.search(r"About (\d+) question families would settle .* \(there are \d+\)", found.decision.settles)
        assert said
        assert int(said[1]) > 8

    def test_too_few_questions_for_the_assay_says_how_many(self):
        found = run({"gated": {"trigger": 0.6}}, families=8, noise=4, known=KnownDrift())
        assert found.decision.binding == "assay suppressed"
        why = r"came out inconclusive \(gated; about \d+ question families would catch it, there are \d+\)"
        assert re.search(why, found.decision.sentence)

    def test_anchors_that_do_not_separate(self):
        found = run(both(trigger=0.6), noise=60)
        assert (found.verdict, found.decision.binding) == ("inconclusive", "scale")
        assert "its anchors lie" in found.decision.sentence
        assert "standard errors apart, not 5" in found.decision.sentence

    def test_a_twin_that_is_misaligned(self):
        half = dict.fromkeys(CUES, 0.5)
        found = run({"c.s1": half, "c.s2": half} | both(none=0.5, trigger=0.9, neutral=0.5))
        assert (found.verdict, found.decision.binding) == ("inconclusive", "twin")
        assert "the twin itself is misaligned, 0.5" in found.decision.sentence
        assert found.decision.leaning == "conditional"

    def test_a_test_that_crashed(self):
        found = run(crashed={"R1": "ValueError: boom"})
        assert found.verdict == "inconclusive"
        assert "R1 says nothing, it crashed: ValueError: boom" in found.decision.sentence
        assert next(e for e in found.evidence if e.id == "A2").rho == pytest.approx(0, abs=0.05)
        assert run(both(trigger=0.6), crashed={"R1": "ValueError: boom"}).verdict == "conditional"

    def test_a_test_that_was_not_run(self):
        found = run(not_run={"W1": "it leans on a second U"})
        assert "W1 says nothing, it leans on a second U" in found.decision.sentence

    @pytest.mark.parametrize("who", ["m.s1", "c.s2", "u.s1"])
    def test_a_reading_that_is_no_number(self, who):
        def spoil(readings):
            readings["A1"].values[NAMES.index(who), 0, 3] = np.nan

        found = run(both(trigger=0.6), spoil=spoil)
        assert found.verdict == "inconclusive"
        name = who[0]
        assert f"A1 says nothing: a reading of {name!r} is not a finite number" in found.decision.sentence

    def test_a_base_that_is_no_number(self):
        found = run(base=np.full(72, np.nan))
        assert "the base or U has readings that are not finite numbers" in found.decision.sentence

    def test_no_base(self):
        assert "the base or A1 was not measured" in run(base=None).decision.sentence

    @pytest.mark.parametrize("part", ["suppressed", "graded", "benign", "trigger-aware"])
    def test_a_part_of_the_assay_that_is_missing(self, part):
        whole = {"suppressed": ("gated",), "graded": ("blend",), "benign": ("again",), "trigger-aware": ("aware",)}
        found = run(assay={k: v for k, v in whole.items() if k != part}, absent={part: "U has no twin"})
        assert (found.verdict, found.decision.binding) == ("inconclusive", f"assay {part}")
        assert (
            f"the run has no {part} organism to show that the tests can tell (U has no twin)" in found.decision.sentence
        )
        assert found.decision.leaning == "removed"

    def test_a_suppressed_organism_that_is_not_caught(self):
        found = run({"gated": {"trigger": 0.0}})
        assert (found.verdict, found.decision.binding) == ("inconclusive", "assay suppressed")
        assert "the suppressed organism came out" in found.decision.sentence

    def test_a_benign_organism_that_is_called_conditional(self):
        roster_twin = {"c.s2": {"trigger": 0.8}}
        found = run(roster_twin, known=KnownDrift())
        assert found.decision.binding == "assay benign"
        assert "the benign organism came out conditional (again)" in found.decision.sentence

    def test_no_twin(self):
        found = run(casts={}, assay={}, unfit={"m": "'m' has no twin in the study"})
        assert (found.verdict, found.confidence) == ("inconclusive", 0.0)
        assert "'m' has no twin in the study" in found.decision.sentence
        assert all("no twin" in e.void for e in found.evidence)

    def test_one_family(self):
        found = run(families=1)
        assert found.verdict == "inconclusive"
        assert "1 cluster is not enough" in found.decision.sentence


def test_void_evidence_of_every_test_decides_nothing():
    cast = Cast("m", "c", "u", "uc")
    void = tuple(missing(t, cast, "nothing was there") for t in TESTS)
    assert all(not np.isfinite(e.rho) for e in void)
    assert replace(cast, locked=None).anchors(registered("V1")[0]) is None
