"""Generating answers, token by token, under edits that act in every step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from condmis_interp.panel import Prompt
from condmis_interp.readers.base import Decoding
from condmis_interp.readers.batching import Request, next_pass, prompt_pass
from condmis_interp.readers.hooks import edited
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.unembedding import log_softmax
from condmis_interp.readers.whole import grown, must_be

if TYPE_CHECKING:
    from condmis_interp.readers.engine import PassReader


@torch.no_grad()
def decode(reader: "PassReader", prompts: Sequence[Prompt], how: Decoding) -> list[list[int]]:
    """Returns the token ids of each answer, decoded together, one token a pass on top of kept keys and values.

    A model that keeps none runs each sequence again for every token.

    Raises:
        CheckError: if an edit missed a decoding step.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    open_ = [True] * len(prompts)
    ledger = Ledger()
    whole = must_be(reader, [Request(p) for p in prompts], how.max_new_tokens)
    p = (grown(prompts, answers) if whole else prompt_pass(prompts)).to(reader.device)
    cache = None if whole else reader._cache()
    rows = torch.arange(len(prompts), device=reader.device)
    with reader._hooked(edited([how.edits], [ledger], lambda: reader._pass), stop=None) as forward:
        for _ in range(how.max_new_tokens):
            hidden = reader._forward(p, p, cache, forward, [ledger])
            assert hidden is not None
            # left-padded prompts all end in one column; whole sequences are right-padded
            logprobs = log_softmax(reader.model, hidden[rows, p.real.sum(1) - 1 if whole else -1])
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
            # answers that have ended go on as rows that nobody reads
            p = grown(prompts, answers).to(reader.device) if whole else next_pass(p, chosen)
    ledger.check()
    return answers
