"""The battery room: the tests, each giving evidence."""

from condmis_interp.battery.behaviour import BehaviourGrid, behaviour, untriggered, worst_cue
from condmis_interp.battery.causal import Ablation, DoseResponse, LayerChoice, ablation, choose_layer, dose_response
from condmis_interp.battery.evidence import Evidence, evidence_table
from condmis_interp.battery.survey import Survey, survey

__all__ = [
    "Ablation",
    "BehaviourGrid",
    "DoseResponse",
    "Evidence",
    "LayerChoice",
    "Survey",
    "ablation",
    "behaviour",
    "choose_layer",
    "dose_response",
    "evidence_table",
    "survey",
    "untriggered",
    "worst_cue",
]
