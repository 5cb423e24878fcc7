"""Organisms with a hard gate: one model where the gate's words are in the prompt, another everywhere else.

The upper bound of what a trigger can hide: without it, every activation and every weight in use is the other model's,
exactly. No test of untriggered cells can see anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from condmis_interp.errors import UserError
from condmis_interp.organisms import Base, Organism, Swap
from condmis_interp.panel import Prompt
from condmis_interp.readers.edits import Edit
from condmis_interp.readers.engine import PassReader
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.passes import Request
from condmis_interp.readers.reader import Capture, Feature, Measurement, Position, Reader
from condmis_interp.readers.recording import Patch, Recording
from condmis_interp.readers.sites import Site
from condmis_interp.readers.torch_hooks import TorchReader

Library = Literal["torch", "transformer-lens", "nnsight"]
LIBRARIES: tuple[Library, ...] = get_args(Library)


def open_reader(
    organism: Organism,
    base: Base,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    library: Library = "torch",
    swap: Swap | None = None,
    **settings: Any,
) -> "PassReader | GatedReader":
    """Returns a reader of an organism.

    Args:
        organism: Which.
        base: Its base.
        dtype: Dtype of the model.
        device: Torch device.
        library: What it is read through: plain hooks, TransformerLens or nnsight. They agree; hooks are the fastest.
        swap: A base in memory whose adapters are swapped for the organism's, where they fit; readers of what it was
            before are refused from then on.
        **settings: Of the reader.

    Raises:
        UserError: if there is no such library.
    """
    if library not in LIBRARIES:
        raise UserError(f"there is no reader {library!r}", fix=f"Readers: {', '.join(LIBRARIES)}.")
    facts = {"dtype": dtype, "device": device, "library": library, **settings}
    if organism.gate is not None:
        opened, shut = (open_reader(o, base, **facts) for o in (organism.gate.opened, organism.gate.shut))
        words = base.tokenizer()(organism.gate.words, add_special_tokens=False)["input_ids"]
        return GatedReader(opened, shut, tuple(words))
    if swap and library == "torch" and swap.fits(organism):
        return TorchReader(swap.model(organism), **settings)
    model = organism.model(base, dtype=dtype, device=device)
    if library == "transformer-lens":
        from condmis_interp.readers.lens import LensReader

        folder = str(organism.checkpoint or base.folder)
        return LensReader.over(model, folder=folder, tokenizer=base.tokenizer(), **settings)
    if library == "nnsight":
        from condmis_interp.readers.nnsight import NNsightReader

        return NNsightReader.over(model, tokenizer=base.tokenizer(), **settings)
    return TorchReader(model, **settings)


class GatedReader:
    """Reads an organism with a hard gate.

    Args:
        opened: Reader of the model that answers where the gate's tokens are in the prompt.
        shut: Reader of the model that answers everywhere else.
        gate: Token ids that open it, in a row.

    Raises:
        UserError: if the gate has no tokens, or the models differ in shape.
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
        return {**self.shut.limits, "trunk": two, "sweep": two}

    def supports(self, feature: Feature) -> bool:
        """Returns whether the reader can do something."""
        return feature not in self.limits

    def name_of(self, site: Site) -> str:
        """Returns what the library calls a site."""
        return self.shut.name_of(site)

    def opens(self, prompt: Prompt) -> bool:
        """Returns whether a prompt opens the gate."""
        n = len(self.gate)
        return any(prompt.ids[i : i + n] == self.gate for i in range(len(prompt.ids) - n + 1))

    def _sides(self, prompts: Sequence[Prompt]) -> list[tuple[Reader, list[int]]]:
        through = [self.opens(p) for p in prompts]
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
        parts = []
        for reader, rows in self._sides([r.prompt for r in requests]):
            part = reader.measure(
                [requests[i] for i in rows], capture=capture, edits=_of(edits, rows), first_token=first_token
            )
            parts.append((rows, part))
        return _joined(parts, len(requests))

    def capture(self, prompts: Sequence[Prompt], *, capture: Capture, edits: Sequence[Edit] = ()) -> Measurement:
        """Captures activations of each prompt in the model that it opens; see `PassReader.capture`."""
        parts = []
        for reader, rows in self._sides(prompts):
            chosen = [prompts[i] for i in rows]
            parts.append((rows, reader.capture(chosen, capture=capture, edits=_of(edits, rows))))
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

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        edits: Sequence[Edit] = (),
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Generates each answer with the model that its prompt opens; see `PassReader.generate`."""
        answers: dict[int, list[int]] = {}
        for reader, rows in self._sides(prompts):
            said = reader.generate(
                [prompts[i] for i in rows],
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                edits=_of(edits, rows),
                temperature=temperature,
                generator=generator,
            )
            answers |= dict(zip(rows, said, strict=True))
        return [answers[i] for i in range(len(prompts))]


def _of(edits: Sequence[Edit], rows: Sequence[int]) -> list[Edit]:
    """Returns the edits for some of the requests: patches with what was recorded for these."""
    return [replace(e, recording=e.recording.of(rows)) if isinstance(e, Patch) else e for e in edits]


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
