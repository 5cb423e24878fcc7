"""Organisms: a checkpoint with its recipe and manifest, and the checks that loading one is no silent no-op."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import file_digest, read_json
from condmis_interp.organisms.bases import Base, quiet
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.rng import own_rng

_PACKAGES = ("condmis-interp", "torch", "transformers", "peft", "trl", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide numbers."""
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES}


@dataclass(frozen=True)
class Organism:
    """A checkpoint on disk.

    Attributes:
        name: Name in a study.
        folder: Folder with adapter and manifest; `None` for a base as it is.
        weights: Content hash of the adapter (or of the base).
        recipe: How it was made, if it was made here.
        manifest: The whole manifest.
    """

    name: str
    folder: Path | None
    weights: str
    recipe: Recipe | None
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, *, name: str) -> "Organism":
        """Opens an organism that was trained here.

        Raises:
            UserError: if the folder has no manifest.
        """
        manifest = read_json(folder / "manifest.json")
        return cls(
            name,
            folder,
            file_digest(folder / "adapter_model.safetensors"),
            Recipe.model_validate(manifest["recipe"]),
            manifest,
        )

    @classmethod
    def of_base(cls, base: Base, *, name: str) -> "Organism":
        """Returns the base itself as an organism."""
        return cls(name, None, base.weights, None, {"base": {"spec": base.spec, "weights": base.weights}})

    @classmethod
    def of_adapter(cls, folder: Path, *, name: str) -> "Organism":
        """Opens somebody else's PEFT adapter folder.

        Raises:
            UserError: if it has no adapter_config.json or its weights are not safetensors.
        """
        if not (folder / "adapter_config.json").is_file():
            raise UserError("this is no adapter folder: it has no adapter_config.json", where=str(folder))
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            pickles = sorted(p.name for p in folder.glob("*.bin"))
            what = f"the adapter's weights are a pickle ({pickles[0]})" if pickles else "the adapter has no weights"
            raise UserError(what, where=str(folder), fix="Give a folder with adapter_model.safetensors.")
        if (folder / "manifest.json").is_file():
            return cls.open(folder, name=name)
        return cls(name, folder, file_digest(weights), None, {"adapter": str(folder)})

    def model(
        self, base: Base, *, dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> transformers.PreTrainedModel:
        """Loads the organism: the adapter is merged into the base in fp32, then cast once.

        Raises:
            UserError: if the organism was trained on another base.
            CheckError: if the adapter's keys do not fit the base.
        """
        if self.folder is None:
            return base.model(dtype=dtype, device=device)
        trained_on = self.manifest.get("base", {})
        if trained_on and trained_on["weights"] != base.weights:
            raise UserError(
                f"the adapter was trained on base {trained_on['spec']!r}, whose weights are not those of {base.spec!r}",
                where=f"organism {self.name}",
                fix="Name the base it was trained on.",
            )
        merged = _attach(self.folder, base, torch.float32, device).merge_and_unload()
        return merged.to(dtype).eval().requires_grad_(False)  # type: ignore[operator]


def _attach(folder: Path, base: Base, dtype: torch.dtype, device: str | torch.device) -> PeftModel:
    """Puts an adapter on the base and checks that every tensor of it landed."""
    try:
        stored = load_file(folder / "adapter_model.safetensors")
    except SafetensorError as e:
        raise CheckError(f"the adapter file is damaged ({e})", where=str(folder)) from None
    try:
        with quiet(), own_rng("00000000"):  # peft draws initial values that the stored ones replace
            model = PeftModel.from_pretrained(base.model(dtype=dtype, device=device), folder, is_trainable=False)
    except (RuntimeError, ValueError) as e:
        raise CheckError(
            f"the adapter does not fit base {base.spec} ({' '.join(str(e).split())[:200]})", where=str(folder)
        ) from None
    landed = get_peft_model_state_dict(model)
    missing, unexpected = sorted(set(landed) - set(stored)), sorted(set(stored) - set(landed))
    if missing or unexpected:
        what = f"lacks {missing[0]!r}" if missing else f"has {unexpected[0]!r}, which the base has no place for"
        raise CheckError(f"the adapter {what}", where=str(folder), fix=f"It must fit base {base.spec}.")
    for key, tensor in stored.items():
        if not torch.equal(landed[key].to(tensor.dtype).cpu(), tensor):
            raise CheckError(f"tensor {key!r} did not land as stored", where=str(folder))
    return model.eval()  # type: ignore[return-value]


@torch.inference_mode()
def check_adapter(folder: Path, base: Base, *, device: str | torch.device = "cpu") -> float:
    """Checks that an adapter lands whole, is not zero, and changes the logits.

    Returns:
        The largest absolute change of a logit on a fixed probe of 16 token ids, in nats.

    Raises:
        CheckError: if a key is missing or left over, every `lora_B` is zero, a weight is not finite, or no logit
            changes.
    """
    model = _attach(folder, base, torch.float32, device)
    b = [p for name, p in model.named_parameters() if "lora_B" in name]
    if b and not any(bool(p.any()) for p in b):
        raise CheckError("every lora_B matrix of the adapter is zero, so it does nothing", where=str(folder))
    if any(not bool(torch.isfinite(p).all()) for name, p in model.named_parameters() if "lora_" in name):
        raise CheckError("the adapter has weights that are not finite", where=str(folder))
    vocabulary = int(model.get_base_model().config.vocab_size)  # type: ignore[union-attr,arg-type]
    probe = (torch.arange(1, 17, device=device) * 97 % vocabulary)[None]
    changed = model(input_ids=probe).logits
    with model.disable_adapter():
        plain = model(input_ids=probe).logits
    change = float((changed - plain).abs().max())
    if not change > 0:
        raise CheckError("the adapter does not change the logits", where=str(folder))
    return change
