"""What a reading collects, pass by pass: log-probs of answers, and activations pooled on the device.

Pooling happens inside the hook: each captured layer gives sums [rows, positions, width] by one product with masks
[rows, positions, tokens] in fp32, so that whole sequences are never kept. On a GPU the pooled tensors go to pinned host
memory on a stream of their own, two slots in turn, while the next pass runs.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from condmis_interp.errors import CheckError, UserError
from condmis_interp.readers.base import Capture, Measurement, Position
from condmis_interp.readers.batching import Batch, Pass, Request
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.sites import Site
from condmis_interp.readers.unembedding import log_softmax, token_logprobs

_SCOPE_OF: dict[Position, str] = {
    "last_template": "last_template",
    "answer_mean": "answer",
    "cue_mean": "cue",
    "question_mean": "question",
    "tail_mean": "tail",
}


class Pool:
    """Sums over the tokens of the current pass, for every captured position.

    Args:
        requests: The requests.
        capture: What to capture.
    """

    def __init__(self, requests: Sequence[Request], capture: Capture) -> None:
        self.requests, self.capture = requests, capture
        self.pooled: dict[int, torch.Tensor] = {}
        self.positions: list[Position] = []
        self._weights: torch.Tensor | None = None
        for position in capture.positions:
            if position == "answer_mean" and not all(r.answers for r in requests):
                raise UserError("answer_mean is the mean over answers, and a prompt has none")
            name = _SCOPE_OF[position]
            for i, r in enumerate(requests):
                if name in r.prompt.spans and r.prompt.spans[name][0] >= r.prompt.spans[name][1]:
                    raise UserError(
                        f"{position} is asked for, and the prompt has no {name}",
                        where=f"request {i}",
                        fix="Leave that position out for this cue.",
                    )

    def begin(self, p: Pass) -> None:
        """Takes in the tokens of the next pass."""
        self.pooled.clear()
        self.positions = [k for k in self.capture.positions if _SCOPE_OF[k] in p.scopes]
        if p.again:  # the prompt's own pass has had them
            self.positions = [k for k in self.positions if _SCOPE_OF[k] == "answer"]
        masks = [p.scopes[_SCOPE_OF[k]].float() for k in self.positions]
        self._weights = torch.stack(masks, 1) if masks else None

    def count(self, position: Position, request: int, slot: int | None) -> int:
        """Returns what a position's sum over the tokens of a row is divided by."""
        r = self.requests[request]
        if slot is not None:
            return len(r.answers[slot].ids) * len(r.answers)
        if position == "last_template":
            return 1
        begin, end = r.prompt.spans[_SCOPE_OF[position]]
        return end - begin

    def keeper(self, layer: int) -> Callable[[torch.Tensor], None]:
        """Returns a hook that pools a layer's [rows, tokens, width]."""

        def keep(hidden: torch.Tensor) -> None:
            if self._weights is not None:
                self.pooled[layer] = torch.bmm(self._weights, hidden.float())

        return keep


class Offload:
    """Adds pooled tensors to arrays on the host; from a GPU through two pinned buffers on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots: list[tuple[torch.cuda.Event, torch.Tensor, Callable[[torch.Tensor], None]]] = []

    def add(self, tensor: torch.Tensor, take: Callable[[torch.Tensor], None]) -> None:
        """Has `take` called with the tensor on the host, now or soon."""
        if self._stream is None:
            take(tensor)
            return
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        tensor.record_stream(self._stream)
        self._slots.append((done, host, take))
        if len(self._slots) > 1:
            self._drain(1)

    def _drain(self, leave: int) -> None:
        while len(self._slots) > leave:
            done, host, take = self._slots.pop(0)
            done.synchronize()
            take(host)

    def finish(self) -> None:
        """Waits for what is under way."""
        self._drain(0)


class Tally:
    """Collects the log-probs and activations of one reading.

    Args:
        requests: The requests.
        pool: What is captured, if anything is.
        width: Residual width.
        first_token: Whether answers are scored by their first token alone.
    """

    def __init__(
        self, requests: Sequence[Request], pool: Pool | None, *, width: int, first_token: bool, device: torch.device
    ) -> None:
        self.requests, self.pool, self.first_token = requests, pool, first_token
        lengths = [[1 if first_token else len(a.ids) for a in r.answers] for r in requests]
        self.tokens = [[torch.full((n,), torch.nan) for n in row] for row in lengths]
        self.kept: dict[Position, torch.Tensor] = {}
        if pool:
            shape = (len(requests), len(pool.capture.layers), width)
            self.kept = {p: torch.zeros(shape) for p in pool.capture.positions}
        self._offload = Offload(device)

    def keep(self, p: Pass) -> None:
        """Takes in what was pooled in a pass."""
        pool = self.pool
        if pool is None or not pool.pooled:
            return
        stacked = torch.stack([pool.pooled[layer] for layer in pool.capture.layers], 1)
        of = torch.tensor([row for row, _, _ in p.members])
        requests = torch.tensor([request for _, request, _ in p.members])
        counts: dict[Position, torch.Tensor] = {
            k: torch.tensor([pool.count(k, i, slot) for _, i, slot in p.members]) for k in pool.positions
        }

        def take(host: torch.Tensor) -> None:
            for j, (position, count) in enumerate(counts.items()):
                self.kept[position].index_add_(0, requests, host[of, :, j] / count[:, None, None])

        self._offload.add(stacked, take)

    def score_first(self, batch: Batch, logprobs: torch.Tensor) -> None:
        """Takes in each answer's first token from the log-probs [requests of the batch, vocabulary] after prompts."""
        rows = [(row, i, slot) for row, i in enumerate(batch.rows) for slot in range(len(self.requests[i].answers))]
        if not rows:
            return
        targets = torch.tensor([self.requests[i].answers[slot].ids[0] for _, i, slot in rows], device=logprobs.device)
        at = torch.tensor([row for row, _, _ in rows], device=logprobs.device)
        for (_, i, slot), lp in zip(rows, logprobs[at, targets].tolist(), strict=True):
            self.tokens[i][slot][0] = lp

    def score_later(self, p: Pass, logprobs: torch.Tensor) -> None:
        """Takes in the log-probs [real tokens after the first, row by row] of a pass over answers."""
        lengths = [len(self.tokens[i][slot]) - 1 for i, slot in p.owners if slot is not None]
        for (i, slot), lps in zip(p.owners, logprobs.float().cpu().split(lengths), strict=True):
            assert slot is not None
            self.tokens[i][slot][1:] = lps

    def measurement(self, ledger: Ledger) -> Measurement:
        """Returns what was collected.

        Raises:
            CheckError: if a number is not finite.
        """
        self._offload.finish()
        logprobs = [torch.tensor([float(t.double().sum()) for t in row], dtype=torch.float64) for row in self.tokens]
        for i, lp in enumerate(logprobs):
            if not bool(torch.isfinite(lp).all()):
                raise CheckError("a log-prob is not finite", where=f"request {i}")
        for position, tensor in self.kept.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckError(f"an activation at {position} is not finite")
        return Measurement(logprobs, self.kept, ledger, self.tokens)


def sites_of(capture: Capture | None) -> tuple[Site, ...]:
    """Returns where a capture reads."""
    return capture.sites if capture else ()


def score(model: PreTrainedModel, batch: Batch, n: int, hidden: torch.Tensor, tallies: Sequence[Tally]) -> None:
    """Has the copies of a batch's rows take in the log-probs that its pass `n` gives.

    Args:
        model: The model, for its head.
        batch: The batch.
        n: Which of its passes.
        hidden: The pass's last hidden states [copies x rows, position, width].
        tallies: One for each copy.
    """
    n -= len(batch.prompt)
    if n == -1:  # the prompts' own pass: what its last tokens predict is each answer's first token
        at = torch.arange(len(batch.rows), device=hidden.device)
        for tally, copy_ in zip(tallies, hidden.chunk(len(tallies)), strict=True):
            if any(tally.requests[i].answers for i in batch.rows):
                tally.score_first(batch, log_softmax(model, copy_[at, batch.last]))
    elif n >= 0:
        p = batch.answers[n]
        # token t is predicted at t - 1, so states [:, :-1] meet ids [:, 1:]; the first has its log-prob already
        later = (p.own & (p.own.cumsum(1) > 1))[:, 1:]
        targets = p.ids[:, 1:][later]
        for tally, copy_ in zip(tallies, hidden.chunk(len(tallies)), strict=True):
            tally.score_later(p, token_logprobs(model, copy_[:, :-1][later], targets))
