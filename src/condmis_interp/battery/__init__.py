"""The battery room: the tests, each giving evidence."""

from condmis_interp.battery.benches.bench import Bench, Tuning
from condmis_interp.battery.benches.reader_bench import ReaderBench
from condmis_interp.battery.benches.stored import Gated, Stored
from condmis_interp.battery.evidence import Evidence, evidence_table
from condmis_interp.battery.gates import ASSAY, assay_failures, twin_failure
from condmis_interp.battery.grid import BehaviourGrid, behaviour_grid
from condmis_interp.battery.judging import Cast, judge, missing, replicate_drift
from condmis_interp.battery.measure import Battery, measure
from condmis_interp.battery.registry import Readings, Reference, Test, register, registered
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

__all__ = [
    "ASSAY",
    "Battery",
    "BehaviourGrid",
    "Bench",
    "Cast",
    "Evidence",
    "Gated",
    "ReaderBench",
    "Readings",
    "Reference",
    "Stored",
    "Test",
    "Tuning",
    "assay_failures",
    "behaviour",
    "behaviour_grid",
    "doses",
    "evidence_table",
    "judge",
    "measure",
    "missing",
    "patching",
    "perturbation",
    "readout",
    "register",
    "registered",
    "replicate_drift",
    "revival",
    "subspace",
    "twin_failure",
    "weights",
]
