"""From requests to forward passes: which tokens a model is run on, and what they continue.

Scoring the answers of a panel repeats itself: every prompt under a cue starts with the same tokens, and every answer to
a question with the same prompt. So a batch of requests becomes

1. one pass over the prefix that its prompts share (once, batch of 1),
2. one pass over the rest of the prompts (right-padded),
3. passes over the answers, sorted by length (right-padded),

each continuing the keys and values of the one before. Attention is causal, so this is the same computation as one pass
over each prompt + answer, on a fraction of the tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from condmis_interp.panel import Prompt, pad
from condmis_interp.readers.edits import Scope
from condmis_interp.readers.reader import Request

PROMPT_SCOPES: tuple[Scope, ...] = ("cue", "question", "tail", "last_template")
SHORTEST_PREFIX = 4
"""Shared prefixes shorter than this are not worth a pass."""


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        ids: Token ids [rows, position].
        mask: 1 for real tokens, [rows, past + position].
        positions: Position ids [rows, position], counting real tokens only.
        scopes: By scope, 1 where a token is in it, [rows, position].
        continues: For each row, the row of the last pass whose keys and values it continues [rows]; `None` at a start.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    scopes: Mapping[Scope, torch.Tensor]
    continues: torch.Tensor | None = None

    @property
    def real(self) -> torch.Tensor:
        """1 for the real tokens among the pass's own, [rows, position]."""
        return self.mask[:, -self.ids.shape[1] :]


@dataclass(frozen=True)
class Batch:
    """The passes of some requests.

    Attributes:
        rows: Which requests.
        prompt: The shared prefix, if any, and the rest of the prompts.
        last: Where each prompt's last token is in the rest's pass [requests].
        answers: Passes over answers; their `continues` are rows of `rows`.
        slots: For each pass over answers, which of its request's answers each row is.
    """

    rows: tuple[int, ...]
    prompt: tuple[Pass, ...]
    last: torch.Tensor
    answers: tuple[Pass, ...]
    slots: tuple[tuple[int, ...], ...]

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes, in order."""
        return (*self.prompt, *self.answers)


def plan(requests: Sequence[Request], *, batch_tokens: int, device: torch.device) -> Iterator[Batch]:
    """Yields batches of requests, sorted so that neighbours share a prefix and a length.

    Args:
        requests: Prompts with their answers.
        batch_tokens: Padded tokens in one pass.
        device: Where the tensors go.
    """
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt.ids), requests[i].prompt.ids))
    batch: list[int] = []
    for i in order:
        longest = len(requests[i].prompt.ids)  # ascending, so this one is
        shared = _common([requests[batch[0]].prompt.ids, requests[i].prompt.ids]) if batch else 0
        if batch and (len(batch) + 1) * (longest - shared) > batch_tokens:
            yield _batch(batch, requests, batch_tokens, device)
            batch = []
        batch.append(i)
    if batch:
        yield _batch(batch, requests, batch_tokens, device)


def _batch(rows: list[int], requests: Sequence[Request], batch_tokens: int, device: torch.device) -> Batch:
    prompts = [requests[i].prompt for i in rows]
    lengths = torch.tensor([len(p.ids) for p in prompts])
    ids, mask = pad([p.ids for p in prompts], right=True)
    scopes = prompt_scopes(prompts, ids.shape, right=True)
    shared = _shared(prompts, scopes)
    positions = positions_of(mask)
    passes = []
    if shared:
        head: dict[Scope, torch.Tensor] = {name: s[:1, :shared] for name, s in scopes.items()}
        passes.append(Pass(ids[:1, :shared], mask[:1, :shared], positions[:1, :shared], head))
    tail: dict[Scope, torch.Tensor] = {name: s[:, shared:] for name, s in scopes.items()}
    first = torch.zeros(len(rows), dtype=torch.long) if shared else None
    passes.append(Pass(ids[:, shared:], mask, positions[:, shared:], tail, first))

    flat = [(len(a.ids), row, slot) for row, i in enumerate(rows) for slot, a in enumerate(requests[i].answers)]
    answers, slots = [], []
    for group in _groups(sorted(flat), batch_tokens):
        owner = torch.tensor([row for _, row, _ in group])
        answer_ids, answer_mask = pad([requests[rows[row]].answers[slot].ids for _, row, slot in group], right=True)
        answers.append(
            Pass(
                answer_ids,
                torch.cat([mask[owner], answer_mask], 1),
                lengths[owner, None] + torch.arange(answer_ids.shape[1]),
                {"answer": answer_mask},
                owner,
            )
        )
        slots.append(tuple(slot for _, _, slot in group))
    return Batch(
        tuple(rows),
        tuple(_to(p, device) for p in passes),
        (lengths - 1 - shared).to(device),
        tuple(_to(p, device) for p in answers),
        tuple(slots),
    )


def _to(p: Pass, device: torch.device) -> Pass:
    scopes: dict[Scope, torch.Tensor] = {name: s.to(device) for name, s in p.scopes.items()}
    continues = None if p.continues is None else p.continues.to(device)
    return Pass(p.ids.to(device), p.mask.to(device), p.positions.to(device), scopes, continues)


def _groups(answers: list[tuple[int, int, int]], batch_tokens: int) -> Iterator[list[tuple[int, int, int]]]:
    group: list[tuple[int, int, int]] = []
    for answer in answers:
        if group and (len(group) + 1) * answer[0] > batch_tokens:
            yield group
            group = []
        group.append(answer)
    if group:
        yield group


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Returns how many first tokens all sequences share, leaving each at least one of its own."""
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))
    limit = min(map(len, sequences)) - 1
    return next((k for k in range(limit) if low[k] != high[k]), limit)


def _shared(prompts: Sequence[Prompt], scopes: dict[Scope, torch.Tensor]) -> int:
    """Returns the length of the prefix that all prompts share, in tokens and in scopes; 0 if it does not pay."""
    if len(prompts) == 1:
        return 0
    shared = _common([p.ids for p in prompts])
    while shared and any(bool((s[:, :shared] != s[:1, :shared]).any()) for s in scopes.values()):
        shared -= 1
    return shared if shared >= SHORTEST_PREFIX else 0


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Returns position ids [rows, position] that count real tokens only, whatever the padding side."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def prompt_scopes(prompts: Sequence[Prompt], shape: torch.Size, *, right: bool) -> dict[Scope, torch.Tensor]:
    """Returns, by scope, 1 where a prompt's token is in it, [rows, position]."""
    scopes: dict[Scope, torch.Tensor] = {name: torch.zeros(shape) for name in PROMPT_SCOPES}
    for i, prompt in enumerate(prompts):
        shift = 0 if right else shape[1] - len(prompt.ids)
        for name in ("cue", "question", "tail"):
            begin, end = prompt.spans[name]
            scopes[name][i, shift + begin : shift + end] = 1
        scopes["last_template"][i, shift + prompt.last_template] = 1
    return scopes
