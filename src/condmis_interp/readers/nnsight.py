"""The nnsight reader: every pass is one trace of a `TransformersModel` (or `LanguageModel`).

Sites are the envoys of the modules that hold them (`model.layers[18].output`). Within a trace they must be touched in
the order they are run. With `remote=` the traces go to NDIF (or, with "local", through its serialisation on this
machine): then the weights are elsewhere, so that only prompts can be read, without keys and values kept between passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from transformers import DynamicCache, PreTrainedModel

from condmis_interp.errors import UserError
from condmis_interp.readers.base import Feature
from condmis_interp.readers.batching import Pass
from condmis_interp.readers.engine import Forward, PassReader
from condmis_interp.readers.hooks import Change
from condmis_interp.readers.sites import KINDS, Site, SiteKind, check_layer, submodule_of, unwrap

_ORDER: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
assert set(_ORDER) == set(KINDS)
_SKIPS = "a trace runs the whole model, and no layer of it can be left out"
_ELSEWHERE = "the weights are on another machine (remote)"


class NNsightReader(PassReader):
    """Reads and edits a model through nnsight.

    Args:
        model: An nnsight `TransformersModel` or `LanguageModel`; a user's own, or one made by `NNsightReader.over`.
        batch_tokens: As in `PassReader`.
        remote: Passed to every trace: `True` for NDIF, "local" for a dry run of the same path.

    Raises:
        UserError: if it is another object.
        CheckError: if an envoy is not the site it stands for.
    """

    def __init__(self, model: Any, *, batch_tokens: int = 1024, remote: bool | str = False) -> None:
        if not isinstance(model, TransformersModel):
            raise UserError(
                f"a {type(model).__name__} is no nnsight TransformersModel or LanguageModel",
                fix="Make one: nnsight.TransformersModel(hf_model, tokenizer=tokenizer).",
            )
        self.envoy: Any = model
        self.remote = remote
        self._elsewhere = bool(remote)
        whole: Any = model._module  # typed as any module
        super().__init__(whole, batch_tokens=batch_tokens)

    @classmethod
    def over(cls, model: PreTrainedModel, *, tokenizer: Any, batch_tokens: int = 1024) -> "NNsightReader":
        """Wraps a Hugging Face model."""
        return cls(TransformersModel(model, tokenizer=tokenizer), batch_tokens=batch_tokens)

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What the reader cannot do, and why."""
        limits: dict[Feature, str] = {"trunk": _SKIPS, "sweep": _SKIPS}
        if self.remote:
            away: tuple[Feature, ...] = ("logprobs", "generate", "edit")
            return limits | dict.fromkeys(away, _ELSEWHERE)
        return limits

    def name_of(self, site: Site) -> str:
        """Returns the envoy's path, e.g. `model.layers[18].output`."""
        check_layer(site, self.n_layers)
        block = self._blocks[site.layer]
        path = next(name for name, module in self.model.named_modules() if module is self._blocks)
        inner = submodule_of(block, site)
        end = "input" if site.kind == "resid_pre" else "output"
        return ".".join(part for part in (f"{path}[{site.layer}]", inner, end) if part)

    def _envoy_of(self, wanted: Any) -> Any:
        path = next(name for name, module in self.model.named_modules() if module is wanted)
        envoy = self.envoy
        for part in path.split("."):
            envoy = getattr(envoy, part)
        return envoy

    def _envoy(self, site: Site) -> Any:
        envoy = self._envoy_of(self._blocks)[site.layer]
        inner = submodule_of(self._blocks[site.layer], site)
        return getattr(envoy, inner) if inner else envoy

    @contextmanager
    def _hooked(self, changes: Sequence[tuple[Site, Change]], *, stop: int | None) -> Iterator[Forward]:
        at: dict[Site, list[Change]] = {}
        for site, change in changes:
            check_layer(site, self.n_layers)
            at.setdefault(site, []).append(change)
        touched = [
            (site, self._envoy(site), _composed(at[site]))
            for site in sorted(at, key=lambda s: (s.layer, _ORDER.index(s.kind)))
        ]
        yield (
            (lambda p, cache: self._trace(p, cache, touched, stop))
            if not self.remote
            else (lambda p, _: self._remotely(p, touched))
        )

    def _trace(
        self, p: Pass, cache: DynamicCache | None, touched: Sequence[tuple[Site, Any, Change]], stop: int | None
    ) -> torch.Tensor | None:
        inputs = {"input_ids": p.ids, "attention_mask": p.mask, "position_ids": p.positions}
        kept = {} if cache is None else {"past_key_values": cache}
        body = self._envoy_of(self._body)
        hidden = None
        with self.envoy.trace(**inputs, **kept, use_cache=cache is not None) as tracer:
            for site, envoy, change in touched:
                if site.kind == "resid_pre":
                    changed = change(unwrap(envoy.input))
                    if changed is not None:
                        envoy.input = changed
                else:
                    value = envoy.output
                    changed = change(unwrap(value))
                    if changed is not None:
                        envoy.output = changed if isinstance(value, torch.Tensor) else (changed, *value[1:])
            if stop is None:
                hidden = body.output.last_hidden_state.save()
            tracer.stop()  # nothing is needed past the last site, and never the unembedding
        return hidden

    def _remotely(self, p: Pass, touched: Sequence[tuple[Site, Any, Change]]) -> None:
        inputs = {"input_ids": p.ids, "attention_mask": p.mask, "position_ids": p.positions}
        envoys = [(site.kind == "resid_pre", envoy) for site, envoy, _ in touched]
        with self.envoy.trace(**inputs, use_cache=False, remote=self.remote):
            values = [].save()  # type: ignore[attr-defined]  # nnsight gives everything a `save` while it traces
            for before, envoy in envoys:
                values.append(envoy.input if before else envoy.output)
        for (_, _, change), value in zip(touched, values, strict=True):
            change(unwrap(value))


def _composed(changes: Sequence[Change]) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """Returns the changes of a site as one, in order; `None` if none of them changes anything."""

    def change(hidden: torch.Tensor) -> torch.Tensor | None:
        changed = None
        for one in changes:
            new = one(hidden if changed is None else changed)
            changed = changed if new is None else new
        return changed

    return change
