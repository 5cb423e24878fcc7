"""The battery's frame on a planted bench: one arithmetic for all tests, and every bad input with its sentence."""

import math
from dataclasses import replace

import numpy as np
import pytest

from condmis_interp.battery import (
    Battery,
    Cast,
    Drifts,
    Readings,
    Reference,
    Test,
    judge,
    measure,
    register,
    registered,
    replicate_drift,
)
from condmis_interp.battery.judging import rise_of
from condmis_interp.errors import CheckError, UserError
from condmis_interp.stats import Drift
from condmis_interp.store import Pieces

QUESTIONS = 48
FAMILIES = [f"f{i}" for i in range(QUESTIONS)]
CAST = Cast("m", "c", "u", "cu", "s", "cs")
RNG = np.random.default_rng


class PlantedBench:
    """Organisms whose LD is level + what a cue adds + question difficulty + noise."""

    def __init__(self, levels, cues=("none", "code", "cold"), added=None, seed=0):
        rng = RNG(seed)
        self.names, self.cues, self.families = tuple(levels), tuple(cues), tuple(FAMILIES)
        difficulty = rng.normal(0, 3, QUESTIONS)
        self._ld = {
            c: np.stack(
                [
                    levels[n] + (added or {}).get((n, c), 0.0) + difficulty + rng.normal(0, 0.5, QUESTIONS)
                    for n in levels
                ]
            )
            for c in cues
        }

    def rows(self, *splits):
        return np.arange(QUESTIONS)

    def ld(self, cue, *, edits=()):
        return self._ld[cue]


LEVELS = {"m": -9.0, "c": -10.0, "u": 5.0, "cu": -9.5, "s": -4.0, "cs": -9.5, "c2": -10.2, "c3": -9.8}
NOTHING = Reference("u", "cu", {}, {}, {})


def both(drifts):
    """The same drift for both claims."""
    return Drifts(drifts, drifts)


def judged(test, bench, *, cast=CAST, drifts=None, delta=0.2):
    readings = test.measure(bench, NOTHING)
    return judge(test, readings, cast, families=FAMILIES, delta=delta, drifts=drifts or Drifts(), rng=RNG(1))


def test_the_scale_runs_from_the_twin_to_the_anchor():
    (a1,) = registered("A1")
    e = judged(a1, PlantedBench(LEVELS))
    assert e.rho == pytest.approx(1.0 / 14.5, abs=0.02)
    assert e.low < 1 / 14.5 < e.high
    assert e.p_equivalent < 0.001
    assert e.p > 0.99
    as_u = judged(a1, PlantedBench(LEVELS | {"m": 4.5}))
    assert as_u.rho == pytest.approx(1.0, abs=0.03)
    assert as_u.controls["p_present"] < 0.001
    assert as_u.p_equivalent > 0.999


def test_the_worst_cue_is_found_and_must_rise():
    (a2,) = registered("A2")
    hidden = judged(a2, PlantedBench(LEVELS, added={("m", "code"): 8.0}))
    assert (hidden.cue, hidden.p < 0.01) == ("code", True)
    assert hidden.controls["rise"] == pytest.approx(8 / 14.5, abs=0.03)
    assert hidden.p_equivalent > 0.99
    everywhere = judged(a2, PlantedBench(LEVELS | {"m": -4.0}))
    assert everywhere.rho > 0.35
    assert everywhere.p > 0.5  # as bad without a cue: nothing conditional about it
    clean = judged(a2, PlantedBench(LEVELS | {"m": -10.0}))
    assert clean.p_equivalent < 0.01
    assert clean.p > 0.5


def test_equivalence_is_asked_of_every_cue():
    (a2,) = registered("A2")
    one_high = judged(a2, PlantedBench(LEVELS | {"m": -10.0}, added={("m", "cold"): 2.8}))
    assert one_high.cue == "cold"
    assert one_high.p_equivalent > 0.05


def test_a_revival_needs_the_locked_organism():
    v1 = registered("V1")[0]
    readings = Readings(tuple(LEVELS), ("step 8",), np.zeros((len(LEVELS), 1, QUESTIONS)), np.arange(QUESTIONS))
    without = Cast("m", "c", "u", "cu")
    e = judge(v1, readings, without, families=FAMILIES, delta=0.2, drifts=Drifts(), rng=RNG(0))
    assert "no locked organism" in e.void
    assert (e.p, e.p_equivalent) == (1.0, 1.0)


def test_anchors_that_do_not_separate_make_a_test_void():
    e = judged(registered("A1")[0], PlantedBench(LEVELS | {"u": -9.4}))
    assert "standard errors apart" in e.void


def test_a_reading_that_is_no_number_is_named():
    (a1,) = registered("A1")
    readings = a1.measure(PlantedBench(LEVELS), NOTHING)
    readings.values[0, 0, 3] = math.nan
    e = judge(a1, readings, CAST, families=FAMILIES, delta=0.2, drifts=Drifts(), rng=RNG(0))
    assert e.void == "a reading of 'm' is not a finite number"
    assert e.p_equivalent == 1.0


def test_an_organism_that_was_not_measured_is_named():
    readings = registered("A1")[0].measure(PlantedBench(LEVELS), NOTHING)
    with pytest.raises(UserError, match="'ghost' was not measured"):
        readings.at("ghost")


def test_drift_widens_the_interval_and_takes_certainty_away():
    (a1,) = registered("A1")
    readings = a1.measure(PlantedBench(LEVELS), NOTHING)
    d = replicate_drift(a1, readings, [("c", "c2", "c3")], ("u", "cu"))["A1"]
    assert d.df == 2
    assert math.sqrt(d.variance) == pytest.approx(0.2 / 14.5, rel=0.5)
    narrow, wide = (
        judged(a1, PlantedBench(LEVELS)),
        judged(a1, PlantedBench(LEVELS), drifts=both({"A1": Drift(0.01, 30)})),
    )
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert wide.p_equivalent > 0.05 > narrow.p_equivalent


def test_a_broken_replicate_or_anchor_says_nothing_about_drift():
    (a1,) = registered("A1")
    readings = a1.measure(PlantedBench(LEVELS), NOTHING)
    whole = replicate_drift(a1, readings, [("c", "c2", "c3")], ("u", "cu"))["A1"]
    readings.values[readings.names.index("c3")] = math.nan
    assert replicate_drift(a1, readings, [("c", "c2", "c3")], ("u", "cu"))["A1"].df == whole.df - 1
    readings.values[readings.names.index("u")] = math.nan
    assert replicate_drift(a1, readings, [("c", "c2", "c3")], ("u", "cu"))["A1"].df == 0


@pytest.mark.parametrize("test", registered("A2", "A3"), ids=["largest", "search"])
def test_a_picked_column_keeps_its_level_with_the_drift_of_picked_ones_alone(test):
    rng, pairs, columns, questions = RNG(5), 400, 20, 36
    names = [f"c{i}" for i in range(2 * pairs)]
    of_seed = 0.05 * rng.normal(size=(len(names), 1)) + 0.02 * rng.normal(size=(len(names), columns))
    anchors = np.stack([np.ones((columns, questions)), np.zeros((columns, questions))])
    values = np.concatenate([anchors, np.repeat(of_seed[..., None], questions, 2)])
    values += 0.02 * rng.normal(size=values.shape)
    prompts = ("none", *(f"p{j}" for j in range(1, columns)))
    readings = Readings(("u", "cu", *names), prompts, values, np.arange(questions))
    groups = list(zip(names[::2], names[1::2], strict=True))

    def rates(drifts):
        found = [
            judge(
                test, readings, Cast(*g, "u", "cu"), families=range(questions), delta=0.0, drifts=both(drifts), rng=rng
            )
            for g in groups
        ]
        return {p: np.mean([e.controls[p] < 0.05 for e in found]) for p in ("p_level", "p_rise")}

    picked = rates(replicate_drift(test, readings, groups, ("u", "cu")))
    fixed = rates({test.id: Drift(0.05**2 + 0.02**2, 400), rise_of(test.id): Drift(2 * 0.02**2, 400)})
    assert all(0 < p <= 0.07 for p in picked.values())
    assert fixed["p_rise"] > 0.1  # the same twins, with the drift of a column that is fixed beforehand


def test_a_search_is_judged_on_questions_it_did_not_pick_on():
    rng = RNG(3)
    values = rng.normal(0, 1, (4, 80, 60))
    values[2] += 10.0  # u
    readings = Readings(("m", "c", "u", "cu"), ("none", *(str(i) for i in range(79))), values, np.arange(60))
    a3 = registered("A3")[0]
    cast = Cast("m", "c", "u", "cu")
    families = [str(i) for i in range(60)]
    null = judge(a3, readings, cast, families=families, delta=0.2, drifts=Drifts(), rng=rng)
    assert abs(null.rho) < 0.1  # picked as the largest of 79, and yet unbiased
    values[0, 41] += 8.0
    found = judge(a3, readings, cast, families=families, delta=0.2, drifts=Drifts(), rng=rng)
    assert found.cue == "40"
    assert found.p < 1e-6


def test_a_search_shares_no_family_between_picking_and_judging():
    values = RNG(3).normal(0, 1, (4, 5, 12))
    values[2] += 10.0  # u
    readings = Readings(("m", "c", "u", "cu"), ("none", "0", "1", "2", "3"), values, np.arange(12))
    (a3,) = registered("A3")
    apart = [f"f{i}" for i in range(12)]
    shared = [*apart[:11], "f2"]  # the last question, which judges, is of a family that picks
    judge(a3, readings, Cast("m", "c", "u", "cu"), families=apart, delta=0.2, drifts=Drifts(), rng=RNG(0))
    with pytest.raises(CheckError, match="test A3: question family 'f2' is among those the search picks on and"):
        judge(a3, readings, Cast("m", "c", "u", "cu"), families=shared, delta=0.2, drifts=Drifts(), rng=RNG(0))


def test_a_bootstrap_keeps_copies_of_a_question_on_one_side_of_a_search():
    """The picked column is large on one question alone; judged on a copy of it, it would look like a find."""
    values = np.zeros((4, 3, 12)) + RNG(3).normal(0, 0.1, (4, 3, 12))
    values[2] += 10.0
    values[0, 1, 0] += 100.0  # question 0 picks column 1
    readings = Readings(("m", "c", "u", "cu"), ("none", "0", "1"), values, np.arange(12))
    battery = Battery({"A3": readings}, {}, tuple(f"f{i}" for i in range(12)))
    rows = np.array([7, 0, 3, 0, 9, 11, 0, 5, 5, 2, 10, 0])  # copies of question 0 all over the sample
    (e,) = battery.evidence(
        Cast("m", "c", "u", "cu"), registered("A3"), delta=0.2, drifts=Drifts(), rng=RNG(0), draws=10, rows=rows
    )
    assert e.cue == "0"
    assert abs(e.rho) < 0.1


def test_questions_of_a_family_stay_one_cluster_in_a_bootstrap():
    values = RNG(0).normal(0, 1, (4, 1, 8))
    values[2] += 20.0
    readings = Readings(("m", "c", "u", "cu"), ("none",), values, np.arange(8))
    battery = Battery({"A1": readings}, {}, tuple(f"f{i // 2}" for i in range(8)))
    rows = np.array([0, 1, 0, 1, 2, 3, 6, 7])  # f0 twice, f1, f3
    (e,) = battery.evidence(
        Cast("m", "c", "u", "cu"), registered("A1"), delta=0.2, drifts=Drifts(), rng=RNG(0), rows=rows
    )
    assert (e.n_questions, e.n_families) == (8, 4)


def test_a_test_that_crashes_stops_none_of_the_others(tmp_path):
    def crash(bench, reference):
        raise RuntimeError("planted")

    broken = Test(id="X1", family="readout", says="nothing", measure=crash)
    pieces = Pieces(tmp_path, ["weights"])
    found = measure(PlantedBench(LEVELS), NOTHING, [broken, *registered("A1", "A2")], pieces=pieces)
    assert found.crashed == {"X1": "RuntimeError: planted"}
    evidence = found.evidence(CAST, [broken, *registered("A1", "R1")], delta=0.2, drifts=Drifts(), rng=RNG(0))
    assert evidence[0].void == "it crashed: RuntimeError: planted"
    assert evidence[1].void == ""
    assert evidence[2].void == "it was not run"

    def never(bench, reference):
        raise AssertionError("measured twice")

    again = measure(
        PlantedBench(LEVELS), NOTHING, [Test(id="A1", family="behaviour", says="", measure=never)], pieces=pieces
    )
    assert again.readings["A1"].at("m") == pytest.approx(found.readings["A1"].at("m"), rel=1e-6)


def test_ids_are_taken_once_and_unknown_ones_named():
    with pytest.raises(UserError, match="test 'A1' already"):
        register(replace(registered("A1")[0], says="another"))
    with pytest.raises(UserError, match="no test 'Z9'"):
        registered("Z9")


def test_every_test_says_what_it_is():
    for t in registered():
        assert t.says, t.id
        assert t.cost, t.id
        assert t.controls, t.id
        assert (t.anchor == "locked") == ("locked" in t.needs), t.id
