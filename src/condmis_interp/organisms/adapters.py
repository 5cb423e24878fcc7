"""Adapters: read, checked, attached and merged as peft's own forward has them, or refused in a sentence."""

import contextlib
import dataclasses
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, get_peft_model_state_dict
from peft.config import PromptLearningConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, file_digest, read_json, write_json
from condmis_interp.organisms.content import adapter_settings, is_off, lora_defaults
from condmis_interp.organisms.landing import Stored, check_full, headers, own_head, quiet, short, untie
from condmis_interp.organisms.rng import own_rng
from condmis_interp.progress import console

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\.")
_NAMED = re.compile(r"(\.lora_[AB])\.default(?=\.)|(\.lora_embedding_[AB])\.default$")
_FREE = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "lora_dropout", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
    *("auto_mapping", "peft_version", "init_lora_weights"),
}
"""Settings that a plain adapter may have any value of: A, B and one scale say it all."""
_BY_NAME = {"rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out"}
"""Settings that one matrix may have another value of than the next, or that say which way round it is kept."""
_FACTOR = re.compile(r"\.lora_(?:embedding_)?[AB](?=\.|$)")
_SAVED = re.compile(r"^(?!.*\.lora_).*\.(?:weight|bias)$")
_FRESH = (True, False, None, "gaussian")
"""Initial values that leave the base as it is; all others (PiSSA, OLoRA, LoftQ, ...) are peft's to repeat."""
_IN_A_BLOCK = re.compile(r"\.\d+\.")


def adapter_config(folder: Path) -> dict[str, Any]:
    """Returns an adapter's config, checked for what can be known without its base.

    Raises:
        UserError: if it is of a kind that is no change of a causal model's weights, or has a setting that the installed
            peft would pass over.
    """
    where, config = str(folder), read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") not in PEFT_TYPE_TO_CONFIG_MAPPING:
        kind = config.get("peft_type") if isinstance(config, dict) else None
        what = f"its adapter_config.json names the method {kind!r}, which peft {peft.__version__} does not know"
        raise UserError(what, where=where)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    known = {f.name for f in dataclasses.fields(kind)} | {"peft_version"}
    if newer := sorted(k for k, v in config.items() if k not in known and not is_off(v)):
        wrote = f" (it was written by peft {config['peft_version']})" if config.get("peft_version") else ""
        raise UserError(
            f"its setting {newer[0]!r} is not known to peft {peft.__version__}{wrote}, which would leave it out",
            where=where,
            fix="Install the peft that it was made with.",
        )
    if issubclass(kind, PromptLearningConfig):
        raise UserError(
            f"{config['peft_type']} puts vectors before the prompt: it is no change of weights, and cannot be read",
            where=where,
            fix="Give an adapter that changes weights (LoRA and its kin), or full weights.",
        )
    for key in ("alora_invocation_tokens", "layer_replication", "use_bdlora", "arrow_config"):
        if not is_off(config.get(key)):
            what = f"its setting {key!r} makes another model of the base than one with changed weights"
            raise UserError(what, where=where, fix="Merge it with the library it was made with, and give full weights.")
    if "niter" in str(config.get("init_lora_weights")):
        raise UserError(
            f"its initial values ({config['init_lora_weights']}) are drawn at random, and it was trained on the "
            "base less those: they cannot be drawn again",
            where=where,
            fix="Convert it to a plain LoRA with peft's save_pretrained(path_initial_model_for_weight_conversion=...).",
        )
    if config.get("task_type") not in (None, "", "CAUSAL_LM"):
        raise UserError(
            f"it is an adapter for the task {config['task_type']}, not for a language model that answers (CAUSAL_LM)",
            where=where,
        )
    return config


def adapter_content(folder: Path) -> str:
    """Content hash of everything that decides what an adapter does: tensors and settings."""
    return digest([file_digest(folder / ADAPTER), adapter_settings(adapter_config(folder))])


def is_plain(folder: Path) -> bool:
    """Returns whether an adapter is nothing but A, B and one scale on matrices inside the blocks."""
    config, defaults = read_json(folder / CONFIG), lora_defaults()
    return (
        config.get("peft_type", "LORA") == "LORA"
        and config.get("init_lora_weights") in _FRESH
        and all(k in _FREE or is_off(v) or v == defaults.get(k) for k, v in config.items())
        and all(_IN_A_BLOCK.search(k) for k in headers(folder / ADAPTER) if ".lora_" in k)
    )


def only_factors(folder: Path) -> bool:
    """Returns whether an adapter is A, B and scales (of any rank, on any matrices) and weights saved whole."""
    config, defaults = read_json(folder / CONFIG), lora_defaults()
    return (
        config.get("peft_type", "LORA") == "LORA"
        and config.get("init_lora_weights") in _FRESH
        and all(k in _FREE | _BY_NAME or is_off(v) or v == defaults.get(k) for k, v in config.items())
        and all(_FACTOR.search(k) or _SAVED.search(k) for k in headers(folder / ADAPTER))
    )


def scale_of(config: Mapping[str, Any]) -> float:
    """Returns a LoRA adapter's scale: alpha / r, or alpha / sqrt(r) if rank-stabilised (Kalajdzievski 2023)."""
    rank, alpha = (config.get(k, lora_defaults()[k]) for k in ("r", "lora_alpha"))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Returns an adapter's tensors under the names that peft saves today.

    Raises:
        UserError: if a tensor is empty.
        CheckError: if the file is damaged.
    """
    try:
        found = load_file(folder / ADAPTER)
    except (SafetensorError, OSError) as e:
        raise CheckError(f"the adapter file is damaged ({short(e)})", where=str(folder)) from None
    check_full({k: Stored(str(v.dtype), tuple(v.shape)) for k, v in found.items()}, str(folder))
    renamed = {_name(k): v for k, v in found.items()}
    return renamed if len(renamed) == len(found) else found


def _name(key: str) -> str:
    plain = _NAMED.sub(lambda m: m.group(1) or m.group(2), _WRAPPED.sub("", key))
    return plain if plain.startswith("base_model.") else _PREFIX + plain  # VeRA's and its kin's: base_model.vera_A


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """Returns what a plain adapter adds to each weight, by the weight's name, as [out, in] in fp32.

    Raises:
        CheckError: if a tensor has no partner, or another rank than the config says.
    """
    config, tensors = adapter_config(folder), stored(folder)
    scale, rank = scale_of(config), config.get("r", lora_defaults()["r"])
    found = {}
    for key, a in tensors.items():
        module, _, rest = key.removeprefix(_PREFIX).partition(".lora_A.")
        if not rest:
            if ".lora_B." not in key:
                raise CheckError(f"the adapter has {key!r}, which is neither A nor B", where=str(folder))
            continue
        b = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if b is None:
            raise CheckError(f"the adapter has {key!r} without its B", where=str(folder))
        if not a.shape[0] == b.shape[1] == rank:
            what = f"{key!r} has rank {a.shape[0]}, its B {b.shape[1]}, and adapter_config.json says {rank}"
            raise CheckError(what, where=str(folder))
        found[f"{module}.weight"] = (b.float() @ a.float()) * scale
    if len(found) * 2 != len(tensors):
        raise CheckError("the adapter has a B without its A", where=str(folder))
    return found


def attach(folder: Path, on: transformers.PreTrainedModel, spec: str) -> PeftModel:
    """Puts an adapter on a model and checks that every tensor of it landed.

    Raises:
        UserError: as `adapter_config` and `stored` do.
        CheckError: if it does not fit, or a tensor is missing, left over, or did not land as stored.
    """
    adapter_config(folder)
    tensors = stored(folder)
    try:
        with quiet(), own_rng("00000000"), _as_peft_saves(folder, tensors) as place:  # drawn, then replaced
            model = PeftModel.from_pretrained(on, place, is_trainable=False)
    except Exception as e:
        raise CheckError(f"the adapter does not fit base {spec} ({short(e)})", where=str(folder)) from None
    landed = get_peft_model_state_dict(model)
    missing, unexpected = sorted(set(landed) - set(tensors)), sorted(set(tensors) - set(landed))
    if missing or unexpected:
        what = f"lacks {missing[0]!r}" if missing else f"has {unexpected[0]!r}, which the base has no place for"
        raise CheckError(f"the adapter {what}", where=str(folder), fix=f"It must fit base {spec}.")
    for key, tensor in tensors.items():
        if not torch.allclose(landed[key].to(tensor.dtype).cpu(), tensor, rtol=0, atol=0, equal_nan=True):
            raise CheckError(f"tensor {key!r} did not land as stored", where=str(folder))
    return model.eval()  # type: ignore[return-value]  # eval() is typed as the bare Module


@contextlib.contextmanager
def _as_peft_saves(folder: Path, tensors: dict[str, torch.Tensor]) -> Iterator[Path]:
    """Gives a folder whose tensors have the names that peft looks for: the adapter's own, or a copy."""
    if tensors.keys() == headers(folder / ADAPTER).keys():
        yield folder
        return
    console.print(f"  {folder}: its tensors have other names than peft's; renamed", highlight=False, markup=False)
    with tempfile.TemporaryDirectory(prefix="condmis-adapter.") as copy:
        save_file({k: v.contiguous() for k, v in tensors.items()}, Path(copy) / ADAPTER, {"format": "pt"})
        write_json(Path(copy) / CONFIG, read_json(folder / CONFIG))
        yield Path(copy)


def merge(model: PeftModel, where: str) -> transformers.PreTrainedModel:
    """Returns the model with its adapter merged into the weights: what the adapter's own forward computes.

    A matrix that an adapter changes and that other modules share (an embedding tied to the head) is copied first:
    peft's forward changes one use of it, and merging would change all.

    Raises:
        CheckError: if the adapter cannot be merged.
    """
    shared = _untie_changed(model)
    try:
        with quiet():
            merged: Any = model.merge_and_unload()  # type: ignore[operator]  # transformers and peft type this as a Tensor or Module
    except Exception as e:
        fix = "Merge it with the library it was made with, and give full weights."
        raise CheckError(f"the adapter cannot be merged ({short(e)})", where=where, fix=fix) from None
    if shared or own_head(merged):
        untie(merged)
    return merged


def _untie_changed(model: PeftModel) -> bool:
    owners: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name)
    shared = [n for names in owners.values() if len(names) > 1 for n in names if ".base_layer." in n]
    for name in shared:
        module, _, attribute = name.rpartition(".")
        value = model.get_parameter(name).detach().clone()
        setattr(model.get_submodule(module), attribute, torch.nn.Parameter(value, requires_grad=False))
    return bool(shared)
