"""The TransformerLens reader: hooks on the hook points of a `TransformerBridge`, over the same Hugging Face weights.

The bridge puts hook points around a Hugging Face model's own modules, so a pass over that model fires them, with its
keys and values and its attention masks. Sites are read and edited at the names a TransformerLens user knows
(`blocks.18.hook_resid_post`). A bridge forces eager attention.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from condmis_interp.errors import UserError
from condmis_interp.readers.hooks import Change
from condmis_interp.readers.sites import Site, check_layer
from condmis_interp.readers.torch_hooks import TorchReader


class LensReader(TorchReader):
    """Reads and edits a model through TransformerLens.

    Args:
        bridge: A `TransformerBridge`; a user's own, or one made by `LensReader.over`.
        batch_tokens: As in `PassReader`.

    Raises:
        UserError: if it is another object (a `HookedTransformer` has weights of its own), or runs in compatibility
            mode, in which its residual stream is centred and folded and no longer the model's.
        CheckError: if a hook point is not the site its name says.
    """

    def __init__(self, bridge: Any, *, batch_tokens: int = 1024) -> None:
        if not isinstance(bridge, TransformerBridge):
            raise UserError(
                f"a {type(bridge).__name__} is no TransformerBridge",
                fix="Make one: TransformerBridge.boot_transformers(name, hf_model=..., tokenizer=...).",
            )
        if getattr(bridge, "compatibility_mode", False):
            raise UserError(
                "this bridge is in compatibility mode: its residual stream is not the model's",
                fix="Give it before enable_compatibility_mode().",
            )
        self.bridge = bridge
        model: Any = bridge.original_model  # typed as any module
        super().__init__(model, batch_tokens=batch_tokens)

    @classmethod
    def over(cls, model: PreTrainedModel, *, folder: str, tokenizer: Any, batch_tokens: int = 1024) -> "LensReader":
        """Wraps a Hugging Face model, which should not be used by itself afterwards.

        Args:
            model: The model.
            folder: Folder (or id) that its config is read from.
            tokenizer: Its tokenizer, loaded from a folder.
            batch_tokens: As in `PassReader`.
        """
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=tokenizer, device=model.device, dtype=model.dtype
        )
        return cls(bridge, batch_tokens=batch_tokens)

    def name_of(self, site: Site) -> str:
        """Returns the name of the hook point, e.g. `blocks.18.hook_resid_post`."""
        self._point(site)
        return site.lens_name

    def _point(self, site: Site) -> HookPoint:
        check_layer(site, self.n_layers)
        try:
            point = self.bridge.get_hook_point(site.lens_name)
        except (AttributeError, KeyError):
            point = None
        if not isinstance(point, HookPoint):
            raise UserError(f"site {site} is not in this model", fix=f"The bridge has no {site.lens_name}.")
        return point

    def _skipped(self, layer: int, entering: Callable[[], torch.Tensor]) -> Any:
        skipped = super()._skipped(layer, entering)
        block: Any = self._blocks[layer]
        # what leaves the block passes its hook point, where the lowest edit may be
        return lambda *args, **kwargs: block.hook_out(skipped(*args, **kwargs))

    def _hook(self, site: Site, change: Change) -> RemovableHandle:
        def after(_: Any, __: Any, hidden: torch.Tensor) -> torch.Tensor | None:
            return change(hidden)

        return self._point(site).register_forward_hook(after)
