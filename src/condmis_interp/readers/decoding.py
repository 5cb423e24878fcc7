"""Generating answers, token by token, under edits that act in every step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from condmis_interp.panel import Prompt
from condmis_interp.readers.base import Decoding
from condmis_interp.readers.batching import next_pass, prompt_pass
from condmis_interp.readers.hooks import edited
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.unembedding import log_softmax

if TYPE_CHECKING:
    from condmis_interp.readers.engine import PassReader


@torch.no_grad()
def decode(reader: "PassReader", prompts: Sequence[Prompt], how: Decoding) -> list[list[int]]:
    """Returns the token ids of each answer, decoded together, one token a pass on top of kept keys and values.

    Raises:
        CheckError: if an edit missed a decoding step.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    open_ = [True] * len(prompts)
    ledger = Ledger()
    p = prompt_pass(prompts).to(reader.device)
    cache = DynamicCache(config=reader.model.config)
    with reader._hooked(edited([how.edits], [ledger], lambda: reader._pass), stop=None) as forward:
        for _ in range(how.max_new_tokens):
            hidden = reader._forward(p, p, cache, forward, [ledger])
            assert hidden is not None
            logprobs = log_softmax(reader.model, hidden[:, -1])  # prompts are left-padded: all end in one column
            if how.temperature > 0:
                # log-probs are logits up to a constant of each row, which the softmax takes off again
                probabilities = (logprobs / how.temperature).softmax(-1).cpu()
                chosen = torch.multinomial(probabilities, 1, generator=how.generator)[:, 0].to(reader.device)
            else:
                chosen = logprobs.argmax(-1)
            for i, token in enumerate(chosen.tolist()):
                if open_[i] and token in how.stop_ids:
                    open_[i] = False
                elif open_[i]:
                    answers[i].append(token)
            if not any(open_):
                break
            p = next_pass(p, chosen)  # answers that have ended go on as rows that nobody reads
    ledger.check()
    return answers
