"""The default reader: plain PyTorch forward hooks on a Hugging Face model.

A reading runs each prompt once and keeps its keys and values; all its answers are then scored on top of them in one
batch. This is the same computation as a forward pass over prompt + answer (tests compare the two), at about a third
of the tokens. Prompts are right-padded and batched by length under a token budget; results come back in the order of
the requests and do not depend on it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import Prompt
from condmis_interp.readers.edits import Edit, Scope, union
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.reader import Capture, Measurement, Position, Request
from condmis_interp.readers.sites import Site, blocks_of, module_of, unwrap

_LOGIT_ROWS = 256
"""Rows of logits held at once: 256 x 49,152 in fp32 are 50 MB."""


class TorchReader:
    """Reads and edits a Hugging Face causal language model through forward hooks.

    Args:
        model: The model, in eval mode; adapters merged.
        batch_tokens: Padded tokens in one batch (prompt pass); bounds memory, does not change results beyond rounding.

    Raises:
        UserError: if the model's blocks are not found.
    """

    def __init__(self, model: PreTrainedModel, *, batch_tokens: int = 1024) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self._blocks = blocks_of(model)
        self._body = model.base_model
        self._masks: Mapping[Scope, torch.Tensor] = {}

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
        self, requests: Sequence[Request], *, capture: Capture | None = None, edits: Sequence[Edit] = ()
    ) -> Measurement:
        """Scores every answer of every request, and captures activations, under the edits.

        Args:
            requests: Prompts with their answers.
            capture: What to capture; nothing by default.
            edits: Changes to the forward pass, applied in order, in the prompt and the answers.

        Raises:
            UserError: if there are no requests, a prompt has no answers, or an edit or capture does not fit the model.
            CheckError: if a hook missed a pass, an edit changed nothing, or a log-prob is not finite.
        """
        if not requests or any(not r.answers for r in requests):
            raise UserError("there is nothing to measure: no requests, or a prompt without answers")
        self._check_lengths([len(r.prompt.ids) + max(len(a.ids) for a in r.answers) for r in requests])
        logprobs: list[torch.Tensor | None] = [None] * len(requests)
        kept: dict[Position, torch.Tensor] = {}
        if capture:
            shape = (len(requests), len(capture.layers), self.width)
            kept = {p: torch.full(shape, torch.nan) for p in capture.positions}
        with self._hooks(edits, capture) as (ledger, states):
            for batch in self._batches(requests):
                chosen = [requests[i] for i in batch]
                for i, lp in zip(batch, self._score(chosen, states, capture, kept, batch, ledger), strict=True):
                    logprobs[i] = lp
        ledger.check()
        for i, lp in enumerate(logprobs):
            if lp is None or not bool(torch.isfinite(lp).all()):
                raise CheckError("a log-prob is not finite", where=f"request {i}")
        for position, tensor in kept.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckError(f"an activation at {position} is not finite")
        return Measurement([lp for lp in logprobs if lp is not None], kept, ledger)

    def _score(
        self,
        requests: list[Request],
        states: dict[int, torch.Tensor],
        capture: Capture | None,
        kept: dict[Position, torch.Tensor],
        rows: list[int],
        ledger: Ledger,
    ) -> list[torch.Tensor]:
        lengths = torch.tensor([len(r.prompt.ids) for r in requests], device=self.device)
        ids, mask = self._pad([r.prompt.ids for r in requests], right=True)
        cache = DynamicCache(config=self.model.config)
        self._masks = _prompt_masks([r.prompt for r in requests], ids.shape, self.device, right=True)
        hidden = self._forward(ids, mask, cache, _positions(mask), ledger)
        last = lengths - 1
        first_logits = self._log_softmax(hidden[torch.arange(len(requests), device=self.device), last])
        if capture and "last_template" in kept:
            for j, layer in enumerate(capture.layers):
                picked = states[layer][torch.arange(len(requests), device=self.device), last]
                kept["last_template"][rows, j] = picked.float().cpu()

        owner = torch.tensor([i for i, r in enumerate(requests) for _ in r.answers], device=self.device)
        answer_ids, answer_mask = self._pad([a.ids for r in requests for a in r.answers], right=True)
        cache.batch_select_indices(owner)
        self._masks = {"answer": answer_mask}
        positions = lengths[owner, None] + torch.arange(answer_ids.shape[1], device=self.device)
        hidden = self._forward(answer_ids, torch.cat([mask[owner], answer_mask], 1), cache, positions, ledger)
        logprobs = torch.zeros(answer_ids.shape, dtype=torch.float64, device=self.device)
        logprobs[:, 0] = first_logits[owner, answer_ids[:, 0]].double()
        keep = answer_mask[:, 1:].bool()
        logprobs[:, 1:][keep] = self._token_logprobs(hidden[:, :-1][keep], answer_ids[:, 1:][keep])
        summed = (logprobs * answer_mask).sum(1).cpu()
        if capture and "answer_mean" in kept:
            weight = answer_mask.float() / answer_mask.sum(1, keepdim=True)
            for j, layer in enumerate(capture.layers):
                means = torch.einsum("bpd,bp->bd", states[layer].float(), weight)
                total = torch.zeros(len(requests), self.width, device=self.device).index_add_(0, owner, means)
                counts = torch.bincount(owner, minlength=len(requests))[:, None]
                kept["answer_mean"][rows, j] = (total / counts).cpu()
        return list(summed.split([len(r.answers) for r in requests]))

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
        ids, mask = self._pad([p.ids for p in prompts], right=False)
        answers: list[list[int]] = [[] for _ in prompts]
        open_ = torch.ones(len(prompts), dtype=torch.bool, device=self.device)
        cache = DynamicCache(config=self.model.config)
        with self._hooks(edits, None) as (ledger, _):
            self._masks = _prompt_masks(prompts, ids.shape, self.device, right=False)
            positions = _positions(mask)
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

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt.ids), requests[i].prompt.ids))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) + 1) * len(requests[i].prompt.ids) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _pad(self, sequences: Sequence[Sequence[int]], *, right: bool) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(s) for s in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, s in enumerate(sequences):
            at = slice(0, len(s)) if right else slice(longest - len(s), longest)
            ids[i, at] = torch.tensor(s)
            mask[i, at] = 1
        return ids.to(self.device), mask.to(self.device)

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


def _keeper(layer: int, states: dict[int, torch.Tensor], entry: LedgerEntry) -> Any:
    def keep(hidden: torch.Tensor) -> None:
        entry.fired += 1
        states[layer] = hidden

    return keep


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Returns position ids [batch, position] that count real tokens only, whatever the padding side."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _prompt_masks(
    prompts: Sequence[Prompt], shape: torch.Size, device: torch.device, *, right: bool
) -> dict[Scope, torch.Tensor]:
    masks: dict[Scope, torch.Tensor] = {s: torch.zeros(shape) for s in ("cue", "question", "tail", "last_template")}
    for i, prompt in enumerate(prompts):
        shift = 0 if right else shape[1] - len(prompt.ids)
        for name in ("cue", "question", "tail"):
            begin, end = prompt.spans[name]
            masks[name][i, shift + begin : shift + end] = 1
        masks["last_template"][i, shift + prompt.last_template] = 1
    return {name: mask.to(device) for name, mask in masks.items()}
