"""The battery room: the tests, each giving evidence."""

from condmis_interp.battery import doses, expression, patching, perturbation, readout, revival, subspace, weights
from condmis_interp.battery.audit_ablation import Ablation, ablation
from condmis_interp.battery.audit_doses import DoseResponse, dose_response
from condmis_interp.battery.behaviour import BehaviourGrid, behaviour
from condmis_interp.battery.bench import Bench, Borrowed, Patched, Pinned, Steered, Tuning
from condmis_interp.battery.captured import CapturedBench, Gated
from condmis_interp.battery.causal import LayerChoice, choose_layer
from condmis_interp.battery.evidence import Evidence, evidence_table
from condmis_interp.battery.gates import ASSAY, assay_failures, twin_failure
from condmis_interp.battery.judging import Cast, judge, missing, replicate_drift
from condmis_interp.battery.measure import Battery, measure
from condmis_interp.battery.reader_bench import ReaderBench
from condmis_interp.battery.registry import Readings, Reference, Test, register, registered
from condmis_interp.battery.survey import Survey, survey
from condmis_interp.battery.world_bench import WorldBench

__all__ = [
    "ASSAY",
    "Ablation",
    "Battery",
    "BehaviourGrid",
    "Bench",
    "Borrowed",
    "CapturedBench",
    "Cast",
    "DoseResponse",
    "Evidence",
    "Gated",
    "LayerChoice",
    "Patched",
    "Pinned",
    "ReaderBench",
    "Readings",
    "Reference",
    "Steered",
    "Survey",
    "Test",
    "Tuning",
    "WorldBench",
    "ablation",
    "assay_failures",
    "behaviour",
    "choose_layer",
    "dose_response",
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
    "survey",
    "twin_failure",
    "weights",
]
