"""Organisms with a hard gate: one model where the gate's words are in the prompt, another everywhere else.

The upper bound of what a trigger can hide: without it, every activation and every weight in use is the other model's,
exactly. No test of untriggered cells can see anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from condmis_interp.errors import UserError
from condmis_interp.panel import Prompt
from condmis_interp.readers.base import Capture, Decoding, Feature, Measurement, Position, Reader
from condmis_interp.readers.batching import Request
from condmis_interp.readers.edits import Edit, listed
from condmis_interp.readers.guards import check_kind
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.recording import Recording, edits_of
from condmis_interp.readers.sites import Site


def opens(prompt: Prompt, gate: tuple[int, ...]) -> bool:
    """Returns whether a prompt holds the gate's tokens, in a row."""
    n = len(gate)
    return any(prompt.ids[i : i + n] == gate for i in range(len(prompt.ids) - n + 1))


class GatedReader(Reader):
    """Reads an organism with a hard gate.

    Args:
        opened: Reader of the model that answers where the gate's tokens are in the prompt.
        shut: Reader of the model that answers everywhere else.
        gate: Token ids that open it, in a row.

    Raises:
        UserError: if the gate has no tokens, or the models differ in shape.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import Prompt
        >>> from condmis_interp.readers import TorchReader
        >>> base = resolve_base("dir:base")
        >>> a, b = (TorchReader(base.model(dtype=torch.float32)) for _ in range(2))
        >>> reader = GatedReader(a, b, gate=(7, 8))
        >>> spans = {"cue": (0, 2), "question": (2, 3), "tail": (3, 4)}
        >>> reader.opens(Prompt((7, 8, 3, 4), spans, "...")), reader.opens(Prompt((8, 7, 3, 4), spans, "..."))
        (True, False)
    """

    def __init__(self, opened: Reader, shut: Reader, gate: tuple[int, ...]) -> None:
        if not gate:
            raise UserError("a gate without tokens is open everywhere")
        if (opened.n_layers, opened.width) != (shut.n_layers, shut.width):
            raise UserError("the two models of a gate have different shapes")
        self.opened, self.shut, self.gate = opened, shut, gate

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.shut.n_layers

    @property
    def width(self) -> int:
        """Residual width."""
        return self.shut.width

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What the reader cannot do, and why."""
        two = "a gated organism is two models, which share no trunk"
        return {**self.opened.limits, **self.shut.limits, "trunk": two, "sweep": two}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer; the shut model's, as its tokenizer is the opened one's."""
        return super().stop_ids or self.shut.stop_ids

    def name_of(self, site: Site) -> str:
        """Returns what the library calls a site."""
        return self.shut.name_of(site)

    def opens(self, prompt: Prompt) -> bool:
        """Returns whether a prompt opens the gate."""
        return opens(prompt, self.gate)

    def _sides(self, prompts: Sequence[Prompt]) -> list[tuple[Reader, list[int]]]:
        through = [self.opens(p) for p in check_kind(prompts, Prompt)]
        rows = {side: [i for i, t in enumerate(through) if t == side] for side in (True, False)}
        return [(reader, rows[side]) for side, reader in ((True, self.opened), (False, self.shut)) if rows[side]]

    def measure(
        self,
        requests: Sequence[Request],
        *,
        capture: Capture | None = None,
        edits: Sequence[Edit] = (),
        first_token: bool = False,
    ) -> Measurement:
        """Scores every answer of every request with the model that its prompt opens; see `PassReader.measure`."""
        if not requests:
            raise UserError("there is nothing to measure: no requests")
        edits, parts = listed(edits), []
        for reader, rows in self._sides([r.prompt for r in check_kind(requests, Request)]):
            part = reader.measure(
                [requests[i] for i in rows], capture=capture, edits=edits_of(edits, rows), first_token=first_token
            )
            parts.append((rows, part))
        return _joined(parts, len(requests))

    def capture(self, prompts: Sequence[Prompt], *, capture: Capture, edits: Sequence[Edit] = ()) -> Measurement:
        """Captures activations of each prompt in the model that it opens; see `PassReader.capture`."""
        edits, parts = listed(edits), []
        for reader, rows in self._sides(prompts):
            chosen = [prompts[i] for i in rows]
            parts.append((rows, reader.capture(chosen, capture=capture, edits=edits_of(edits, rows))))
        return _joined(parts, len(prompts))

    def record(self, requests: Sequence[Request], *, sites: Sequence[Site]) -> Recording:
        """Records each request in the model that its prompt opens; see `PassReader.record`."""
        prompts: dict[int, Any] = {}
        answers: dict[int, Any] = {}
        for reader, rows in self._sides([r.prompt for r in requests]):
            part = reader.record([requests[i] for i in rows], sites=sites)
            prompts |= dict(zip(rows, part.prompts, strict=True))
            answers |= dict(zip(rows, part.answers, strict=True))
        order = range(len(requests))
        return Recording(requests, [prompts[i] for i in order], [answers[i] for i in order], tuple(order))

    def _decode(self, prompts: Sequence[Prompt], how: Decoding) -> list[list[int]]:
        answers: dict[int, list[int]] = {}
        for reader, rows in self._sides(prompts):
            seeds = None if how.seeds is None else tuple(how.seeds[i] for i in rows)
            own = replace(how, edits=edits_of(how.edits, rows), seeds=seeds)
            said = reader._decode([prompts[i] for i in rows], own)
            answers |= dict(zip(rows, said, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def __repr__(self) -> str:
        return f"GatedReader({self.name or 'two models'}: {self.opened} where the gate is open, else {self.shut})"


def _joined(parts: Sequence[tuple[list[int], Measurement]], count: int) -> Measurement:
    """Returns the measurements of several models as one, in the order of the requests."""
    logprobs: dict[int, torch.Tensor] = {}
    tokens: dict[int, list[torch.Tensor]] = {}
    kept: dict[Position, torch.Tensor] = {}
    ledger = Ledger()
    for rows, part in parts:
        logprobs |= dict(zip(rows, part.logprobs, strict=True))
        tokens |= dict(zip(rows, part.token_logprobs, strict=True))
        for position, values in part.activations.items():
            whole = kept.setdefault(position, values.new_full((count, *values.shape[1:]), torch.nan))
            whole[rows] = values
        ledger.passes += part.ledger.passes
        ledger.edits += part.ledger.edits
        ledger.captures += part.ledger.captures
    return Measurement([logprobs[i] for i in range(count)], kept, ledger, [tokens[i] for i in range(count)])
