"""The Reader protocol: one way to ask any library for log-probs, activations and answers, with and without edits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch

from condmis_interp.errors import UserError
from condmis_interp.panel import Answer, Prompt
from condmis_interp.readers.edits import Edit
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.sites import SiteKind

Position = Literal["last_template", "answer_mean"]
POSITIONS: tuple[Position, ...] = get_args(Position)


@dataclass(frozen=True)
class Request:
    """A prompt with the answers to score after it."""

    prompt: Prompt
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Capture:
    """What to capture.

    Attributes:
        kind: Kind of site.
        layers: 0-based layers, ascending.
        positions: `last_template` (the prompt's last token) and/or `answer_mean` (mean over the tokens of each
            teacher-forced answer, then over the answers).
    """

    layers: tuple[int, ...]
    kind: SiteKind = "resid_post"
    positions: tuple[Position, ...] = POSITIONS

    def __post_init__(self) -> None:
        if not self.layers or not self.positions:
            raise UserError("a capture needs at least one layer and one position")
        if list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"capture layers must be ascending without repeats, not {self.layers}")


@dataclass(frozen=True)
class Measurement:
    """What came out of a reading, in the order of the requests.

    Attributes:
        logprobs: Per request, the summed log-prob of each answer in nats (fp64), [answers].
        activations: By position, [requests, layers, width] in fp32.
        ledger: What the hooks did.
    """

    logprobs: list[torch.Tensor]
    activations: dict[Position, torch.Tensor] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    def ld(self) -> torch.Tensor:
        """Returns LD [requests, pairs] in nats: log p(misaligned) - log p(aligned), answers in the panel's order."""
        return torch.stack([lp[0::2] - lp[1::2] for lp in self.logprobs])


class Reader(Protocol):
    """Reads and edits one model. Only token ids go in."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        ...

    @property
    def width(self) -> int:
        """Residual width."""
        ...

    def measure(
        self, requests: Sequence[Request], *, capture: Capture | None = None, edits: Sequence[Edit] = ()
    ) -> Measurement:
        """Scores every answer of every request, and captures activations, under the edits."""
        ...

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
        """Generates an answer for each prompt; the edits act in every decoding step."""
        ...
