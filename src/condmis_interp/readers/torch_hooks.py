"""The default reader: plain PyTorch forward hooks on a Hugging Face model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache

from condmis_interp.readers.batching import Pass
from condmis_interp.readers.engine import Forward, PassReader
from condmis_interp.readers.hooks import Change, hook
from condmis_interp.readers.sites import Site, check_layer, module_of, submodule_of


class _Stop(Exception):  # noqa: N818  (not an error: it ends a forward pass early)
    pass


class TorchReader(PassReader):
    """Reads and edits a Hugging Face causal language model through forward hooks; see `PassReader`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 9}
        >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **shape)).eval()
        >>> from condmis_interp.panel import Answer, Prompt
        >>> from condmis_interp.readers import Capture, Request
        >>> prompt = Prompt((0, 4, 5, 1), {"cue": (0, 1), "question": (1, 3), "tail": (3, 4)}, "...")
        >>> asked = [Request(prompt, (Answer((7,), (1,)), Answer((8,), (1,))))]
        >>> found = TorchReader(model).measure(asked, capture=Capture((1,)))
        >>> found.logprobs[0].shape, found.activations["last_template"].shape
        (torch.Size([2]), torch.Size([1, 1, 8]))
    """

    def name_of(self, site: Site) -> str:
        """Returns the module whose input (`resid_pre`) or output (the others) is the site, by its path in the model."""
        check_layer(site, self.n_layers)
        block = self._blocks[site.layer]
        path = next(name for name, module in self.model.named_modules() if module is block)
        inner = submodule_of(block, site)
        end = "input" if site.kind == "resid_pre" else "output"
        return ".".join(part for part in (path, inner, end) if part)

    @contextmanager
    def _hooked(self, changes: Sequence[tuple[Site, Change]], *, stop: int | None) -> Iterator[Forward]:
        def forward(p: Pass, cache: DynamicCache | None) -> torch.Tensor | None:
            kept = {} if cache is None else {"past_key_values": cache}
            inputs = {"input_ids": p.ids, "attention_mask": p.mask, "position_ids": p.positions, **kept}
            try:
                out = self._body(**inputs, use_cache=cache is not None)
            except _Stop:
                return None
            return out.last_hidden_state

        with ExitStack() as stack:
            for site, change in changes:
                stack.callback(self._hook(site, change).remove)
            if stop is not None:
                stack.callback(self._blocks[stop].register_forward_hook(_raise_stop).remove)
            yield forward

    def _hook(self, site: Site, change: Change) -> RemovableHandle:
        return hook(module_of(self._blocks, site), site, change)

    @contextmanager
    def _skipping(self, start: int, entering: Callable[[], torch.Tensor]) -> Iterator[None]:
        """Leaves out the blocks below a layer: the first hands over what enters it, the others pass it on."""
        with ExitStack() as stack:
            for i, block in enumerate(list(self._blocks)[:start]):
                attributes = vars(block)  # not setattr: modules may override it, as a bridge's blocks do
                own = attributes.get("forward")  # accelerate, for one, replaces it on the module itself
                attributes["forward"] = self._skipped(i, entering)
                if own is None:
                    stack.callback(attributes.pop, "forward")
                else:
                    stack.callback(attributes.__setitem__, "forward", own)
            yield

    def _skipped(self, layer: int, entering: Callable[[], torch.Tensor]) -> Any:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            cache = next((a for a in (*args, *kwargs.values()) if isinstance(a, Cache)), None)
            if cache is not None:
                blank = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
                cache.update(blank, blank, layer)  # masks are built from the length of a cache, not from its content
            return hidden_states if layer else entering()

        return forward


def _raise_stop(*_: Any) -> None:
    raise _Stop
