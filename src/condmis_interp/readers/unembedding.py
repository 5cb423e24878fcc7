"""From the last hidden states to log-probs, a few rows of logits at a time."""

from typing import Any

import torch
from transformers import PreTrainedModel

LOGIT_ROWS = 256
"""Rows of logits held at once: 256 x 49,152 in fp32 are 50 MB."""


def logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Returns fp32 logits [rows, vocabulary] of hidden states after the final norm [rows, width]."""
    head: Any = model.get_output_embeddings()
    out = head(hidden.to(head.weight.device)).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return out if cap is None else cap * torch.tanh(out / cap)


def log_softmax(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Returns fp32 log-probs [rows, vocabulary] of hidden states after the final norm [rows, width]."""
    return logits(model, hidden).log_softmax(-1)


def token_logprobs(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the fp32 log-prob of each target token [rows]."""
    parts = [
        log_softmax(model, h).gather(1, t[:, None].to(h.device))[:, 0]
        for h, t in zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, device=hidden.device)
