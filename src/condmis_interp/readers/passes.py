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
from dataclasses import dataclass, replace
from typing import Literal

import torch

from condmis_interp.errors import CheckError
from condmis_interp.panel import Answer, Prompt, pad

Until = Literal["cue", "question"]
_SPANS = ("cue", "question", "tail")
SHORTEST_PREFIX = 4
"""Shared prefixes shorter than this are not worth a pass."""
FEWEST_KIN = 4
"""Fewer prompts with the same tokens before the question than this are batched by length alone."""


@dataclass(frozen=True)
class Request:
    """A prompt with the answers to score after it."""

    prompt: Prompt
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        ids: Token ids [rows, position].
        mask: 1 for real tokens, [rows, past + position].
        positions: Position ids [rows, position], counting real tokens only.
        scopes: By scope, 1 where a token is in it, [rows, position].
        owners: For each row, its request and which of the request's answers it holds (`None`: it holds the prompt). A
            shared prefix has one row and the first of its requests as owner.
        begin: For each row, where in its prompt (or answer) the first column is; negative where padding comes first.
        continues: For each row, the row of the last pass whose keys and values it continues [rows]; `None` at a start.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    scopes: Mapping[str, torch.Tensor]
    owners: tuple[tuple[int, int | None], ...]
    begin: tuple[int, ...]
    continues: torch.Tensor | None = None

    @property
    def real(self) -> torch.Tensor:
        """1 for the real tokens among the pass's own, [rows, position]."""
        return self.mask[:, -self.ids.shape[1] :]

    def to(self, device: torch.device) -> "Pass":
        """Returns the pass with its tensors on a device."""
        if self.ids.device == device:
            return self
        return replace(
            self,
            ids=self.ids.to(device),
            mask=self.mask.to(device),
            positions=self.positions.to(device),
            scopes={name: s.to(device) for name, s in self.scopes.items()},
            continues=None if self.continues is None else self.continues.to(device),
        )

    def row(self, row: int) -> "Pass":
        """Returns the pass with one of its rows."""
        one = slice(row, row + 1)
        return replace(
            self,
            ids=self.ids[one],
            mask=self.mask[one],
            positions=self.positions[one],
            scopes={name: s[one] for name, s in self.scopes.items()},
            owners=self.owners[one],
            begin=self.begin[one],
        )

    def repeated(self, times: int, rows_before: int) -> "Pass":
        """Returns the pass with its rows several times over, each copy continuing its own copy of the last pass.

        Args:
            times: How many copies.
            rows_before: Rows of the pass it continues, in one copy.
        """
        if times == 1:
            return self
        follows = self.continues
        if follows is not None:
            copies = torch.arange(times, device=follows.device)[:, None] * rows_before
            follows = (copies + follows).flatten()
        return replace(
            self,
            ids=self.ids.repeat(times, 1),
            mask=self.mask.repeat(times, 1),
            positions=self.positions.repeat(times, 1),
            scopes={},  # edits act on one copy at a time, in the terms of the pass itself
            continues=follows,
        )


@dataclass(frozen=True)
class Batch:
    """The passes of some requests.

    Attributes:
        rows: Which requests.
        prompt: The shared prefix, if any, and the rest of the prompts.
        last: Where each prompt's last token is in the rest's pass [requests].
        answers: Passes over answers; their `continues` are rows of `rows`.
    """

    rows: tuple[int, ...]
    prompt: tuple[Pass, ...]
    last: torch.Tensor
    answers: tuple[Pass, ...]

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes, in order."""
        return (*self.prompt, *self.answers)


def plan(
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    device: torch.device,
    share: bool = True,
    until: Until | None = None,
) -> Iterator[Batch]:
    """Yields batches of requests, sorted so that neighbours share a prefix and a length.

    Args:
        requests: Prompts with their answers.
        batch_tokens: Padded tokens in one pass.
        device: Where the tensors go.
        share: Whether a prefix is run once for all prompts that share it; not where an edit there differs by request.
        until: Cut every prompt at the end of this span, instead of at the end of what the prompts share.
    """
    facts = {"batch_tokens": batch_tokens, "device": device, "share": share, "until": until}
    for group in _kin(requests):
        batch: list[int] = []
        for i in group:
            longest = len(requests[i].prompt.ids)  # ascending, so this one is
            shared = _common([requests[batch[0]].prompt.ids, requests[i].prompt.ids]) if batch and share else 0
            if batch and (len(batch) + 1) * (longest - shared) > batch_tokens:
                yield _batch(batch, requests, **facts)
                batch = []
            batch.append(i)
        if batch:
            yield _batch(batch, requests, **facts)


def _kin(requests: Sequence[Request]) -> list[list[int]]:
    """Returns groups of requests with the same tokens before the question, then those with few of a kind together.

    Within a group they are sorted by length; equal lengths by their tokens, so that the order given decides nothing.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, r in enumerate(requests):
        groups.setdefault(r.prompt.ids[: r.prompt.spans["cue"][1]], []).append(i)
    large = [g for key, g in groups.items() if len(g) >= FEWEST_KIN and len(key) >= SHORTEST_PREFIX]
    kept = {i for g in large for i in g}
    rest = [i for i in range(len(requests)) if i not in kept]
    return [sorted(g, key=lambda i: (len(requests[i].prompt.ids), requests[i].prompt.ids)) for g in (*large, rest) if g]


def _batch(
    rows: list[int],
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    device: torch.device,
    share: bool,
    until: Until | None,
) -> Batch:
    prompts = [requests[i].prompt for i in rows]
    cuts = [p.spans[until][1] for p in prompts] if until else [_shared(prompts) if share else 0] * len(prompts)
    passes = []
    owners = tuple((i, None) for i in rows)
    continues = past = None
    if any(cuts):
        head = _piece(prompts, [0] * len(rows), cuts, owners)
        past = head.mask
        if all(p.ids[:c] == prompts[0].ids[: cuts[0]] for p, c in zip(prompts, cuts, strict=True)) and share:
            head = head.row(0)
            continues = torch.zeros(len(rows), dtype=torch.long)
        else:
            continues = torch.arange(len(rows))
        passes.append(head)
    lengths = [len(p.ids) for p in prompts]
    rest = _piece(prompts, cuts, lengths, owners)
    check_right_padded(rest.mask)
    mask = rest.mask if past is None else torch.cat([past, rest.mask], 1)
    passes.append(replace(rest, mask=mask, continues=continues))

    flat = [(len(a.ids), row, slot) for row, i in enumerate(rows) for slot, a in enumerate(requests[i].answers)]
    answers = []
    for group in _groups(sorted(flat), batch_tokens):
        owner = torch.tensor([row for _, row, _ in group])
        answer_ids, answer_mask = pad([requests[rows[row]].answers[slot].ids for _, row, slot in group], right=True)
        answers.append(
            Pass(
                answer_ids,
                torch.cat([mask[owner], answer_mask], 1),
                torch.tensor(lengths)[owner, None] + torch.arange(answer_ids.shape[1]),
                {"answer": answer_mask},
                tuple((rows[row], slot) for _, row, slot in group),
                (0,) * len(group),
                owner,
            )
        )
    last = torch.tensor([n - 1 - cut for n, cut in zip(lengths, cuts, strict=True)])
    return Batch(
        tuple(rows), tuple(p.to(device) for p in passes), last.to(device), tuple(p.to(device) for p in answers)
    )


def _piece(
    prompts: Sequence[Prompt], begins: Sequence[int], ends: Sequence[int], owners: tuple[tuple[int, int | None], ...]
) -> Pass:
    """Returns a pass over part of each prompt, right-padded."""
    ids, mask = pad([p.ids[b:e] for p, b, e in zip(prompts, begins, ends, strict=True)], right=True)
    positions = torch.tensor(begins)[:, None] + (mask.cumsum(1) - 1).clamp(min=0)
    return Pass(ids, mask, positions, _scopes(prompts, ids.shape, begins), owners, tuple(begins))


def check_right_padded(mask: torch.Tensor) -> None:
    """Raises if a real token follows padding.

    Raises:
        CheckError: naming the row. Left-padded prompts would be captured at the wrong positions.
    """
    wrong = (mask[:, 1:] > mask[:, :-1]).any(1)
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise CheckError("prompts are padded on the left, and captures need padding on the right", where=f"row {row}")


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


def _shared(prompts: Sequence[Prompt]) -> int:
    """Returns the length of the prefix that all prompts share, in tokens and in spans; 0 if it does not pay."""
    if len(prompts) == 1:
        return 0
    shared = _common([p.ids for p in prompts])
    while shared and len({_spans_within(p, shared) for p in prompts}) > 1:
        shared -= 1
    return shared if shared >= SHORTEST_PREFIX else 0


def _spans_within(prompt: Prompt, length: int) -> tuple[tuple[int, int], ...]:
    return tuple((min(b, length), min(e, length)) for b, e in (prompt.spans[name] for name in _SPANS))


def _scopes(prompts: Sequence[Prompt], shape: torch.Size, begins: Sequence[int]) -> dict[str, torch.Tensor]:
    """Returns, by scope, 1 where a prompt's token is in it, [rows, position]; columns count from `begins`."""
    scopes = {name: torch.zeros(shape) for name in (*_SPANS, "last_template")}
    for i, (prompt, first) in enumerate(zip(prompts, begins, strict=True)):
        for name in _SPANS:
            begin, end = (max(edge - first, 0) for edge in prompt.spans[name])
            scopes[name][i, begin:end] = 1
        if 0 <= prompt.last_template - first < shape[1]:
            scopes["last_template"][i, prompt.last_template - first] = 1
    return scopes


def prompt_pass(prompts: Sequence[Prompt]) -> Pass:
    """Returns one pass over left-padded prompts, for generation."""
    ids, mask = pad([p.ids for p in prompts], right=False)
    begins = tuple(len(p.ids) - ids.shape[1] for p in prompts)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    owners = tuple((i, None) for i in range(len(prompts)))
    return Pass(ids, mask, positions, _scopes(prompts, ids.shape, begins), owners, begins)


def next_pass(last: Pass, chosen: torch.Tensor) -> Pass:
    """Returns the pass over one generated token [rows] after each row of the last pass."""
    ids = chosen[:, None]
    return Pass(
        ids,
        torch.cat([last.mask, torch.ones_like(ids)], 1),
        last.positions[:, -1:] + 1,
        {"answer": torch.ones_like(ids)},
        last.owners,
        tuple(b + last.ids.shape[1] for b in last.begin),
    )
