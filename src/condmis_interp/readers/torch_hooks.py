"""The default reader: plain PyTorch forward hooks on a Hugging Face model.

A reading runs what prompts share once, then the rest of each prompt, then its answers on top of its keys and values
(`passes`). This is the same computation as a forward pass over each prompt + answer (tests compare the two), on a
quarter of the tokens. Results come back in the order of the requests and do not depend on it, nor on the batches.

Many readings of the same requests under different edits (a sweep over doses, directions, layers) share all that lies
below the lowest edit: `trunk` runs the model once without edits and keeps the residual stream entering some layers;
`measure(trunk, edits=...)` starts at the highest of them that no edit lies below.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import Prompt, pad
from condmis_interp.readers.edits import Edit, Scope, union
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.passes import Batch, Pass, plan, positions_of, prompt_scopes
from condmis_interp.readers.reader import Capture, Measurement, Position, Request
from condmis_interp.readers.sites import Site, blocks_of, module_of, unwrap

_LOGIT_ROWS = 256
"""Rows of logits held at once: 256 x 49,152 in fp32 are 50 MB."""


@dataclass(frozen=True)
class Trunk:
    """What readings of the same requests share below their edits.

    Attributes:
        requests: The requests.
        layers: Layers a reading can start at, ascending.
        batches: Their passes.
        hidden: For each pass of each batch, the residual stream entering each of the layers [rows, position, width].
        owner: The reader that made it.
    """

    requests: Sequence[Request] = field(repr=False)
    layers: tuple[int, ...]
    batches: list[Batch] = field(repr=False)
    hidden: list[list[dict[int, torch.Tensor]]] = field(repr=False)
    owner: "TorchReader" = field(repr=False)

    def start(self, edits: Sequence[Edit]) -> int:
        """Returns the highest layer that a reading under the edits can start at; 0 means from the embedding on."""
        # an edit of a block's output leaves the block itself as it is
        lowest = min((e.site.layer + (e.site.kind == "resid_post") for e in edits), default=0)
        return max((k for k in self.layers if k <= lowest), default=0)


class TorchReader:
    """Reads and edits a Hugging Face causal language model through forward hooks.

    Args:
        model: The model, in eval mode; adapters merged.
        batch_tokens: Padded tokens in one pass; bounds memory, does not change results beyond rounding.

    Raises:
        UserError: if the model's blocks are not found.
    """

    def __init__(self, model: PreTrainedModel, *, batch_tokens: int = 1024) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self._blocks = blocks_of(model)
        self._body = model.base_model
        self._masks: Mapping[Scope, torch.Tensor] = {}
        self._entering: torch.Tensor | None = None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def width(self) -> int:
        """Residual width."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameter."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def measure(
        self, requests: Sequence[Request] | Trunk, *, capture: Capture | None = None, edits: Sequence[Edit] = ()
    ) -> Measurement:
        """Scores every answer of every request, and captures activations, under the edits.

        Args:
            requests: Prompts with their answers, or their trunk, which saves the layers below the edits.
            capture: What to capture; nothing by default. Not with a trunk.
            edits: Changes to the forward pass, applied in order, in the prompt and the answers.

        Raises:
            UserError: if there are no requests, a prompt has no answers, or an edit or capture does not fit the model.
            CheckError: if a hook missed a pass, an edit changed nothing, or a log-prob is not finite.
        """
        trunk = None
        if isinstance(requests, Trunk):
            trunk, requests = requests, requests.requests
            if trunk.owner is not self or capture:
                what = "does not hold activations" if capture else "belongs to another model"
                raise UserError(f"this trunk {what}", fix="Give the requests themselves.")
        batches = trunk.batches if trunk else self._plan(requests)
        start = trunk.start(edits) if trunk else 0
        tally = _Tally(self, requests, capture)
        with self._hooks(edits, capture) as (ledger, states), self._skipping(start):
            for k, batch in enumerate(batches):
                entering = [h[start] for h in trunk.hidden[k]] if trunk and start else None
                for n, hidden in self._run(batch, ledger, entering):
                    tally.add(batch, n, hidden, states)
        ledger.check()
        return tally.measurement(ledger)

    @torch.inference_mode()
    def trunk(self, requests: Sequence[Request], *, layers: Sequence[int]) -> Trunk:
        """Runs the requests once without edits and keeps the residual stream entering some layers.

        Args:
            requests: Prompts with their answers.
            layers: Layers that readings under edits may start at. An edit of a block's output leaves its block alone,
                so for edits at `resid_post[k]` give k + 1.

        Raises:
            UserError: if there are no requests, or the model lacks a layer.
        """
        batches, hidden = self._plan(requests), []
        kept: dict[int, torch.Tensor] = {}
        ledger = Ledger()
        with ExitStack() as stack:
            for layer in sorted(set(layers)):
                entry = LedgerEntry(f"trunk at layer {layer}")
                ledger.captures.append(entry)
                stack.callback(self._hook(Site("resid_pre", layer), _keeper(layer, kept, entry)).remove)
            for batch in batches:
                hidden.append([dict(kept) for _ in self._run(batch, ledger)])
        ledger.check()
        return Trunk(requests, tuple(sorted(set(layers))), batches, hidden, self)

    def _plan(self, requests: Sequence[Request]) -> list[Batch]:
        if not requests or any(not r.answers for r in requests):
            raise UserError("there is nothing to measure: no requests, or a prompt without answers")
        self._check_lengths([len(r.prompt.ids) + max(len(a.ids) for a in r.answers) for r in requests])
        return list(plan(requests, batch_tokens=self.batch_tokens, device=self.device))

    def _run(
        self, batch: Batch, ledger: Ledger, entering: Sequence[torch.Tensor] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields each pass's number and last hidden states [rows, position, width]."""
        cache = DynamicCache(config=self.model.config)
        for n, p in enumerate(batch.passes):
            continued = cache if p.continues is None else _selected(cache, p.continues)
            self._masks = p.scopes
            self._entering = entering[n] if entering else None
            hidden = self._forward(p.ids, p.mask, continued, p.positions, ledger)
            if n < len(batch.prompt):  # every pass over answers continues the prompts' keys and values
                cache = continued
            yield n, hidden

    @contextmanager
    def _skipping(self, start: int) -> Iterator[None]:
        """Leaves out the blocks below a layer: the first hands over what enters it, the others pass it on."""
        with ExitStack() as stack:
            for i, block in enumerate(self._blocks[:start]):  # type: ignore[arg-type]
                own = vars(block).get("forward")  # accelerate, for one, replaces it on the module itself
                block.forward = self._skipped(i)
                if own is None:
                    stack.callback(delattr, block, "forward")
                else:
                    stack.callback(setattr, block, "forward", own)
            yield

    def _skipped(self, layer: int) -> Any:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            cache = next(a for a in (*args, *kwargs.values()) if isinstance(a, Cache))
            blank = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(blank, blank, layer)  # masks are built from the length of a cache, not from its content
            return hidden_states if layer else self._entering  # type: ignore[return-value]

        return forward

    @torch.inference_mode()
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
        """Generates an answer for each prompt; the edits act in the prompt and in every decoding step.

        Args:
            prompts: Rendered prompts; they are left-padded together.
            max_new_tokens: Longest answer.
            stop_ids: Token ids that end an answer; not returned.
            edits: Changes to the forward pass.
            temperature: 0 for greedy decoding, else the softmax temperature.
            generator: Source of randomness (on the CPU); required if `temperature` > 0.

        Returns:
            Token ids of each answer.

        Raises:
            UserError: if sampling is asked for without a generator.
            CheckError: if an edit missed a decoding step.
        """
        if temperature > 0 and generator is None:
            raise UserError("sampling needs a generator", fix="Pass generator=torch.Generator().manual_seed(...).")
        self._check_lengths([len(p.ids) + max_new_tokens for p in prompts])
        ids, mask = (t.to(self.device) for t in pad([p.ids for p in prompts], right=False))
        answers: list[list[int]] = [[] for _ in prompts]
        open_ = torch.ones(len(prompts), dtype=torch.bool, device=self.device)
        cache = DynamicCache(config=self.model.config)
        with self._hooks(edits, None) as (ledger, _):
            scopes = prompt_scopes(prompts, ids.shape, right=False)
            self._masks = {name: scope.to(self.device) for name, scope in scopes.items()}
            positions = positions_of(mask)
            for _ in range(max_new_tokens):
                hidden = self._forward(ids, mask, cache, positions, ledger)
                logits = self._log_softmax(hidden[:, -1])
                if temperature > 0:
                    probabilities = (logits / temperature).softmax(-1).cpu()
                    chosen = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(self.device)
                else:
                    chosen = logits.argmax(-1)
                for i, token in enumerate(chosen.tolist()):
                    if open_[i] and token in stop_ids:
                        open_[i] = False
                    elif open_[i]:
                        answers[i].append(token)
                if not bool(open_.any()):
                    break
                ids = chosen[:, None]
                mask = torch.cat([mask, torch.ones_like(ids)], 1)
                positions = positions[:, -1:] + 1
                self._masks = {"answer": torch.ones_like(ids)}
        ledger.check()
        return answers

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, positions: torch.Tensor, ledger: Ledger
    ) -> torch.Tensor:
        ledger.passes += 1
        out = self._body(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return out.last_hidden_state

    def _log_softmax(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns fp32 log-probs [rows, vocabulary] of hidden states [rows, width]."""
        head: Any = self.model.get_output_embeddings()
        return head(hidden).float().log_softmax(-1)

    def _token_logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the fp64 log-prob of each target token [rows], holding few rows of logits at once."""
        parts = [
            self._log_softmax(h).gather(1, t[:, None])[:, 0].double()
            for h, t in zip(hidden.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=self.device)

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and max(lengths) > limit:
            raise UserError(f"a prompt with its answer has {max(lengths)} tokens, the model's context {limit}")

    @contextmanager
    def _hooks(
        self, edits: Sequence[Edit], capture: Capture | None
    ) -> Iterator[tuple[Ledger, dict[int, torch.Tensor]]]:
        """Hooks edits and captures for the duration of a block; edits come before captures at the same site."""
        ledger = Ledger()
        states: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for edit in edits:
                if edit.width != self.width:
                    raise UserError(
                        f"an edit of width {edit.width} does not fit a model of width {self.width}",
                        where=str(edit.site),
                    )
                entry = LedgerEntry(f"{type(edit).__name__} at {edit.site}")
                ledger.edits.append(entry)
                stack.callback(self._hook(edit.site, self._editor(edit, entry)).remove)
            for layer in capture.layers if capture else ():
                site = Site(capture.kind, layer)  # type: ignore[union-attr]
                entry = LedgerEntry(f"capture at {site}")
                ledger.captures.append(entry)
                stack.callback(self._hook(site, _keeper(layer, states, entry)).remove)
            yield ledger, states

    def _editor(self, edit: Edit, entry: LedgerEntry) -> Any:
        def change(hidden: torch.Tensor) -> torch.Tensor:
            entry.fired += 1
            touched = union(self._masks, edit.scopes, hidden) > 0
            changed = (hidden.float() + edit.delta(hidden, self._masks)).to(hidden.dtype)
            changed = torch.where(touched[..., None], changed, hidden)
            entry.positions += int(touched.sum())
            entry.norm += float((changed - hidden).float().norm(dim=-1).sum())
            return changed

        return change

    def _hook(self, site: Site, change: Any) -> torch.utils.hooks.RemovableHandle:
        module = module_of(self._blocks, site)
        if site.kind == "resid_pre":

            def before(
                _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
                hidden = change(unwrap(args[0] if args else kwargs["hidden_states"]))
                if hidden is None:
                    return None
                return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: Any, __: Any, output: Any) -> Any:
            hidden = change(unwrap(output))
            if hidden is None:
                return None
            return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

        return module.register_forward_hook(after)


class _Tally:
    """Collects log-probs and activations of a reading, pass by pass."""

    def __init__(self, reader: TorchReader, requests: Sequence[Request], capture: Capture | None) -> None:
        self.reader, self.requests, self.capture = reader, requests, capture
        self.logprobs = [torch.full((len(r.answers),), torch.nan, dtype=torch.float64) for r in requests]
        self.first = torch.zeros(())
        self.kept: dict[Position, torch.Tensor] = {}
        if capture:
            shape = (len(requests), len(capture.layers), reader.width)
            fill = {"last_template": torch.nan, "answer_mean": 0.0}
            self.kept = {p: torch.full(shape, fill[p]) for p in capture.positions}

    def add(self, batch: Batch, n: int, hidden: torch.Tensor, states: Mapping[int, torch.Tensor]) -> None:
        """Takes in the pass number `n` of a batch."""
        n -= len(batch.prompt)
        if n == -1:
            at = torch.arange(len(batch.rows), device=hidden.device)
            self.first = self.reader._log_softmax(hidden[at, batch.last])
            self._keep("last_template", states, list(batch.rows), lambda h: h[at, batch.last])
        elif n >= 0:
            p = batch.answers[n]
            assert p.continues is not None
            rows = [batch.rows[i] for i in p.continues.tolist()]
            for row, slot, lp in zip(rows, batch.slots[n], self._summed(p, hidden).tolist(), strict=True):
                self.logprobs[row][slot] = lp
            counts = torch.tensor([len(self.requests[row].answers) for row in rows], device=hidden.device)
            weight = p.real / (p.real.sum(1) * counts)[:, None]
            self._keep("answer_mean", states, rows, lambda h: torch.einsum("bpd,bp->bd", h.float(), weight))

    def _summed(self, p: Pass, hidden: torch.Tensor) -> torch.Tensor:
        """Returns each answer's log-prob [rows], nats: its first token after the prompt, the others after it."""
        logprobs = torch.zeros(p.ids.shape, dtype=torch.float64, device=hidden.device)
        logprobs[:, 0] = self.first[p.continues, p.ids[:, 0]].double()
        later = p.real[:, 1:].bool()
        logprobs[:, 1:][later] = self.reader._token_logprobs(hidden[:, :-1][later], p.ids[:, 1:][later])
        return (logprobs * p.real).sum(1).cpu()

    def _keep(self, position: Position, states: Mapping[int, torch.Tensor], rows: list[int], pick: Any) -> None:
        if not self.capture or position not in self.kept:
            return
        at = torch.tensor(rows)
        for j, layer in enumerate(self.capture.layers):
            picked = pick(states[layer]).float().cpu()
            if position == "answer_mean":
                self.kept[position][:, j].index_add_(0, at, picked)
            else:
                self.kept[position][at, j] = picked

    def measurement(self, ledger: Ledger) -> Measurement:
        """Returns what was collected.

        Raises:
            CheckError: if a number is not finite.
        """
        for i, lp in enumerate(self.logprobs):
            if not bool(torch.isfinite(lp).all()):
                raise CheckError("a log-prob is not finite", where=f"request {i}")
        for position, tensor in self.kept.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckError(f"an activation at {position} is not finite")
        return Measurement(self.logprobs, self.kept, ledger)


def _keeper(layer: int, states: dict[int, torch.Tensor], entry: LedgerEntry) -> Any:
    def keep(hidden: torch.Tensor) -> None:
        entry.fired += 1
        states[layer] = hidden

    return keep


def _selected(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """Returns a cache that holds some rows of another, which stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen
