"""The Reader: one way to ask any library for log-probs, activations and answers, with and without edits."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from condmis_interp.calls import check_fields, checked_but
from condmis_interp.errors import UserError
from condmis_interp.panel import Prompt
from condmis_interp.readers.batching import Request
from condmis_interp.readers.edits import Edit, listed
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.recording import Patch, Recording
from condmis_interp.readers.sites import Site, SiteKind

Position = Literal["last_template", "answer_mean", "cue_mean", "question_mean", "tail_mean"]
POSITIONS: tuple[Position, ...] = get_args(Position)
LARGEST_SEED = 2**128
"""Seeds of answers are below this."""
Feature = Literal["capture", "logprobs", "generate", "edit", "record", "trunk", "sweep", "remote"]


@dataclass(frozen=True)
class Capture:
    """What to capture.

    Attributes:
        kind: Kind of site.
        layers: 0-based layers, ascending.
        positions: `last_template` (the prompt's last token), `answer_mean` (mean over the tokens of each
            teacher-forced answer, then over the answers), and `cue_mean`, `question_mean`, `tail_mean` (means over
            those spans of the prompt).

    Example:
        >>> Capture((15, 20)).sites
        (Site(kind='resid_post', layer=15), Site(kind='resid_post', layer=20))
        >>> Capture.named("blocks.18.hook_mlp_out", positions=("last_template",)).kind
        'mlp_out'
    """

    layers: tuple[int, ...]
    kind: SiteKind = "resid_post"
    positions: tuple[Position, ...] = ("last_template", "answer_mean")

    def __post_init__(self) -> None:
        if isinstance(self.layers, str | int) or isinstance(self.positions, str):
            check_fields(self)
        if not self.layers or not self.positions:
            raise UserError("a capture needs at least one layer and one position")
        if list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"capture layers must be ascending without repeats, not {self.layers}")
        for position in self.positions:
            if position not in POSITIONS:
                raise UserError(f"{position!r} is no position of a capture", fix=f"Positions: {', '.join(POSITIONS)}.")
        check_fields(self)

    @classmethod
    def named(cls, *names: str, positions: tuple[Position, ...] = ("last_template", "answer_mean")) -> "Capture":
        """Returns a capture of sites written as `resid_post[18]` or as TransformerLens does.

        Raises:
            UserError: if a name is no site, or they are of several kinds.
        """
        sites = sorted({Site.parse(name) for name in names})
        kinds: set[SiteKind] = {s.kind for s in sites}
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

    Example:
        >>> found = Measurement(logprobs=[torch.tensor([-1.0, -3.0])], activations={}, ledger=Ledger())
        >>> found.ld().tolist()
        [[2.0]]
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

    def __repr__(self) -> str:
        told = [f"{len(self.logprobs)} requests", f"{sum(map(len, self.logprobs))} answers"]
        told += [f"{position} {list(values.shape)}" for position, values in self.activations.items()]
        edits = len(self.ledger.edits)
        return f"Measurement({', '.join(told)}; {self.ledger.passes} passes, {edits} edit{'s' * (edits != 1)})"


@dataclass(frozen=True)
class Decoding:
    """How answers are generated; see `Reader.generate`.

    Attributes:
        max_new_tokens: Longest answer.
        stop_ids: Token ids that end an answer; not returned.
        edits: Changes to the forward pass.
        temperature: 0 for greedy decoding, else the softmax temperature.
        generator: Source of randomness (on the CPU) that all answers share.
        seeds: A seed for each prompt, in place of a generator.

    Raises:
        UserError: if sampling is asked for without a generator or seeds, or with both, or a patch is to act on
            generated tokens.
    """

    max_new_tokens: int
    stop_ids: frozenset[int]
    edits: tuple[Edit, ...] = ()
    temperature: float = 0.0
    generator: torch.Generator | None = field(default=None, repr=False)
    seeds: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_new_tokens < 1:
            raise UserError(f"an answer has at least one token, not max_new_tokens={self.max_new_tokens}")
        if self.temperature < 0:
            raise UserError(f"a temperature of {self.temperature} means nothing", fix="Give 0 (greedy) or more.")
        if self.generator is not None and self.seeds is not None:
            raise UserError("a generator and seeds are both given", fix="Give one of them.")
        if self.temperature > 0 and self.generator is None and self.seeds is None:
            fix = "Pass seeds=[...], one a prompt, or generator=torch.Generator().manual_seed(...)."
            raise UserError("sampling needs a generator, or a seed for each prompt", fix=fix)
        if any(not 0 <= s < LARGEST_SEED for s in self.seeds or ()):
            raise UserError("a seed is negative, or has more than 128 bits", where="seeds")
        if any(isinstance(e, Patch) and "answer" in e.scope for e in self.edits):
            raise UserError("generated tokens have no donor to be patched from", fix="Leave 'answer' out of its scope.")


class Reader(ABC):
    """Reads and edits one model. Only token ids go in.

    A reader of another library subclasses this (or `PassReader`, or one of the readers here) and is registered with
    `register_reader`. What it cannot do it says in `limits`.

    Attributes:
        name: What it reads, in words; `open_reader` sets it to base and organism.
        tokenizer: Loads the model's tokenizer; set by `open_reader`. Nothing is tokenized with it: it knows which token
            ends an answer.

    Example:
        >>> from condmis_interp.organisms import Organism, resolve_base
        >>> from condmis_interp.readers import open_reader
        >>> base = resolve_base("dir:base")
        >>> reader = open_reader(Organism.of_base(base, name="b"), base, dtype=torch.float32)
        >>> isinstance(reader, Reader), reader.n_layers, reader.supports("sweep")
        (True, 4, True)
    """

    name: str = ""
    tokenizer: Callable[[], Any] | None = None

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Residual width."""

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What the reader cannot do, and why."""
        return {}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer where `generate` is given none; empty if none are known."""
        end = self.tokenizer().eos_token_id if self.tokenizer else None
        return frozenset() if end is None else frozenset((end,))

    def supports(self, feature: Feature) -> bool:
        """Returns whether the reader can do something."""
        return feature not in self.limits

    def _require(self, feature: Feature) -> None:
        if feature in self.limits:
            raise UserError(f"{type(self).__name__} does not do this: {self.limits[feature]}")

    @abstractmethod
    def name_of(self, site: Site) -> str:
        """Returns what the reader's library calls a site."""

    @abstractmethod
    def measure(
        self,
        requests: Sequence[Request],
        *,
        capture: Capture | None = None,
        edits: Sequence[Edit] = (),
        first_token: bool = False,
    ) -> Measurement:
        """Scores every answer of every request, and captures activations, under the edits; see `PassReader.measure`."""

    @abstractmethod
    def capture(self, prompts: Sequence[Prompt], *, capture: Capture, edits: Sequence[Edit] = ()) -> Measurement:
        """Captures activations of prompts; runs no further than the last layer that is needed."""

    @abstractmethod
    def record(self, requests: Sequence[Request], *, sites: Sequence[Site]) -> Recording:
        """Records whole sequences at some sites, to patch another run with."""

    @checked_but("prompts", "edits")
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        stop_ids: Collection[int] | None = None,
        edits: Sequence[Edit] = (),
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Generates an answer for each prompt; the edits act in the prompt and in every decoding step.

        Args:
            prompts: Rendered prompts.
            max_new_tokens: Longest answer.
            stop_ids: Token ids that end an answer; not returned. By default the reader's own (`stop_ids`).
            edits: Changes to the forward pass.
            temperature: 0 for greedy decoding, else the softmax temperature; the whole distribution is drawn from.
            generator: Source of randomness (on the CPU) that all answers share: what one draws depends on the others.
            seeds: In its place a seed for each prompt, 0 to 2^128 - 1: an answer then depends on its prompt and its
                seed alone, whatever is asked with it (up to rounding), and a longer one goes on as a shorter began.

        Returns:
            Token ids of each answer; one with fewer than `max_new_tokens` ended by itself.

        Raises:
            UserError: if sampling is asked for without a generator or seeds, or with both, there is not one seed for
                each prompt, or a patch is to act on generated tokens.
            CheckError: if an edit missed a decoding step.
        """
        self._require("generate")
        stop = self.stop_ids if stop_ids is None else frozenset(stop_ids)
        own = None if seeds is None else tuple(int(s) for s in seeds)
        if own is not None and hasattr(prompts, "__len__") and len(own) != len(prompts):
            raise UserError(f"{len(own)} seeds are given for {len(prompts)} prompts", fix="Give one for each.")
        return self._decode(prompts, Decoding(max_new_tokens, stop, listed(edits), temperature, generator, own))

    @abstractmethod
    def _decode(self, prompts: Sequence[Prompt], how: Decoding) -> list[list[int]]:
        """Returns the token ids of each answer."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name or 'a model'}, {self.n_layers} layers)"
