"""Models and prompts whose sequences are run whole, and the proof that either way gives a plain pass's log-probs.

Most readings continue kept keys and values under padding (`batching`). Some models cannot: a recurrent state (linear
attention, Mamba, short convolutions) takes padding in, positions that are counted along the cache (MPT's ALiBi) count
padding as well, and a window's cache drops what padding pushes out. There every prompt, and every prompt with an
answer, is one pass of its own: padded on the right, where no causal model sees it, and without a cache. Which of the
two a model gets is tried, on a few ragged rows, against its own unpadded passes.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from condmis_interp.errors import CheckError, CondmisError, UserError
from condmis_interp.panel import Answer, Prompt, pad
from condmis_interp.readers.batching import Batch, Pass, Request, Until, grouped, piece, scopes_of

if TYPE_CHECKING:
    from condmis_interp.readers.engine import PassReader

_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "sliding_window_size")
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference in nats, for each nat of the log-prob. Reduced precision gets 10 %: mistakes are of its order."""
_PROVEN: dict[tuple[Any, ...], bool] = {}
"""Whether a reader of a kind of model, in a shape and dtype, runs sequences whole; proven once for each."""


def continues(model: Any) -> bool:
    """Returns whether a model keeps nothing but keys and values of its tokens, by its config."""
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception:  # an architecture's own kind of cache: its passes are its own affair
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def must_be(reader: "PassReader", requests: Sequence[Request], more: int = 0) -> bool:
    """Returns whether requests are run whole: by a model that keeps no keys and values, or beyond a layer's window.

    Args:
        reader: The reader.
        requests: Prompts with their answers.
        more: Tokens that each may grow by.
    """
    longest = more + max(len(r.prompt.ids) + max((len(a.ids) for a in r.answers), default=0) for r in requests)
    windows = [getattr(reader.config, name, None) for name in _WINDOWS]
    return reader._whole or any(isinstance(w, int) and 0 < w < longest for w in windows)


def selected(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """Returns a cache that holds some rows of another, which stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def plan_whole(
    requests: Sequence[Request], until: Until | None, *, batch_tokens: int, device: torch.device
) -> Iterator[Batch]:
    """Yields batches of requests in which no pass continues another; otherwise as `batching.plan`.

    Args:
        requests: Prompts with their answers.
        until: As in `batching.plan`; refused here.
        batch_tokens: Padded tokens in one pass.
        device: Where the tensors go.

    Raises:
        UserError: if prompts that are run whole are to begin with another model's keys and values.
    """
    if until:
        raise UserError(
            "these prompts are run whole, and go on from no other model's keys and values", fix="Leave `prefix` out."
        )
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt.ids), requests[i].prompt.ids))
    for group in grouped([(len(requests[i].prompt.ids), i, 0) for i in order], batch_tokens):
        rows = [i for _, i, _ in group]
        prompts = [requests[i].prompt for i in rows]
        lengths = [len(p.ids) for p in prompts]
        first = replace(piece(prompts, [0] * len(rows), lengths), owners=tuple((i, None) for i in rows))
        flat = [
            (lengths[row] + len(a.ids), row, slot)
            for row, i in enumerate(rows)
            for slot, a in enumerate(requests[i].answers)
        ]
        answers = []
        for some in grouped(sorted(flat), batch_tokens):
            of = [(rows[row], slot) for _, row, slot in some]
            said = [requests[i].answers[slot].ids for i, slot in of]
            p = grown([requests[i].prompt for i, _ in of], said)
            answers.append(replace(p, owners=tuple(of), begin=tuple(-n for n in p.again)).to(device))
        last = torch.tensor(lengths) - 1
        yield Batch(tuple(rows), (first.to(device),), last.to(device), tuple(answers), whole=True)


def grown(prompts: Sequence[Prompt], said: Sequence[Sequence[int]]) -> Pass:
    """Returns one pass over prompts with what was said after each, padded on the right."""
    ids, mask = pad([(*p.ids, *s) for p, s in zip(prompts, said, strict=True)], right=True)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    scopes = {name: s * mask for name, s in scopes_of(prompts, ids.shape, [0] * len(prompts)).items()}
    again = tuple(len(p.ids) for p in prompts)
    scopes["answer"] = mask * (positions >= torch.tensor(again)[:, None])
    owners = tuple((i, None) for i in range(len(prompts)))
    return Pass(ids, mask, positions, scopes, owners, (0,) * len(prompts), again=again)


def prove(reader: "PassReader") -> None:
    """Holds a reader's log-probs to the model's own unpadded passes, and has it run sequences whole where it must.

    Raises:
        UserError: if the model runs neither way, with what it says.
        CheckError: if its answers' log-probs are others than a plain pass gives.
    """
    model = reader.model
    key = (type(reader), type(model), model.config.to_json_string(), model.dtype, str(reader.device))
    if key not in _PROVEN:
        _PROVEN[key] = _tried(reader)
    reader._whole = _PROVEN[key]


def _tried(reader: "PassReader") -> bool:
    requests = _ragged(reader)
    plain = _plain(reader, requests)
    off, said = 0.0, ""
    for whole in (False, True):
        if not whole and reader._whole:
            continue
        reader._whole = whole
        try:
            found = [lp for lps in reader.measure(requests).logprobs for lp in lps.tolist()]
        except CondmisError:
            raise
        except Exception as e:  # whatever an architecture's own code raises when it is given padding or a cache
            said = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            continue
        off = max(abs(a - b) / (1 + abs(b)) for a, b in zip(found, plain, strict=True))
        if off <= _CLOSE.get(reader.model.dtype, 0.1):
            return whole
        said = ""
    name = type(reader.model).__name__
    if said:
        raise UserError(f"{name} cannot be run on padded rows ({said})", fix="Its architecture is not read yet.")
    raise CheckError(
        f"in a batch, answers' log-probs are {off:.2g} of their size off those of {name} run on each alone: what a "
        "token says depends on padding, or on tokens after it",
        fix="Its architecture is not read yet.",
    )


def _ragged(reader: "PassReader") -> list[Request]:
    """Returns four prompts of 6 to 9 tokens that begin alike, with answers of 2 and 4."""
    ids = some_ids(reader, 40)
    requests = []
    for i in range(4):
        n = 6 + i
        prompt = (*ids[:4], *ids[4 + i : i + n])
        spans = {"cue": (0, 4), "question": (4, n - 1), "tail": (n - 1, n)}
        answers = tuple(Answer(tuple(ids[20 + i : 20 + i + k]), (1,) * k) for k in ((4, 2) if i == 1 else (4 - i % 2,)))
        requests.append(Request(Prompt(prompt, spans, ""), answers))
    return requests


def some_ids(reader: "PassReader", count: int) -> list[int]:
    """Returns token ids to probe a model with, none of which its config has a use for (an image's place, padding)."""
    configs = [reader.model.config.to_dict(), reader.config.to_dict()]
    used = {v for c in configs for k, v in c.items() if k.endswith(("_id", "_index")) and isinstance(v, int)}
    embedding: Any = reader.model.get_input_embeddings()
    words = int(embedding.weight.shape[0])
    ids = [i * 97 % words for i in range(1, count + len(used) + 1)]
    free = [i for i in ids if i not in used] or ids
    return [free[i % len(free)] for i in range(count)]


def _plain(reader: "PassReader", requests: Sequence[Request]) -> list[float]:
    """Returns each answer's log-prob by an unpadded pass of the model over its prompt and it, without a cache."""
    found = []
    for r in requests:
        for a in r.answers:
            ids = torch.tensor([[*r.prompt.ids, *a.ids]], device=reader.device)
            with torch.no_grad():
                out = reader.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            n = len(r.prompt.ids)
            found.append(sum(float(out[n - 1 + i, t]) for i, t in enumerate(a.ids)))
    return found
