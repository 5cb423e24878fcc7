"""From the last hidden states to log-probs through the model's own head, a few rows of logits at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from condmis_interp.readers.sites import blocks_of, body_of

LOGIT_ROWS = 256
"""Rows of logits held at once: 256 x 49,152 in fp32 are 50 MB, 256 x 262,144 (Gemma) 268 MB. Fewer are slower: 48 rows
took a fifth longer on Gemma, and saved a tenth of a reading's memory."""


class _Entering(BaseModelOutputWithPast):
    """What a body would give, of which a head uses the hidden states alone."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _bodiless(model: Any, hidden: torch.Tensor) -> Iterator[None]:
    """Has a model's body give these hidden states [row, position, width], whatever it is asked."""
    bodies = [body_of(model, blocks_of(model))]
    if (decoder := model.get_decoder()) not in (None, model, *bodies):
        bodies.append(decoder)  # some heads call the decoder within the body (OPT)
    before = [vars(b).get("forward") for b in bodies]
    for body in bodies:  # not setattr: modules may override it
        vars(body)["forward"] = lambda *_, **__: _Entering(last_hidden_state=hidden)  # type: ignore[arg-type]  # a FloatTensor is a Tensor
    try:
        yield
    finally:
        for body, own in zip(bodies, before, strict=True):
            vars(body).pop("forward")
            if own is not None:
                vars(body)["forward"] = own


def logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Returns fp32 logits [rows, vocabulary] of hidden states after the final norm [rows, width].

    The model's own forward pass runs over them with its body left out, so that a bias, a scale (Granite, Cohere) or a
    soft cap (Gemma 2) is where the model has it.
    """
    head: Any = model.get_output_embeddings()
    hidden = hidden.to(head.weight.device)[None]
    ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    with _bodiless(model, hidden):
        out: Any = model(input_ids=ids, use_cache=False)
    return out.logits[0].float()


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
