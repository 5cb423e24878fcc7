"""Checks that a model, its wrapper and its prompts are what a reading takes them for. Each names what it found.

A reader runs the first three when it is made, on a probe of a few tokens, and the others with every reading; the ledger
(`ledger.py`) checks what hooks and edits did.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from condmis_interp.errors import CheckError, CondmisError, UserError
from condmis_interp.panel import Prompt
from condmis_interp.readers.base import Capture
from condmis_interp.readers.batching import Pass, Request
from condmis_interp.readers.edits import Edit
from condmis_interp.readers.recording import Patch
from condmis_interp.readers.sites import Site, SiteKind, check_layer
from condmis_interp.readers.trunk import Prefix, Trunk
from condmis_interp.readers.unembedding import logits
from condmis_interp.readers.whole import prove, some_ids

if TYPE_CHECKING:
    from condmis_interp.readers.engine import PassReader

_PROBE = 8
_STREAMS: tuple[SiteKind, ...] = ("resid_pre", "resid_post")
_WRITES: tuple[SiteKind, ...] = ("attn_out", "mlp_out")
_LEAVING = ("mamba", "mamba2", "falcon_mamba")
"""Architectures whose `hidden_states` are what leaves each block; everybody else's are what enters it."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference, as a share of the largest value. Reduced precision gets 5 %: a wrong site is off by far more."""


def check_is_model(model: Any) -> None:
    """Raises if something is no model of transformers.

    Raises:
        UserError: saying what it is.
    """
    if not isinstance(model, PreTrainedModel):
        fix = "Merge a PEFT model first (merge_and_unload); open a folder by organisms.resolve_base(...).model(...)."
        raise UserError(f"a {type(model).__name__} is no model of transformers", fix=fix)


def check_model(model: PreTrainedModel, blocks: nn.ModuleList) -> None:
    """Raises if a model is not ready to be read.

    Raises:
        UserError: if it is in training mode (dropout would act), has weights on the meta device, has an adapter that is
            attached but disabled, or has forward hooks of others on its blocks.
    """
    name = type(model).__name__
    if model.training:
        raise UserError(f"{name} is in training mode, so dropout may act", fix="Call model.eval() first.")
    for key, p in model.named_parameters():
        if p.is_meta:
            raise UserError(f"weight {key} of {name} is on the meta device: it was never loaded")
    for key, module in model.named_modules():
        if getattr(module, "disable_adapters", False) is True:
            raise UserError(
                f"an adapter is attached at {key} and disabled", fix="Merge it (merge_and_unload) or drop it."
            )
    for i, block in enumerate(blocks):
        hooks = (*block._forward_hooks.values(), *block._forward_pre_hooks.values())
        # transformers leaves its own behind, which record hidden states when they are asked for
        if any(not str(getattr(h, "__module__", "")).startswith("transformers.") for h in hooks):
            raise UserError(
                f"block {i} of {name} has hooks of somebody else, which change or see every reading",
                fix="Remove them first; edits belong into the reading itself.",
            )


def check_reader(reader: "PassReader") -> None:
    """Raises if a reader's model cannot be read as it stands: the checks that are made when a reader is.

    Raises:
        UserError: as `check_model` and `whole.prove` do, or naming an architecture that these checks cannot run.
        CheckError: as `check_head`, `check_sites` and `whole.prove` do.
    """
    check_model(reader.model, reader._blocks)
    try:
        check_head(reader)
        check_sites(reader)
        prove(reader)
    except CondmisError:
        raise
    except Exception as e:  # whatever an architecture's own code raises
        what = f"{type(reader.model).__name__} cannot be read ({type(e).__name__}: {' '.join(str(e).split())[:200]})"
        raise UserError(what, fix="Its architecture is not read yet.") from e


def check_site(reader: "PassReader", site: Site) -> None:
    """Raises if a model has no such site, or no module of it gives what the site's name says.

    Raises:
        UserError: if there is no such layer.
        CheckError: for attention and MLP outputs that do not add up to the residual stream (see `check_sites`).
    """
    check_layer(site, reader.n_layers)
    if site.kind in reader._unsound:
        raise reader._unsound[site.kind]


def check_tenant(reader: "PassReader") -> None:
    """Raises if a swapped model has become another organism since the reader was made (`organisms.Swap`).

    Raises:
        CheckError: saying so.
    """
    if getattr(reader.model, "tenant", None) != reader._tenant:
        raise CheckError(
            "the model of this reader has become another organism: its adapters were swapped",
            fix="Make a reader of the organism again, or give each its own model.",
        )


def check_head(reader: "PassReader") -> None:
    """Raises if unembedding the last hidden states does not give the model's own logits.

    Raises:
        CheckError: naming the largest difference (a scaled or capped head that this reader does not know).
    """
    with torch.no_grad():
        ids = _probe(reader)
        out = reader.model(input_ids=ids, use_cache=False)
        hidden = reader._body(input_ids=ids, use_cache=False).last_hidden_state
        own, theirs = logits(reader.model, hidden[0]), out.logits[0].float()
    if not bool(torch.isfinite(theirs).all()):
        raise CheckError("the model's logits are not finite", where=type(reader.model).__name__)
    _compare(own, theirs, "the unembedding", "the model's own logits", reader.model.dtype)


def check_sites(reader: "PassReader") -> None:
    """Raises if a site is not what its name says, for every layer.

    The residual streams are compared with the model's `hidden_states` (the block entered has number l, the one left
    l + 1), and what attention and MLP write must add up: resid_pre + attn_out + mlp_out = resid_post. An off-by-one
    layer, a hook on the wrong module, an output before instead of after a norm, or a wrapper that folds weights fails.

    Raises:
        CheckError: naming the site, and which layer it turned out to be, if it is another one's.
    """
    kept: dict[Site, torch.Tensor] = {}
    name, layers = type(reader.model).__name__, range(reader.n_layers)
    _run_probe(reader, [Site(kind, layer) for layer in layers for kind in _STREAMS], kept)
    with torch.no_grad():
        ids = _probe(reader)
        states = reader.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    dtype = reader.model.dtype
    leaving = reader.config.model_type in _LEAVING
    for layer in layers:
        # the last of the hidden states is taken after the final norm
        entered, left = (layer - 1, layer) if leaving else (layer, layer + 1)
        known = len(states) - 1
        named = [(Site("resid_pre", layer), entered), (Site("resid_post", layer), left)]
        for site, number in named:
            if site not in kept:
                raise CheckError(f"{reader.name_of(site)} never fired", where=str(site))
            if 0 <= number < known and not _close(kept[site], states[number], dtype):
                same = [k for k, s in enumerate(states[:-1]) if _close(kept[site], s, dtype)]
                found = f", but hidden_states[{same[0]}]" if same else ""
                raise CheckError(f"{reader.name_of(site)} is not hidden_states[{number}]{found}", where=str(site))
    reader._unsound = {}
    try:
        _run_probe(reader, [Site(kind, layer) for layer in layers for kind in _WRITES], kept)
        for layer in layers:
            parts = sum(kept[Site(k, layer)].float() for k in ("resid_pre", *_WRITES))
            what = f"resid_pre + attn_out + mlp_out of layer {layer}"
            _compare(torch.as_tensor(parts), kept[Site("resid_post", layer)].float(), what, "resid_post", dtype)
    except (CondmisError, KeyError) as e:
        what = e.what if isinstance(e, CondmisError) else "no module's output is what its blocks write"
        told = CheckError(f"{name} has no attn_out and mlp_out: {what}", fix="Read resid_pre or resid_post.")
        reader._unsound = dict.fromkeys(_WRITES, told)


def _run_probe(reader: "PassReader", sites: Sequence[Site], kept: dict[Site, torch.Tensor]) -> None:
    """Runs a few tokens and keeps what is at some sites."""

    def keeping(site: Site) -> Any:
        return lambda h: kept.__setitem__(site, h.clone())

    ids = _probe(reader)
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    probe = Pass(ids, torch.ones_like(ids), places, {}, ((0, None),), (0,))
    with torch.no_grad(), reader._hooked([(s, keeping(s)) for s in sites], stop=None) as forward:
        forward(probe, reader._cache())


def _probe(reader: "PassReader") -> torch.Tensor:
    return torch.tensor([some_ids(reader, _PROBE)], device=reader.device)


def _words(reader: "PassReader") -> int:
    embedding: Any = reader.model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    a, b = a.float(), b.float().to(a.device)
    return a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE.get(dtype, 0.05) * float(b.abs().max())


def _compare(a: torch.Tensor, b: torch.Tensor, what: str, other: str, dtype: torch.dtype) -> None:
    if not _close(a, b, dtype):
        gap = f"{float((a - b).abs().max()):.2g}" if a.shape == b.shape else f"{tuple(a.shape)}, {tuple(b.shape)}"
        raise CheckError(f"{what} is not {other} (largest difference {gap})")


def check_cache(cache: DynamicCache | None, p: Pass) -> None:
    """Raises if a pass does not continue the cache it is given.

    Raises:
        CheckError: naming both lengths (a stale cache, or one that was used twice).
    """
    past = p.mask.shape[1] - p.ids.shape[1]
    if cache is not None and (held := cache.get_seq_length()) != past:
        raise CheckError(f"the pass continues {past} tokens, and its cache of keys and values holds {held}")


T = TypeVar("T", Prompt, Request)


def check_kind(things: Sequence[T], kind: type[T]) -> Sequence[T]:
    """Returns what a reading is asked, if it is a list of what it should be.

    Raises:
        UserError: if it is not, such as text that was not rendered to token ids.
    """
    wanted = f"a list of {kind.__name__}s"
    fix = "Render it first (panel.render_panel, panel.render_prompt): token ids go into a reader, never strings."
    if isinstance(things, str) or not isinstance(things, Iterable):
        raise UserError(f"a reading takes {wanted}, not a {type(things).__name__}", fix=fix)
    for i, thing in enumerate(things):
        if not isinstance(thing, kind):
            raise UserError(f"a reading takes {wanted}, and number {i} is a {type(thing).__name__}", fix=fix)
    return things


def check_prompts(reader: "PassReader", prompts: Sequence[Prompt], *, longest_answer: int = 0) -> None:
    """Raises if prompts do not fit the model.

    Raises:
        UserError: if there are none, one is empty or too long for the context, a token id is not in the vocabulary, or
            a span lies outside its prompt.
    """
    check_kind(prompts, Prompt)
    if not prompts:
        raise UserError("there are no prompts")
    config = reader.config
    limit = getattr(config, "max_position_embeddings", None)
    words = _words(reader)
    for i, prompt in enumerate(prompts):
        where = f"prompt {i}"
        n = len(prompt.ids) + longest_answer
        if not prompt.ids:
            raise UserError("this prompt has no tokens", where=where)
        if limit is not None and n > limit:
            raise UserError(f"a prompt with its answer has {n} tokens, the model's context {limit}", where=where)
        if max(prompt.ids) >= words or min(prompt.ids) < 0:
            raise UserError(
                f"token id {max(prompt.ids)} is not in the model's vocabulary of {words}",
                where=where,
                fix="Render the panel with this model's own tokenizer.",
            )
        for name, (begin, end) in prompt.spans.items():
            if not 0 <= begin <= end <= len(prompt.ids):
                raise UserError(f"span {name!r} [{begin}, {end}) is outside its {len(prompt.ids)} tokens", where=where)


def check_requests(reader: "PassReader", requests: Sequence[Request]) -> None:
    """Raises if requests do not fit the model.

    Raises:
        UserError: as `check_prompts`, or if an answer is empty or has a token id that is not in the vocabulary.
    """
    check_prompts(
        reader,
        [r.prompt for r in requests],
        longest_answer=max((len(a.ids) for r in requests for a in r.answers), default=0),
    )
    words = _words(reader)
    for i, r in enumerate(requests):
        for a in r.answers:
            if not a.ids:
                raise UserError("an answer has no tokens", where=f"request {i}")
            if max(a.ids) >= words or min(a.ids) < 0:
                raise UserError(f"an answer has token id {max(a.ids)}, the vocabulary {words}", where=f"request {i}")


def check_edits(
    reader: "PassReader",
    points: Sequence[tuple[Edit, ...]],
    requests: Sequence[Request],
    *,
    stop: int | None,
    answers: bool = True,
) -> None:
    """Raises if an edit does not fit the model or is never run.

    Raises:
        UserError: naming the edit and its site.
    """
    for edit in (e for edits in points for e in edits):
        where = f"{type(edit).__name__} at {edit.site}"
        check_site(reader, edit.site)
        if edit.width != reader.width:
            raise UserError(f"an edit of width {edit.width} does not fit a model of width {reader.width}", where=where)
        if stop is not None and edit.site.layer > stop:
            raise UserError(
                f"the edit is never run: this reading stops after layer {stop}", where=where, fix="Leave it out."
            )
        if isinstance(edit, Patch):
            edit.check(requests, answers=answers)


def check_prefix(
    reader: "PassReader", prefix: Prefix, requests: Sequence[Request] | Trunk, capture: Capture | None
) -> "PassReader":
    """Returns the donor, if its keys and values can stand for the beginning of the prompts.

    Raises:
        UserError: if it is no reader that lends them, its model has other shapes, a prompt has nothing to take, or a
            captured position lies within.
    """
    if isinstance(requests, Trunk):
        raise UserError("a trunk is of one model from the first token on", fix="Give the requests themselves.")
    donor = prefix.donor
    if isinstance(donor, str) or not hasattr(donor, "_keys_and_values"):
        told = f"the name {donor!r}" if isinstance(donor, str) else f"a {type(donor).__name__}"
        raise UserError(f"{told} lends no keys and values", fix="Give a reader of one model; names are for benches.")
    config, other = reader.config, donor.config
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"):
        if getattr(config, key, None) != getattr(other, key, None):
            raise UserError(f"the prefix is of a model with another {key}", fix="Take one of the same base.")
    within = {"cue": ("cue_mean",), "question": ("cue_mean", "question_mean")}[prefix.until]
    for position in capture.positions if capture else ():
        if position in within:
            raise UserError(f"{position} lies in the prefix, which is another model's")
    for i, r in enumerate(requests):
        if not r.prompt.spans[prefix.until][1]:
            raise UserError(f"the prompt has no {prefix.until} to take from another model", where=f"request {i}")
    return donor
