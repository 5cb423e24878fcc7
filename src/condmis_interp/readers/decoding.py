"""Generating answers, token by token, under edits that act in every step.

A token is drawn from softmax(logits / temperature), all of it: no top-p, no top-k, whatever a model's own settings say.
With a seed for each prompt, step t of an answer takes the t-th number u of that seed's stream (numpy's Philox, keyed by
the seed) and the first token whose cumulative probability exceeds u; so an answer does not depend on what is asked with
it, and answers that have ended leave the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from condmis_interp.panel import Prompt
from condmis_interp.readers.base import Decoding
from condmis_interp.readers.batching import Pass, Request, next_pass, prompt_pass
from condmis_interp.readers.edits import Ablate, Steer
from condmis_interp.readers.hooks import edited
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.unembedding import log_softmax
from condmis_interp.readers.whole import grown, must_be

if TYPE_CHECKING:
    from condmis_interp.readers.engine import PassReader

Choose = Callable[[torch.Tensor, Sequence[int], int], torch.Tensor]
"""Given log-probs [rows, vocabulary], the prompt that each row answers and the step, the token of each row [rows]."""


@torch.no_grad()
def decode(reader: "PassReader", prompts: Sequence[Prompt], how: Decoding) -> list[list[int]]:
    """Returns the token ids of each answer, decoded together, one token a pass on top of kept keys and values.

    A prompt that is asked several times is run once. A model that keeps no keys and values runs each sequence again for
    every token.

    Raises:
        CheckError: if an edit missed a decoding step.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    open_ = [True] * len(prompts)
    choose = _chooser(how)
    ledger = Ledger()
    whole = must_be(reader, [Request(p) for p in prompts], how.max_new_tokens)
    rows = list(range(len(prompts)))  # the prompt that each row of a pass answers
    first = rows if whole else _first(prompts, how)
    asked = sorted(set(first))

    def whole_pass() -> Pass:
        return _owned(grown([prompts[i] for i in rows], [answers[i] for i in rows]), rows)

    p = (whole_pass() if whole else _owned(prompt_pass([prompts[i] for i in asked]), asked)).to(reader.device)
    cache = None if whole else reader._cache()
    with reader._hooked(edited([how.edits], [ledger], lambda: reader._pass), stop=None) as forward:
        for step in range(how.max_new_tokens):
            hidden = reader._forward(p, p, cache, forward, [ledger])
            assert hidden is not None
            # left-padded prompts all end in one column; whole sequences are right-padded
            last = hidden[torch.arange(len(hidden), device=reader.device), p.real.sum(1) - 1 if whole else -1]
            logprobs = log_softmax(reader.model, last)
            if len(logprobs) < len(rows):
                each = torch.tensor([asked.index(i) for i in first])  # on the CPU: an index for any device
                logprobs, p = logprobs[each], _owned(p.at(each), rows)
                if cache is not None:
                    cache.batch_select_indices(each)
            chosen = choose(logprobs, rows, step).to(reader.device)
            for i, token in zip(rows, chosen.tolist(), strict=True):
                if open_[i] and token in how.stop_ids:
                    open_[i] = False
                elif open_[i]:
                    answers[i].append(token)
            if not any(open_):
                break
            # what answers draw from one generator hangs on all of them: there, ended ones go on as rows nobody reads
            if how.generator is None and not all(open_[i] for i in rows):
                kept = torch.tensor([row for row, i in enumerate(rows) if open_[i]])
                rows = [i for i in rows if open_[i]]
                chosen, p = chosen[kept], p.at(kept)
                if cache is not None:
                    cache.batch_select_indices(kept)
            p = whole_pass().to(reader.device) if whole else next_pass(p, chosen)
    if ledger.passes == 1:  # no token followed the prompts, so what acts on answers alone had nothing to act on
        pairs = zip(ledger.edits, how.edits, strict=True)
        ledger.edits = [entry for entry, edit in pairs if edit.scopes != frozenset(("answer",))]
    ledger.check()
    return answers


def _first(prompts: Sequence[Prompt], how: Decoding) -> list[int]:
    """Returns, for each prompt, the first that is the same, and runs for it; a patch's rows differ by request."""
    if not all(isinstance(e, (Steer, Ablate)) for e in how.edits):
        return list(range(len(prompts)))
    seen: dict[tuple, int] = {}
    return [seen.setdefault((p.ids, *sorted(p.spans.items())), i) for i, p in enumerate(prompts)]


def _owned(p: Pass, rows: Sequence[int]) -> Pass:
    return replace(p, owners=tuple((i, None) for i in rows))


def _chooser(how: Decoding) -> Choose:
    """Returns how the next tokens are chosen."""
    if how.temperature == 0:
        return lambda logprobs, rows, step: logprobs.argmax(-1)
    if how.seeds is None:
        # log-probs are logits up to a constant of each row, which the softmax takes off again
        return lambda logprobs, rows, step: torch.multinomial(
            (logprobs / how.temperature).softmax(-1).cpu(), 1, generator=how.generator
        )[:, 0]
    streams = [np.random.Generator(np.random.Philox(key=s)).random(how.max_new_tokens) for s in how.seeds]
    numbers = torch.from_numpy(np.stack(streams))

    def drawn(logprobs: torch.Tensor, rows: Sequence[int], step: int) -> torch.Tensor:
        exact = (logprobs.cpu() if logprobs.device.type == "mps" else logprobs).double()  # mps has no fp64
        below = ((exact - exact.amax(-1, keepdim=True)) / how.temperature).softmax(-1).cumsum(-1)
        u = numbers[list(rows), step].to(below.device) * below[:, -1]
        return torch.searchsorted(below, u[:, None], right=True)[:, 0].clamp(max=below.shape[1] - 1)

    return drawn
