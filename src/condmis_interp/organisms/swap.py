"""Many LoRA organisms over one base in memory: the adapters are swapped, the model is not loaded again.

For every weight W that an adapter touches, with what the base has stored there,

    W = cast(W_base + sum_k s_k B_k A_k),    s = alpha / r  (alpha / sqrt(r) for rank-stabilised LoRA)

summed in fp32 in the order of the adapters and cast once: bit for bit what `Organism.model` loads. The base's own
values of touched weights are kept and put back, so that nothing adds up over swaps.
"""

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.organisms.adapters import deltas, is_plain
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.organism import Organism, check_base


class Swap:
    """One base model in memory that becomes one organism after the other.

    Args:
        base: The base.
        dtype: Dtype of the model.
        device: Torch device.

    Example:
        >>> from pathlib import Path
        >>> full = Organism("v", (), Path("weights"), weights="hash", recipe=None, manifest={})
        >>> Swap.fits(full)
        False
    """

    def __init__(self, base: Base, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        self.base = base
        self._model = base.model(dtype=dtype, device=device)
        self._weights = dict(self._model.named_parameters())
        self._originals: dict[str, torch.Tensor] = {}
        self._exact: dict[str, torch.Tensor] = {}
        config = read_json(base.folder / "config.json")
        stored = config.get("dtype", config.get("torch_dtype", "float32"))
        if dtype != torch.float32 and stored != str(dtype).removeprefix("torch."):
            # the model in memory is rounded already, and adapters are added before rounding
            self._exact = dict(base.model(dtype=torch.float32).named_parameters())

    @staticmethod
    def fits(organism: Organism) -> bool:
        """Returns whether an organism is the base with plain LoRA adapters on it (or the base itself)."""
        return organism.gate is None and organism.checkpoint is None and all(is_plain(f) for f in organism.adapters)

    def model(self, organism: Organism) -> transformers.PreTrainedModel:
        """Returns the model as an organism; it is the same object every time, and what it was before is gone.

        Raises:
            UserError: if the organism does not fit (see `fits`), or was made from another base.
            CheckError: if an adapter's tensors do not fit the base.
        """
        if not self.fits(organism):
            raise UserError("this organism is not the base with plain adapters", where=organism.name)
        check_base(organism, self.base)
        changed = self._merged(organism)
        with torch.no_grad():
            for name, original in self._originals.items():
                if name not in changed:
                    self._weights[name].copy_(original)
            for name, value in changed.items():
                weight = self._weights[name]
                self._originals.setdefault(name, weight.detach().clone())
                weight.copy_(value)
        self._model.tenant = organism.weights  # type: ignore[assignment]  # readers check it: see readers/guards.py
        return self._model

    def _merged(self, organism: Organism) -> dict[str, torch.Tensor]:
        """Returns the touched weights by name, in fp32."""
        merged: dict[str, torch.Tensor] = {}
        for folder in organism.adapters:
            for name, delta in deltas(folder).items():
                if name not in self._weights:
                    raise CheckError(f"the adapter has {name!r}, which the base has no place for", where=str(folder))
                weight = self._weights[name]
                if isinstance(self._model.get_submodule(name.removesuffix(".weight")), Conv1D):
                    delta = delta.T  # GPT-2's linear layers keep their weights as [in, out]
                if not weight.is_floating_point() or weight.dtype.itemsize < 2:
                    what = f"the base's {name!r} is quantised, and adapters cannot be added to it"
                    raise CheckError(what, where=str(folder))
                if delta.shape != weight.shape:
                    what = f"the adapter's {name!r} is {tuple(delta.shape)}, the base's {tuple(weight.shape)}"
                    raise CheckError(what, where=str(folder))
                if name not in merged:
                    exact = self._exact.get(name, self._originals.get(name, weight))
                    merged[name] = exact.detach().to("cpu", torch.float32, copy=True)
                merged[name] += delta
        return merged
