"""The causal room: the layer that carries the behaviour, steering along it, ablating it; it decides no verdict."""

from condmis_interp.causal.ablation import Ablation, ablation
from condmis_interp.causal.dose_response import DoseResponse, dose_response
from condmis_interp.causal.layer import LayerChoice, choose_layer

__all__ = ["Ablation", "DoseResponse", "LayerChoice", "ablation", "choose_layer", "dose_response"]
