"""The battery room: the tests, each giving evidence."""

from condmis_interp.battery.benches.bench import Bench, Tuning
from condmis_interp.battery.benches.reader_bench import ReaderBench
from condmis_interp.battery.benches.stored import Gated, Stored
from condmis_interp.battery.cast import Cast
from condmis_interp.battery.coverage import Coverage, coverage
from condmis_interp.battery.evidence import Evidence, evidence_table
from condmis_interp.battery.grid import BehaviourGrid, behaviour_grid
from condmis_interp.battery.judging import Drifts, judge, missing, replicate_drift
from condmis_interp.battery.measure import Battery, measure
from condmis_interp.battery.registry import (
    Readings,
    Reference,
    Test,
    Vote,
    calibrated,
    register,
    register_test,
    registered,
    voting,
)
from condmis_interp.battery.tests import (
    behaviour,
    doses,
    patching,
    perturbation,
    readout,
    revival,
    subspace,
    weights,
)
from condmis_interp.battery.tests.behaviour import draw_prompts

__all__ = [
    "Battery",
    "BehaviourGrid",
    "Bench",
    "Cast",
    "Coverage",
    "Drifts",
    "Evidence",
    "Gated",
    "ReaderBench",
    "Readings",
    "Reference",
    "Stored",
    "Test",
    "Tuning",
    "Vote",
    "behaviour",
    "behaviour_grid",
    "calibrated",
    "coverage",
    "doses",
    "draw_prompts",
    "evidence_table",
    "judge",
    "measure",
    "missing",
    "patching",
    "perturbation",
    "readout",
    "register",
    "register_test",
    "registered",
    "replicate_drift",
    "revival",
    "subspace",
    "voting",
    "weights",
]
