"""The battery room: the tests, each giving evidence."""

from condmis_interp.battery.behaviour import BehaviourGrid, behaviour
from condmis_interp.battery.benches.bench import Bench, Borrowed, Patched, Pinned, Steered, Tuning
from condmis_interp.battery.benches.captured import CapturedBench, Gated
from condmis_interp.battery.benches.reader_bench import ReaderBench
from condmis_interp.battery.evidence import Evidence, evidence_table
from condmis_interp.battery.gates import ASSAY, assay_failures, twin_failure
from condmis_interp.battery.judging import Cast, judge, missing, replicate_drift
from condmis_interp.battery.measure import Battery, measure
from condmis_interp.battery.registry import Readings, Reference, Test, register, registered
from condmis_interp.battery.tests import (
    doses,
    expression,
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
    "Borrowed",
    "CapturedBench",
    "Cast",
    "Evidence",
    "Gated",
    "Patched",
    "Pinned",
    "ReaderBench",
    "Readings",
    "Reference",
    "Steered",
    "Test",
    "Tuning",
    "assay_failures",
    "behaviour",
    "doses",
    "evidence_table",
    "expression",
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
