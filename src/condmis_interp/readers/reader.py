"""The Reader protocol: one way to ask any library for log-probs, activations and answers, with and without edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch

from condmis_interp.errors import UserError
from condmis_interp.panel import Prompt
from condmis_interp.readers.edits import Edit
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.passes import Request
from condmis_interp.readers.recording import Recording
from condmis_interp.readers.sites import Site, SiteKind

Position = Literal["last_template", "answer_mean", "cue_mean", "question_mean", "tail_mean"]
POSITIONS: tuple[Position, ...] = get_args(Position)
Feature = Literal["capture", "logprobs", "generate", "edit", "record", "trunk", "sweep", "remote"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


@dataclass(frozen=True)
class Capture:
    """What to capture.

    Attributes:
        kind: Kind of site.
        layers: 0-based layers, ascending.
        positions: `last_template` (the prompt's last token), `answer_mean` (mean over the tokens of each
            teacher-forced answer, then over the answers), and `cue_mean`, `question_mean`, `tail_mean` (means over
            those spans of the prompt).
    """

    layers: tuple[int, ...]
    kind: SiteKind = "resid_post"
    positions: tuple[Position, ...] = ("last_template", "answer_mean")

    def __post_init__(self) -> None:
        if not self.layers or not self.positions:
            raise UserError("a capture needs at least one layer and one position")
        if list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"capture layers must be ascending without repeats, not {self.layers}")
        for position in self.positions:
            if position not in POSITIONS:
                raise UserError(f"{position!r} is no position of a capture", fix=f"Positions: {', '.join(POSITIONS)}.")

    @classmethod
    def named(cls, *names: str, positions: tuple[Position, ...] = ("last_template", "answer_mean")) -> "Capture":
        """Returns a capture of sites written as `resid_post[18]` or as TransformerLens does.

        Raises:
            UserError: if a name is no site, or they are of several kinds.
        """
        sites = sorted({Site.parse(name) for name in names})
        kinds = {s.kind for s in sites}
        if len(kinds) != 1:
            raise UserError(f"a capture is of one kind of site, not of {len(kinds)}", where=", ".join(names))
        return cls(tuple(s.layer for s in sites), kinds.pop(), positions)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it reads, by layer."""
        return tuple(Site(self.kind, layer) for layer in self.layers)


@dataclass(frozen=True)
class Measurement:
    """What came out of a reading, in the order of the requests.

    Attributes:
        logprobs: Per request, the summed log-prob of each answer in nats (fp64), [answers].
        activations: By position, [requests, layers, width] in fp32.
        ledger: What the hooks did.
        token_logprobs: Per request and answer, the log-prob of each of its tokens in nats (fp32), [tokens].
    """

    logprobs: list[torch.Tensor]
    activations: dict[Position, torch.Tensor] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    token_logprobs: list[list[torch.Tensor]] = field(default_factory=list, repr=False)

    def ld(self) -> torch.Tensor:
        """Returns LD [requests, pairs] in nats: log p(misaligned) - log p(aligned), answers in the panel's order.

        Raises:
            UserError: if a request has an odd number of answers, so that some answer has no partner.
        """
        for i, lp in enumerate(self.logprobs):
            if len(lp) % 2:
                raise UserError(f"{len(lp)} answers are no pairs of misaligned and aligned", where=f"request {i}")
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

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What the reader cannot do, and why."""
        ...

    def supports(self, feature: Feature) -> bool:
        """Returns whether the reader can do something."""
        ...

    def name_of(self, site: Site) -> str:
        """Returns what the reader's library calls a site."""
        ...

    def measure(
        self,
        requests: Sequence[Request],
        *,
        capture: Capture | None = None,
        edits: Sequence[Edit] = (),
        first_token: bool = False,
    ) -> Measurement:
        """Scores every answer of every request, and captures activations, under the edits."""
        ...

    def capture(self, prompts: Sequence[Prompt], *, capture: Capture, edits: Sequence[Edit] = ()) -> Measurement:
        """Captures activations of prompts; runs no further than the last layer that is needed."""
        ...

    def record(self, requests: Sequence[Request], *, sites: Sequence[Site]) -> Recording:
        """Records whole sequences at some sites, to patch another run with."""
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
