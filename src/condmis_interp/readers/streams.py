"""Streams: every token's activations of whole sequences, and what a model makes of other ones, with gradients.

Dictionaries (SAEs, crosscoders) are about tokens and not about questions, so they need more than the few positions that
`measure` keeps. The hooks are the reader's own; nothing here touches a module. Sequences are right-padded, so that each
real token sits at its own position.

An edit at one site needs no hook for the edit itself: what lies below the site does not change, so edited activations
are computed outside and given to `above`, which runs what lies above them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import pad
from condmis_interp.readers import guards
from condmis_interp.readers.batching import Pass
from condmis_interp.readers.engine import PassReader
from condmis_interp.readers.hooks import Change, keeping, watched
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.sites import Site

Ids = Sequence[int]


@dataclass(frozen=True)
class Above:
    """One pass over what lies above a site.

    Attributes:
        rows: Which of the sequences it held.
        given: The activations it was given, padded [rows, tokens, width]; a leaf if gradients were asked for.
        out: The last hidden states, after the final norm [rows, tokens, width].

    Example:
        >>> run = Above([1, 0], torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))  # the second sequence is the shorter one
        >>> [(i, list(out.shape)) for i, out in zip(run.rows, run.out)]
        [(1, [3, 8]), (0, [3, 8])]
    """

    rows: list[int]
    given: torch.Tensor
    out: torch.Tensor


class Streams:
    """Token by token, through a reader's hooks.

    Args:
        reader: The reader; any library's. Its model stands still: no gradient reaches a weight's `grad`.
        batch_tokens: Padded tokens in one pass; bounds memory, does not change results beyond rounding.

    Example:
        The gradient of the last hidden states by what entered layer 0 of a model of random weights:

        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from condmis_interp.readers import TorchReader
        >>> shape = dict(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=16)
        >>> streams = Streams(TorchReader(LlamaForCausalLM(LlamaConfig(**shape)).eval()))
        >>> texts, site = [[1, 2, 3], [4, 5]], Site("resid_pre", 0)
        >>> hidden = streams.read(texts, [site])[site]
        >>> [list(h.shape) for h in hidden]
        [[3, 8], [2, 8]]
        >>> (run,) = streams.above(texts, site, hidden, grad=True)
        >>> run.rows, list(torch.autograd.grad(run.out.sum(), run.given)[0].shape)
        ([1, 0], [2, 3, 8])
    """

    def __init__(self, reader: PassReader, *, batch_tokens: int = 4096) -> None:
        self.reader, self.batch_tokens = reader, batch_tokens

    @torch.no_grad()
    def read(self, sequences: Sequence[Ids], sites: Sequence[Site]) -> dict[Site, list[torch.Tensor]]:
        """Returns each sequence's activations at some sites, fp32 on the CPU, [tokens, width].

        The model is run once, and no further than the highest of the sites.

        Args:
            sequences: Token ids of each sequence.
            sites: Where.

        Raises:
            UserError: if there are no sequences or sites, or the model lacks a site.
            CheckError: if a hook missed a pass, or an activation is not finite.
        """
        if not sites:
            raise UserError("there is nothing to read: no sites")
        self._check(sites)
        seen: dict[Site, torch.Tensor] = {}
        kept: dict[Site, list[torch.Tensor]] = {site: [torch.empty(0)] * len(sequences) for site in sites}
        ledger = Ledger()
        changes = [watched(site, keeping(seen, site), ledger) for site in kept]
        with self.reader._hooked(changes, stop=max(s.layer for s in sites)) as forward:
            for rows in batched(sequences, batch_tokens=self.batch_tokens):
                forward(self._pass(sequences, rows), self.reader._cache())
                ledger.passes += 1
                for site, hidden in seen.items():
                    for i, states in zip(rows, hidden.float().cpu(), strict=True):
                        kept[site][i] = states[: len(sequences[i])].clone()
        ledger.check()
        for site, found in kept.items():
            if not all(bool(torch.isfinite(h).all()) for h in found):
                raise CheckError("an activation is not finite", where=str(site))
        return kept

    def above(
        self, sequences: Sequence[Ids], site: Site, hidden: Sequence[torch.Tensor], *, grad: bool = False
    ) -> Iterator[Above]:
        """Runs what lies above a site on given activations, batch by batch; several iterations may take turns.

        Args:
            sequences: Token ids of each sequence.
            site: Where the activations belong.
            hidden: For each sequence, the activations at the site, [tokens, width]: the model's own, or edited ones.
            grad: Whether each pass can be differentiated by what it was given (`torch.autograd.grad`).

        Raises:
            UserError: if there are no sequences, the model lacks the site, or the activations do not fit.
            CheckError: if the hook missed a pass.
        """
        self._check([site])
        self.reader._require("logprobs")
        if [tuple(h.shape) for h in hidden] != [(len(ids), self.reader.width) for ids in sequences]:
            raise UserError("the activations do not fit the texts", fix="Give one row of the model's width a token.")
        # blocks that the site's value makes needless are left out, by readers that can; attention and MLP outputs are
        # added to a residual stream that has to be computed first
        start = 0
        if site.kind.startswith("resid") and self.reader.supports("trunk"):
            start = site.layer + (site.kind == "resid_post")
        for rows in batched(sequences, batch_tokens=self.batch_tokens):
            given = torch.nn.utils.rnn.pad_sequence([hidden[i] for i in rows], batch_first=True)
            given = given.to(self.reader.device, self.reader.model.dtype).requires_grad_(grad)
            ledger = Ledger(passes=1)
            entering = _giving(given, site, ledger)
            # hooks last for one pass only: iterations over the same model may take turns
            with ExitStack() as stack, torch.set_grad_enabled(grad):
                changes: list[tuple[Site, Change]] = [] if start else [(site, entering)]
                forward = stack.enter_context(self.reader._hooked(changes, stop=None))
                if start:
                    stack.enter_context(self.reader._skipping(start, lambda given=given, put=entering: put(given)))
                out = forward(self._pass(sequences, rows), self.reader._cache())
            ledger.check()
            assert out is not None  # nothing stops this pass
            yield Above(rows, given, out)

    def _check(self, sites: Sequence[Site]) -> None:
        guards.check_tenant(self.reader)
        for site in sites:
            guards.check_site(self.reader, site)

    def _pass(self, sequences: Sequence[Ids], rows: Sequence[int]) -> Pass:
        ids, mask = pad([sequences[i] for i in rows], right=True)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return Pass(ids, mask, positions, {}, tuple((i, None) for i in rows), (0,) * len(rows)).to(self.reader.device)


def _giving(given: torch.Tensor, site: Site, ledger: Ledger) -> Callable[[torch.Tensor], torch.Tensor]:
    entry = LedgerEntry(f"activations given at {site}")
    ledger.captures.append(entry)

    def put(_: torch.Tensor) -> torch.Tensor:
        entry.fired += 1
        return given

    return put


def batched(sequences: Sequence[Ids], *, batch_tokens: int) -> list[list[int]]:
    """Returns batches of indices, of sequences of similar length, shortest first.

    Args:
        sequences: Token ids of each sequence.
        batch_tokens: Most padded tokens in a batch; a longer sequence is a batch of its own.

    Raises:
        UserError: if there are none.

    Example:
        >>> batched([[3], [1, 4, 1], [5, 9]], batch_tokens=4)
        [[0, 2], [1]]
    """
    if any(isinstance(s, str) for s in sequences):
        raise UserError("a text is no sequence of token ids", fix="Tokenize it with the model's own tokenizer.")
    if not sequences:
        raise UserError("there is nothing to read: no texts")
    batches: list[list[int]] = []
    # the longest of a batch decides its padding, and in this order that is the one that comes last
    for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        if not batches or (len(batches[-1]) + 1) * len(sequences[i]) > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches
