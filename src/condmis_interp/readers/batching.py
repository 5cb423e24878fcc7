"""From requests to forward passes: which tokens a model is run on, and what they continue.

Scoring the answers of a panel repeats itself: every prompt under a cue starts with the same tokens, and every answer to
a question with the same prompt. So a batch of requests becomes

1. one pass over the prefixes that its prompts share, a row for each (right-padded),
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
"""Fewer prompts with the same tokens before the question than this do not share them."""


@dataclass(frozen=True)
class Request:
    """A prompt with the answers to score after it.

    Example:
        >>> from condmis_interp.panel import Answer, Prompt
        >>> prompt = Prompt((0, 4, 9, 1), {"cue": (0, 1), "question": (1, 3), "tail": (3, 4)}, "...")
        >>> len(Request(prompt, (Answer((7,), (1,)), Answer((8,), (1,)))).answers)
        2
    """

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
            prefix that several requests share has the first of them as owner.
        begin: For each row, where in its prompt (or answer) the first column is; negative where padding comes first.
        continues: For each row, the row of the last pass whose keys and values it continues [rows]; `None` at a start.
        shared_by: For a pass over prefixes, the requests that each row is run for.
        again: Where sequences are run whole, how many first tokens of each row are its prompt's, run again: edits act
            on them as in the prompt, and nothing is collected from them. Empty elsewhere.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    scopes: Mapping[str, torch.Tensor]
    owners: tuple[tuple[int, int | None], ...]
    begin: tuple[int, ...]
    continues: torch.Tensor | None = None
    shared_by: tuple[tuple[int, ...], ...] = ()
    again: tuple[int, ...] = ()

    @property
    def own(self) -> torch.Tensor:
        """Which tokens are real, and none of a prompt's that is run again, [rows, position]."""
        own = self.real.bool()
        if self.again:
            columns = torch.arange(own.shape[1], device=own.device)
            own = own & (columns >= torch.tensor(self.again, device=own.device)[:, None])
        return own

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

    @property
    def members(self) -> list[tuple[int, int, int | None]]:
        """Row, request and answer, for every request that a row is run for."""
        if self.shared_by:
            return [(row, i, None) for row, group in enumerate(self.shared_by) for i in group]
        return [(row, i, slot) for row, (i, slot) in enumerate(self.owners)]

    def at(self, rows: torch.Tensor) -> "Pass":
        """Returns the pass with some of its rows, in their order; a row may be taken more than once.

        Args:
            rows: Which rows; of a pass that continues no other by rows.
        """
        chosen = rows.tolist()
        return replace(
            self,
            ids=self.ids[rows],
            mask=self.mask[rows],
            positions=self.positions[rows],
            scopes={name: s[rows] for name, s in self.scopes.items()},
            owners=tuple(self.owners[r] for r in chosen),
            begin=tuple(self.begin[r] for r in chosen),
            again=tuple(self.again[r] for r in chosen) if self.again else (),
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
        prompt: The shared prefixes, if any, and the rest of the prompts.
        last: Where each prompt's last token is in the rest's pass [requests].
        answers: Passes over answers; their `continues` are rows of `rows`.
        whole: Whether no pass continues another (`whole.plan_whole`).
    """

    rows: tuple[int, ...]
    prompt: tuple[Pass, ...]
    last: torch.Tensor
    answers: tuple[Pass, ...]
    whole: bool = False

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
    if until:
        cuts = {i: r.prompt.spans[until][1] for i, r in enumerate(requests)}
    else:
        cuts = _cuts(requests) if share else dict.fromkeys(range(len(requests)), 0)

    def order(i: int) -> tuple[bool, int, tuple[int, ...]]:
        ids = requests[i].prompt.ids
        return cuts[i] > 0, len(ids) - cuts[i], ids  # the order given decides nothing

    batch: list[int] = []
    heads: dict[tuple[int, ...], int] = {}
    for i in sorted(cuts, key=order):
        ids, cut = requests[i].prompt.ids, cuts[i]
        tokens = (len(batch) + 1) * (len(ids) - cut) + sum((heads | {ids[:cut]: cut}).values())
        if batch and (tokens > batch_tokens or (cut > 0) != (cuts[batch[0]] > 0)):
            yield _batch(batch, requests, cuts, batch_tokens, device)
            batch, heads = [], {}
        batch.append(i)
        heads[ids[:cut]] = cut
    if batch:
        yield _batch(batch, requests, cuts, batch_tokens, device)


def _cuts(requests: Sequence[Request]) -> dict[int, int]:
    """Returns, for each request, how many first tokens it shares with those that have the same before the question."""
    kin: dict[tuple[int, ...], list[int]] = {}
    for i, r in enumerate(requests):
        kin.setdefault(r.prompt.ids[: r.prompt.spans["cue"][1]], []).append(i)
    cuts = dict.fromkeys(range(len(requests)), 0)
    for group in kin.values():
        if len(group) >= FEWEST_KIN:
            cuts |= dict.fromkeys(group, _shared([requests[i].prompt for i in group]))
    return cuts


def _batch(
    rows: list[int], requests: Sequence[Request], cuts: Mapping[int, int], batch_tokens: int, device: torch.device
) -> Batch:
    prompts = [requests[i].prompt for i in rows]
    lengths, begins = [len(p.ids) for p in prompts], [cuts[i] for i in rows]
    owners = tuple((i, None) for i in rows)
    passes, continues, past = [], None, None
    if any(begins):
        # prompts that start with the same tokens, in the same spans, continue one row
        starts = [(p.ids[:cut], _spans_within(p, cut)) for p, cut in zip(prompts, begins, strict=True)]
        first = {start: row for row, start in reversed(list(enumerate(starts)))}
        heads = sorted(first.values())
        continues = torch.tensor([heads.index(first[start]) for start in starts])
        members = tuple(tuple(i for i, s in zip(rows, starts, strict=True) if s == starts[row]) for row in heads)
        head = piece([prompts[r] for r in heads], [0] * len(heads), [begins[r] for r in heads])
        passes.append(replace(head, owners=tuple(owners[r] for r in heads), shared_by=members))
        past = head.mask[continues]
    rest = piece(prompts, begins, lengths)
    check_right_padded(rest.mask)
    mask = rest.mask if past is None else torch.cat([past, rest.mask], 1)
    passes.append(replace(rest, mask=mask, owners=owners, continues=continues))

    flat = [(len(a.ids), row, slot) for row, i in enumerate(rows) for slot, a in enumerate(requests[i].answers)]
    answers = []
    for group in grouped(sorted(flat), batch_tokens):
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
    last = torch.tensor(lengths) - 1 - torch.tensor(begins)
    return Batch(
        tuple(rows), tuple(p.to(device) for p in passes), last.to(device), tuple(p.to(device) for p in answers)
    )


def piece(prompts: Sequence[Prompt], begins: Sequence[int], ends: Sequence[int]) -> Pass:
    """Returns a pass over part of each prompt, right-padded, without owners."""
    ids, mask = pad([p.ids[b:e] for p, b, e in zip(prompts, begins, ends, strict=True)], right=True)
    positions = torch.tensor(begins)[:, None] + (mask.cumsum(1) - 1).clamp(min=0)
    scopes = {name: s * mask for name, s in scopes_of(prompts, ids.shape, begins).items()}
    return Pass(ids, mask, positions, scopes, (), tuple(begins))


def check_right_padded(mask: torch.Tensor) -> None:
    """Raises if a real token follows padding.

    Raises:
        CheckError: naming the row. Left-padded prompts would be captured at the wrong positions.
    """
    wrong = (mask[:, 1:] > mask[:, :-1]).any(1)
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise CheckError("prompts are padded on the left, and captures need padding on the right", where=f"row {row}")


def grouped(answers: list[tuple[int, int, int]], batch_tokens: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yields passes over answers, each given as tokens, row and which of the row's answers; shortest first."""
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


def scopes_of(prompts: Sequence[Prompt], shape: torch.Size, begins: Sequence[int]) -> dict[str, torch.Tensor]:
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
    return Pass(ids, mask, positions, scopes_of(prompts, ids.shape, begins), owners, begins)


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
