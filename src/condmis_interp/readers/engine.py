"""What the three readers share: which passes are run, what edits do in them, and what is collected.

A reading runs what prompts share once, then the rest of each prompt, then its answers on top of its keys and values
(`batching`): what a pass over each prompt + answer gives (tests compare the two), on a quarter of the tokens. Results
depend neither on the order of the requests nor on the batches. Readings of the same requests under different edits
share all that lies below the lowest edit (`trunk`, `sweep`).

A library's reader says how changes are hooked to sites and how a pass is run (`_hooked`); nothing else differs.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from condmis_interp.calls import checked_but
from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import Prompt
from condmis_interp.readers import guards, whole
from condmis_interp.readers.base import Capture, Decoding, Feature, Measurement, Reader
from condmis_interp.readers.batching import Batch, Pass, Request, Until, plan
from condmis_interp.readers.collect import Pool, Tally, score, sites_of
from condmis_interp.readers.decoding import decode
from condmis_interp.readers.edits import Edit, each_listed, listed
from condmis_interp.readers.hooks import Change, edited, keeping, watched
from condmis_interp.readers.ledger import Ledger
from condmis_interp.readers.recording import Patch, Recording
from condmis_interp.readers.sites import Site, SiteKind, blocks_of, body_of
from condmis_interp.readers.trunk import Prefix, Trunk, lowest_run
from condmis_interp.readers.whole import selected

Forward = Callable[[Pass, DynamicCache | None], torch.Tensor | None]
_PREFIX_SCOPES = frozenset(("last_template", "answer"))


class PassReader(Reader):
    """Reads and edits a Hugging Face causal language model, whichever library it is wrapped in.

    Args:
        model: The model, in eval mode; adapters merged.
        batch_tokens: Padded tokens in one pass; bounds memory, does not change results beyond rounding.

    Raises:
        UserError: if the model's blocks are not found, or it is in training mode.
        CheckError: if a site or the output is not what its name says (see `guards`).

    Example:
        >>> sorted(PassReader.__abstractmethods__)  # what a library's reader has to say
        ['_hooked', 'name_of']
    """

    _elsewhere = False
    """Whether the weights are on another machine: then no keys and values are kept here, and nothing is probed."""

    def __init__(self, model: PreTrainedModel, *, batch_tokens: int = 1024) -> None:
        guards.check_is_model(model)
        self.model = model
        self.batch_tokens = batch_tokens
        self._blocks = blocks_of(model)
        self._body: Any = body_of(model, self._blocks)
        self._pass: Pass | None = None
        self._tenant = getattr(model, "tenant", None)
        self._whole = not whole.continues(model)
        self._unsound: dict[SiteKind, CheckError] = {}
        if not self._elsewhere:
            guards.check_reader(self)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def width(self) -> int:
        """Residual width."""
        return int(self.config.hidden_size)

    @property
    def config(self) -> Any:
        """The config of the model, or of the tower of it that answers."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where token ids go."""
        embedding: Any = self.model.get_input_embeddings()
        return torch.device("cpu") if self._elsewhere else embedding.weight.device

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What the reader cannot do, and why."""
        return {"remote": "this reader runs on this machine"}

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the tokenizer's where it is known, else those of the model's own settings."""
        if known := super().stop_ids:
            return known
        given = [getattr(c, "eos_token_id", None) for c in (self.model.generation_config, self.model.config)]
        found = next((ids for ids in given if ids is not None), ())
        return frozenset((found,) if isinstance(found, int) else found)

    @abstractmethod
    def _hooked(self, changes: Sequence[tuple[Site, Change]], *, stop: int | None) -> AbstractContextManager[Forward]:
        """Returns a context that hooks changes to sites, in order, and gives the function that runs a pass.

        That function returns the last hidden states [rows, position, width]; with `stop`, the model is run no further
        than that layer and it returns `None`.
        """

    def __repr__(self) -> str:
        name = self.name or getattr(self.model.config, "name_or_path", "") or type(self.model).__name__
        dtype = str(self.model.dtype).removeprefix("torch.")
        told = f"{self.n_layers} layers, {dtype}, {self.device}" + ", sequences run whole" * self._whole
        return f"{type(self).__name__}({name}, {told})"

    def _skipping(self, start: int, entering: Callable[[], torch.Tensor]) -> AbstractContextManager[None]:
        """Leaves out the blocks below a layer, for readers that support trunks."""
        raise UserError(f"{type(self).__name__} leaves out no layers")

    @checked_but("requests", "prompts", "edits")
    @torch.no_grad()
    def measure(
        self,
        requests: Sequence[Request] | Trunk,
        *,
        capture: Capture | None = None,
        edits: Sequence[Edit] = (),
        first_token: bool = False,
        prefix: Prefix | None = None,
    ) -> Measurement:
        """Scores every answer of every request, and captures activations, under the edits.

        Args:
            requests: Prompts with their answers, or their trunk, which saves the layers below the edits.
            capture: What to capture; nothing by default. Not with a trunk.
            edits: Changes to the forward pass, applied in order, in the prompt and the answers.
            first_token: Score answers by their first token alone, without running them, for pairs whose first
                tokens tell them apart.
            prefix: Take the keys and values of the prompts' beginning from another model. Not with a trunk, and not
                with a capture within that beginning.

        Raises:
            UserError: if there are no requests, a prompt has no answers, or an edit, a capture or a prefix does not fit
                the model.
            CheckError: if a hook missed a pass, an edit changed nothing, or a log-prob is not finite.
        """
        self._require("logprobs")
        if capture and isinstance(requests, Trunk):
            raise UserError("this trunk does not hold activations", fix="Give the requests themselves.")
        if capture and first_token and "answer_mean" in capture.positions:
            raise UserError("answers are not run in first-token mode, so they have no activations")
        donor = guards.check_prefix(self, prefix, requests, capture) if prefix else None
        until = prefix.until if prefix else None
        how = {"capture": capture, "first_token": first_token, "donor": donor, "until": until}
        (measured,) = self._read(requests, [listed(edits)], **how)
        return measured

    @checked_but("requests", "prompts", "edits")
    @torch.no_grad()
    def capture(self, prompts: Sequence[Prompt], *, capture: Capture, edits: Sequence[Edit] = ()) -> Measurement:
        """Captures activations of prompts; runs no further than the last captured layer, and no unembedding.

        Args:
            prompts: Rendered prompts.
            capture: What to capture, within the prompts.
            edits: Changes to the forward pass.

        Raises:
            UserError: if there are no prompts, or an edit or capture does not fit the model or is never reached.
            CheckError: as in `measure`.
        """
        requests = [Request(p) for p in guards.check_kind(prompts, Prompt)]
        (measured,) = self._read(requests, [listed(edits)], capture=capture, stop=capture.layers[-1])
        return measured

    @checked_but("requests", "points")
    @torch.no_grad()
    def sweep(
        self,
        requests: Sequence[Request] | Trunk,
        points: Sequence[Sequence[Edit]],
        *,
        at_once: int = 8,
        first_token: bool = False,
    ) -> list[Measurement]:
        """Scores the same requests under many sets of edits; layers below the lowest edit are run once for all.

        Args:
            requests: Prompts with their answers, or their trunk.
            points: Sets of edits: one measurement each.
            at_once: Points run in one batch. More help on a GPU and with few requests; memory grows with them.
            first_token: As in `measure`.

        Raises:
            UserError: as in `measure`, or if a point has no edit.
            CheckError: as in `measure`; the ledger is checked for every point.
        """
        self._require("sweep")
        sets = each_listed(points)
        if not sets or not all(sets):
            raise UserError("a sweep needs points, each with at least one edit")
        trunk = requests
        if not isinstance(trunk, Trunk):
            trunk = self.trunk(trunk, layers=[min(lowest_run([e for p in sets for e in p]), self.n_layers - 1)])
        out: list[Measurement] = []
        for i in range(0, len(sets), at_once):
            out += self._read(trunk, sets[i : i + at_once], first_token=first_token)
        return out

    @checked_but("requests", "prompts", "edits")
    @torch.no_grad()
    def trunk(self, requests: Sequence[Request], *, layers: Sequence[int]) -> Trunk:
        """Runs the requests once without edits and keeps the residual stream entering some layers.

        Args:
            requests: Prompts with their answers.
            layers: Layers that readings under edits may start at. An edit of a block's output leaves its block alone,
                so for edits at `resid_post[k]` give k + 1.

        Raises:
            UserError: if there are no requests, or the model lacks a layer.
        """
        self._require("trunk")
        batches, hidden = self._plan(requests), []
        kept: dict[int, torch.Tensor] = {}
        ledger = Ledger()
        if not (chosen := sorted(set(layers))):
            raise UserError("a trunk needs at least one layer")
        changes = [watched(Site("resid_pre", k), keeping(kept, k), ledger) for k in chosen]
        with self._hooked(changes, stop=chosen[-1]) as forward:
            for batch in batches:
                # the hooks fill `kept` anew in every pass, so each pass gets a dictionary of its own
                hidden.append([dict(kept) for _ in self._run(batch, forward, [ledger])])
        ledger.check()
        return Trunk(requests, tuple(chosen), batches, hidden, self)

    @checked_but("requests", "prompts", "edits")
    @torch.no_grad()
    def record(self, requests: Sequence[Request], *, sites: Sequence[Site]) -> Recording:
        """Records whole sequences at some sites, to patch another run with, or to look at their norms.

        Args:
            requests: Prompts, with or without answers.
            sites: Where.

        Raises:
            UserError: if there are no requests or sites, or the model lacks a site.
        """
        self._require("record")
        if not sites:
            raise UserError("a recording needs at least one site")
        batches = self._plan(requests, answers=any(r.answers for r in guards.check_kind(requests, Request)))
        if any(b.answers for b in batches):
            self._require("logprobs")
        for site in sites:
            guards.check_site(self, site)
        kept: dict[Site, torch.Tensor] = {}
        ledger = Ledger()
        changes = [watched(site, keeping(kept, site), ledger) for site in dict.fromkeys(sites)]
        prompts: list[dict[Site, torch.Tensor]] = [{} for _ in requests]
        answers: list[list[dict[Site, torch.Tensor]]] = [[{} for _ in r.answers] for r in requests]
        with self._hooked(changes, stop=max(s.layer for s in sites)) as forward:
            for batch in batches:
                for n, _ in self._run(batch, forward, [ledger]):
                    p = batch.passes[n]
                    whole = {site: h.cpu() for site, h in kept.items()}
                    for row, i, slot in p.members:
                        real = p.own[row].cpu()
                        # a prompt comes in pieces (what prompts share, then its own rest), an answer whole
                        into = prompts[i] if slot is None else answers[i][slot]
                        for site, h in whole.items():
                            states = h[row][real]
                            into[site] = torch.cat([into[site], states]) if site in into else states
        ledger.check()
        return Recording(requests, prompts, answers, tuple(range(len(requests))))

    def _decode(self, prompts: Sequence[Prompt], how: Decoding) -> list[list[int]]:
        guards.check_tenant(self)
        guards.check_prompts(self, prompts, longest_answer=how.max_new_tokens)
        guards.check_edits(self, [how.edits], [Request(p) for p in prompts], stop=None, answers=False)
        return decode(self, prompts, how)

    def _cache(self) -> DynamicCache | None:
        return None if self._whole else DynamicCache(config=self.model.config)

    def _plan(
        self, requests: Sequence[Request], *, answers: bool = True, share: bool = True, until: Until | None = None
    ) -> list[Batch]:
        guards.check_kind(requests, Request)
        if not requests or (answers and any(not r.answers for r in requests)):
            raise UserError("there is nothing to measure: no requests, or a prompt without answers")
        guards.check_tenant(self)
        guards.check_requests(self, requests)
        share = share and not self._elsewhere
        if whole.must_be(self, requests):
            return list(whole.plan_whole(requests, until, batch_tokens=self.batch_tokens, device=self.device))
        return list(plan(requests, batch_tokens=self.batch_tokens, device=self.device, share=share, until=until))

    def _read(
        self,
        requests: Sequence[Request] | Trunk,
        points: Sequence[tuple[Edit, ...]],
        *,
        capture: Capture | None = None,
        first_token: bool = False,
        stop: int | None = None,
        donor: "PassReader | None" = None,
        until: Until | None = None,
    ) -> list[Measurement]:
        """Runs the requests under several sets of edits at once, one copy of the rows for each."""
        trunk = requests if isinstance(requests, Trunk) else None
        if trunk and trunk.owner is not self:
            raise UserError("this trunk belongs to another model", fix="Give the requests themselves.")
        asked = trunk.requests if trunk else requests
        assert not isinstance(asked, Trunk)
        guards.check_tenant(self)
        if any(points):
            self._require("edit")
        guards.check_edits(self, points, asked, stop=stop)
        # a prefix is run once for many prompts, so what changes it must be the same for all of them; a patch is not
        share = all(not isinstance(e, Patch) or e.scope <= _PREFIX_SCOPES for edits in points for e in edits)
        below = trunk if share else None
        batches = below.batches if below else self._plan(asked, answers=stop is None, share=share, until=until)
        # the copies of a sweep run as one batch, so they all start where the lowest of them must
        start = min(below.start(edits) for edits in points) if below else 0
        pool = Pool(asked, capture) if capture else None
        facts = {"width": self.width, "first_token": first_token, "device": self.device}
        tallies = [Tally(asked, pool, **facts) for _ in points]
        ledgers = [Ledger() for _ in points]
        changes = edited(points, ledgers, lambda: self._pass)
        for site in sites_of(capture):  # after the edits, so that what is captured is the edited stream
            assert pool is not None
            guards.check_site(self, site)
            changes.append(watched(site, pool.keeper(site.layer), ledgers[0]))
        given: list[torch.Tensor] = []
        skipping = self._skipping(start, lambda: given[0]) if start else nullcontext()
        with self._hooked(changes, stop=stop) as forward, skipping:
            for k, batch in enumerate(batches):
                entering = [h[start] for h in below.hidden[k]] if below and start else None
                donated = donor._keys_and_values(batch.prompt[0]) if donor else None
                run = self._run(batch, forward, ledgers, entering, given, pool, donated, first_token=first_token)
                for n, hidden in run:
                    tallies[0].keep(batch.passes[n])
                    if hidden is not None:
                        score(self.model, batch, n, hidden, tallies)
        for ledger in ledgers:
            ledger.check()
        return [t.measurement(ledger) for t, ledger in zip(tallies, ledgers, strict=True)]

    def _run(
        self,
        batch: Batch,
        forward: Forward,
        ledgers: Sequence[Ledger],
        entering: Sequence[torch.Tensor] | None = None,
        given: list[torch.Tensor] | None = None,
        pool: Pool | None = None,
        donated: DynamicCache | None = None,
        *,
        first_token: bool = False,
    ) -> Iterator[tuple[int, torch.Tensor | None]]:
        """Yields each pass's number and last hidden states [copies x rows, position, width]."""
        copies = len(ledgers)
        cache = None if batch.whole else donated or self._cache()
        rows_before = batch.prompt[0].ids.shape[0]
        for n, p in enumerate(batch.prompt if first_token else batch.passes):
            if n == 0 and donated is not None:
                continue  # the first pass is the prefix, and the donor has run it
            run = p.repeated(copies, rows_before)
            # several rows may continue one: each gets a copy of its keys and values, which the next pass adds to
            continued = cache if cache is None or run.continues is None else selected(cache, run.continues)
            if entering is not None and given is not None:
                given[:] = [entering[n].repeat(copies, 1, 1)]
            if pool:
                pool.begin(p)
            hidden = self._forward(p, run, continued, forward, ledgers)
            if n < len(batch.prompt):  # passes over answers all continue the prompts, not one another
                cache, rows_before = continued, p.ids.shape[0]
            yield n, hidden

    def _keys_and_values(self, p: Pass) -> DynamicCache:
        """Returns this model's keys and values of a pass that continues none."""
        cache = DynamicCache(config=self.model.config)
        with self._hooked([], stop=None) as forward:
            forward(p, cache)
        return cache

    def _forward(
        self, p: Pass, run: Pass, cache: DynamicCache | None, forward: Forward, ledgers: Sequence[Ledger]
    ) -> torch.Tensor | None:
        """Runs a pass in as many copies as there are ledgers; edits see it as the pass it is a copy of."""
        guards.check_cache(cache, run)
        self._pass = p
        for ledger in ledgers:
            ledger.passes += 1
        return forward(run, cache)
