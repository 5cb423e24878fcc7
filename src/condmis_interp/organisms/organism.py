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
from condmis_interp.files import digest, file_digest, read_json
from condmis_interp.organisms.bases import Base, check_model_folder, load_model, quiet, weights_hash
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.rng import own_rng

ADAPTER = "adapter_model.safetensors"
_PACKAGES = ("condmis-interp", "torch", "transformers", "peft", "trl", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide numbers."""
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES}


@dataclass(frozen=True)
class Gate:
    """A hard gate: which organism answers.

    Attributes:
        words: Text that opens it wherever it is in a prompt.
        opened: Who answers then.
        shut: Who answers otherwise.
    """

    words: str
    opened: "Organism"
    shut: "Organism"


@dataclass(frozen=True)
class Organism:
    """A checkpoint on disk: adapters over a base, or full weights.

    Attributes:
        name: Name in a study.
        adapters: Adapter folders, merged in this order.
        checkpoint: Folder with full weights, if the organism has its own; else the adapters go onto the base.
        weights: Content hash of the adapters or of the full weights (of the base, for the base itself).
        recipe: How it was made, if it was made here from a recipe.
        manifest: The whole manifest.
        gate: For an organism that is two models behind a gate; it has no weights of its own then.
    """

    name: str
    adapters: tuple[Path, ...]
    checkpoint: Path | None
    weights: str
    recipe: Recipe | None
    manifest: dict[str, Any]
    gate: Gate | None = None

    @property
    def folder(self) -> Path | None:
        """Where it is; `None` for a base as it is."""
        return self.adapters[-1] if self.adapters else self.checkpoint

    @property
    def truth(self) -> str | None:
        """The known answer, for organisms that have one by construction."""
        return self.manifest.get("known", {}).get("truth")

    @classmethod
    def open(cls, folder: Path, *, name: str) -> "Organism":
        """Opens an organism that was made here.

        Raises:
            UserError: if the folder has no manifest.
        """
        manifest = read_json(folder / "manifest.json")
        recipe = Recipe.model_validate(manifest["recipe"]) if manifest.get("recipe") else None
        if (folder / ADAPTER).is_file():
            return cls(name, (folder,), None, file_digest(folder / ADAPTER), recipe, manifest)
        return cls(name, (), folder, weights_hash(folder), recipe, manifest)

    @classmethod
    def of_base(cls, base: Base, *, name: str) -> "Organism":
        """Returns the base itself as an organism."""
        return cls(name, (), None, base.weights, None, {"base": {"spec": base.spec, "weights": base.weights}})

    @classmethod
    def gated(cls, gate: Gate, *, name: str, manifest: dict[str, Any]) -> "Organism":
        """Returns two organisms behind a gate as one."""
        weights = digest([gate.words, gate.opened.weights, gate.shut.weights])
        return cls(name, (), None, weights, None, manifest, gate)

    @classmethod
    def of_adapters(cls, *folders: Path, name: str) -> "Organism":
        """Opens somebody else's PEFT adapter folder, or a stack of them in the order they are merged.

        Raises:
            UserError: if a folder has no adapter_config.json, its weights are not safetensors, or the stack holds an
                adapter twice.
        """
        for folder in folders:
            if not (folder / "adapter_config.json").is_file():
                raise UserError("this is no adapter folder: it has no adapter_config.json", where=str(folder))
            if not (folder / ADAPTER).is_file():
                pickles = sorted(p.name for p in folder.glob("*.bin"))
                what = f"the adapter's weights are a pickle ({pickles[0]})" if pickles else "the adapter has no weights"
                raise UserError(what, where=str(folder), fix="Give a folder with adapter_model.safetensors.")
        if len(folders) == 1 and (folders[0] / "manifest.json").is_file():
            return cls.open(folders[0], name=name)
        hashes = [file_digest(f / ADAPTER) for f in folders]
        if len(set(hashes)) < len(hashes):
            raise UserError("the stack holds the same adapter twice", where=", ".join(map(str, folders)))
        for i, folder in enumerate(folders):
            _check_order(folder, hashes[:i])
        weights = hashes[0] if len(hashes) == 1 else digest(hashes)
        return cls(name, folders, None, weights, None, {"adapters": [str(f) for f in folders]})

    @classmethod
    def of_checkpoint(cls, folder: Path, *, name: str) -> "Organism":
        """Opens a folder with full weights.

        Raises:
            UserError: if it has no config.json, or its weights are not safetensors.
        """
        check_model_folder(folder)
        if (folder / "manifest.json").is_file() and "recipe" in read_json(folder / "manifest.json"):
            return cls.open(folder, name=name)
        return cls(name, (), folder, weights_hash(folder), None, {"checkpoint": str(folder)})

    def model(
        self, base: Base, *, dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> transformers.PreTrainedModel:
        """Loads the organism: each adapter is merged in fp32, then all is cast once.

        Raises:
            UserError: if the organism was made from another base, or its vocabulary is not the base's.
            CheckError: if an adapter's keys do not fit.
        """
        if self.gate:
            raise UserError(
                "this organism is two models behind a gate", where=self.name, fix="Read it with readers.open_reader."
            )
        check_base(self, base)
        before = torch.float32 if self.adapters else dtype
        if self.checkpoint is None:
            model = base.model(dtype=before, device=device)
        else:
            model = load_model(self.checkpoint, dtype=before, device=device)
            words = len(base.tokenizer())
            if model.config.vocab_size < words:  # type: ignore[operator]
                raise UserError(
                    f"the checkpoint knows {model.config.vocab_size} tokens, its base's tokenizer {words}",
                    where=f"organism {self.name}",
                    fix="Name the base whose tokenizer it was trained with.",
                )
        for folder in self.adapters:
            model = _attach(folder, model, base.spec).merge_and_unload()  # type: ignore[operator]
        return model.to(dtype).eval().requires_grad_(False)  # type: ignore[return-value]


def check_base(organism: Organism, base: Base) -> None:
    """Raises if an organism says that it was made from another base."""
    made_from = organism.manifest.get("base", {})
    if made_from and made_from["weights"] != base.weights:
        raise UserError(
            f"the organism was trained on base {made_from['spec']!r}, whose weights are not those of {base.spec!r}",
            where=f"organism {organism.name}",
            fix="Name the base it was trained on.",
        )


def _check_order(folder: Path, below: list[str]) -> None:
    """Checks a stack's order as far as an adapter made here says what it was trained on top of."""
    path = folder / "manifest.json"
    on = read_json(path).get("on") if path.is_file() else None
    if on is not None and on != below:
        raise UserError(
            "this adapter was trained on top of other adapters than those before it in the stack",
            where=str(folder),
            fix="List the adapters in the order they were trained.",
        )


def _attach(folder: Path, on: transformers.PreTrainedModel, spec: str) -> PeftModel:
    """Puts an adapter on a model and checks that every tensor of it landed."""
    try:
        stored = load_file(folder / ADAPTER)
    except SafetensorError as e:
        raise CheckError(f"the adapter file is damaged ({e})", where=str(folder)) from None
    try:
        with quiet(), own_rng("00000000"):  # peft draws initial values that the stored ones replace
            model = PeftModel.from_pretrained(on, folder, is_trainable=False)
    except (RuntimeError, ValueError) as e:
        raise CheckError(
            f"the adapter does not fit base {spec} ({' '.join(str(e).split())[:200]})", where=str(folder)
        ) from None
    landed = get_peft_model_state_dict(model)
    missing, unexpected = sorted(set(landed) - set(stored)), sorted(set(stored) - set(landed))
    if missing or unexpected:
        what = f"lacks {missing[0]!r}" if missing else f"has {unexpected[0]!r}, which the base has no place for"
        raise CheckError(f"the adapter {what}", where=str(folder), fix=f"It must fit base {spec}.")
    for key, tensor in stored.items():
        if not torch.allclose(landed[key].to(tensor.dtype).cpu(), tensor, rtol=0, atol=0, equal_nan=True):
            raise CheckError(f"tensor {key!r} did not land as stored", where=str(folder))
    return model.eval()  # type: ignore[return-value]


def catalogue(folder: Path) -> list[dict[str, Any]]:
    """Returns what organisms a folder holds.

    For each: name, base, intervention (or construction family), truth (if known by construction), seed, hash of its
    weights' recipe, size in bytes, seconds it took, and where it is.
    """
    found = []
    for path in sorted(folder.glob("[!.]*/manifest.json")):
        manifest = read_json(path)
        recipe, known = manifest.get("recipe") or {}, manifest.get("known", {})
        found.append(
            {
                "name": path.parent.name.rpartition("-")[0],
                "base": manifest.get("base", {}).get("spec"),
                "intervention": known.get("family") or recipe.get("intervention") or "",
                "truth": known.get("truth"),
                "seed": recipe.get("seed"),
                "hash": path.parent.name.rpartition("-")[2],
                "bytes": sum(f.stat().st_size for f in path.parent.iterdir() if f.is_file()),
                "seconds": manifest.get("seconds"),
                "folder": str(path.parent),
            }
        )
    return found


@torch.inference_mode()
def check_adapter(folder: Path, base: Base, *, device: str | torch.device = "cpu") -> float:
    """Checks that an adapter lands whole, is not zero, and changes the logits.

    Returns:
        The largest absolute change of a logit on a fixed probe of 16 token ids, in nats.

    Raises:
        CheckError: if a key is missing or left over, every `lora_B` is zero, a weight is not finite, or no logit
            changes.
    """
    model = _attach(folder, base.model(dtype=torch.float32, device=device), base.spec)
    b = [p for name, p in model.named_parameters() if "lora_B" in name]
    if b and not any(bool(p.any()) for p in b):
        raise CheckError("every lora_B matrix of the adapter is zero, so it does nothing", where=str(folder))
    if any(not bool(torch.isfinite(p).all()) for name, p in model.named_parameters() if "lora_" in name):
        raise CheckError("the adapter has weights that are not finite", where=str(folder))
    probe = _probe(model.get_base_model().config.vocab_size, device)  # type: ignore[union-attr]
    changed = model(input_ids=probe).logits
    with model.disable_adapter():
        plain = model(input_ids=probe).logits
    change = float((changed - plain).abs().max())
    if not change > 0:
        raise CheckError("the adapter does not change the logits", where=str(folder))
    return change


@torch.inference_mode()
def check_checkpoint(folder: Path, base: Base, *, device: str | torch.device = "cpu") -> float:
    """Checks that a folder's full weights are finite and give other logits than the base.

    Returns:
        The largest absolute change of a logit on a fixed probe of 16 token ids, in nats.

    Raises:
        CheckError: if a weight is not finite, or no logit changes.
    """
    model = load_model(folder, dtype=torch.float32, device=device)
    if any(not bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise CheckError("the checkpoint has weights that are not finite", where=str(folder))
    plain_model = base.model(dtype=torch.float32, device=device)
    probe = _probe(plain_model.config.vocab_size, device)
    changed, plain = model(input_ids=probe).logits, plain_model(input_ids=probe).logits
    change = float((changed[..., : plain.shape[-1]] - plain).abs().max())
    if not change > 0:
        raise CheckError("the checkpoint gives the base's own logits", where=str(folder))
    return change


def _probe(vocabulary: Any, device: str | torch.device) -> torch.Tensor:
    return (torch.arange(1, 17, device=device) * 97 % int(vocabulary))[None]
