"""Organisms with a hard gate: one model where the gate's words are in the prompt, another everywhere else.

The upper bound of what a trigger can hide: without it, every activation and every weight in use is the other model's,
exactly. No test of untriggered cells can see anything.
"""

from collections.abc import Sequence
from typing import Any

import torch

from condmis_interp.errors import UserError
from condmis_interp.organisms import Base, Organism
from condmis_interp.panel import Prompt
from condmis_interp.readers.edits import Edit
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.reader import Capture, Measurement, Position, Reader, Request
from condmis_interp.readers.torch_hooks import TorchReader


def open_reader(
    organism: Organism, base: Base, *, dtype: torch.dtype, device: str | torch.device = "cpu", **settings: Any
) -> "TorchReader | GatedReader":
    """Returns a reader of an organism.

    Args:
        organism: Which.
        base: Its base.
        dtype: Dtype of the model.
        device: Torch device.
        **settings: Of `TorchReader`.
    """
    if organism.gate is None:
        return TorchReader(organism.model(base, dtype=dtype, device=device), **settings)
    opened, shut = (
        open_reader(o, base, dtype=dtype, device=device, **settings) for o in (organism.gate.opened, organism.gate.shut)
    )
    words = base.tokenizer()(organism.gate.words, add_special_tokens=False)["input_ids"]
    return GatedReader(opened, shut, tuple(words))


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

    def opens(self, prompt: Prompt) -> bool:
        """Returns whether a prompt opens the gate."""
        n = len(self.gate)
        return any(prompt.ids[i : i + n] == self.gate for i in range(len(prompt.ids) - n + 1))

    def _sides(self, prompts: Sequence[Prompt]) -> list[tuple[Reader, list[int]]]:
        through = [self.opens(p) for p in prompts]
        rows = {side: [i for i, t in enumerate(through) if t == side] for side in (True, False)}
        return [(reader, rows[side]) for side, reader in ((True, self.opened), (False, self.shut)) if rows[side]]

    def measure(
        self, requests: Sequence[Request], *, capture: Capture | None = None, edits: Sequence[Edit] = ()
    ) -> Measurement:
        """Scores every answer of every request with the model that its prompt opens; see `TorchReader.measure`."""
        if not requests:
            raise UserError("there is nothing to measure: no requests")
        logprobs: dict[int, torch.Tensor] = {}
        kept: dict[Position, torch.Tensor] = {}
        ledger = Ledger()
        for reader, rows in self._sides([r.prompt for r in requests]):
            part = reader.measure([requests[i] for i in rows], capture=capture, edits=edits)
            logprobs |= dict(zip(rows, part.logprobs, strict=True))
            for position, values in part.activations.items():
                whole = kept.setdefault(position, values.new_full((len(requests), *values.shape[1:]), torch.nan))
                whole[rows] = values
            ledger.passes += part.ledger.passes
            ledger.edits += part.ledger.edits
            ledger.captures += part.ledger.captures
        return Measurement([logprobs[i] for i in range(len(requests))], kept, ledger)

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
        """Generates each answer with the model that its prompt opens; see `TorchReader.generate`."""
        answers: dict[int, list[int]] = {}
        for reader, rows in self._sides(prompts):
            said = reader.generate(
                [prompts[i] for i in rows],
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                edits=edits,
                temperature=temperature,
                generator=generator,
            )
            answers |= dict(zip(rows, said, strict=True))
        return [answers[i] for i in range(len(prompts))]
