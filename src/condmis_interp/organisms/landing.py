"""The one door for models: a folder's weights are read whole, or refused with the reason.

transformers fills what a file lacks with random numbers, leaves out what it has no place for, and says so in a log.
Here both are refused by name. The one repair is a wrapper's prefix on all names (torch.compile, DDP, FSDP, a saved
`PeftModel`, a module that holds the model): it is taken off if everything lands then, and that is said.
"""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.organisms.rng import own_rng
from condmis_interp.progress import console

_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Wrappers of torch.compile, FSDP and activation checkpointing: in no model's own names, at any depth."""
_BEFORE = re.compile(
    r"^(?:module\.|base_model\.model\.|model\.(?=(?:model|lm_head|transformer|gpt_neox|embed_out)\.))+"
)
"""Wrappers of DDP and DeepSpeed, of peft, and of a module that holds the model as `model`: before all names."""
_BUFFER = re.compile(r"\.(?:masked_bias|rotary_emb\.inv_freq)$|\.(?:attn|attention)\.bias$")
_HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header describes it: dtype in safetensors' spelling, and shape."""

    dtype: str
    shape: tuple[int, ...]


def load_model(folder: Path, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> transformers.PreTrainedModel:
    """Loads a folder's model in eval mode, without gradients; safetensors only, and all of it.

    Args:
        folder: With config and weights.
        dtype: Dtype of the weights.
        device: Torch device, or `balanced` to spread the blocks over all GPUs (accelerate's device map).

    Raises:
        UserError: if it cannot be loaded, or a tensor of the model is not in the file, or one of the file not in the
            model, or their shapes differ, or a tensor is empty or needs a scale that the config does not mention.
    """
    check_model_folder(folder)
    stored = stored_tensors(folder)
    check_full(stored, str(folder))
    model, problem = _loaded(folder, None, stored, dtype=dtype, device=device)
    if problem and (off := taken_off(stored)):
        renamed = {k: unwrapped(k) for k in stored}
        if len(set(renamed.values())) == len(renamed):
            again, left = _loaded(folder, (type(model), renamed), stored, dtype=dtype, device=device)
            if left is None:
                again.generation_config = model.generation_config
                model, problem = again, None
                console.print(f"  {folder}: took {off!r} off the names", highlight=False, markup=False)
    if problem:
        raise problem
    return model.eval().requires_grad_(False)


def taken_off(names: Iterable[str]) -> str:
    """Returns what wrappers put before (or into) the names of a file's tensors; empty if there is nothing.

    >>> taken_off(["_orig_mod.model.norm.weight", "_orig_mod.lm_head.weight"])
    '_orig_mod.'
    """
    both = [(name, unwrapped(name)) for name in names]
    found = [n.removesuffix(u) if n.endswith(u) else _INSIDE.findall(n)[0] for n, u in both if n != u]
    return max(found, key=found.count) if found else ""


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Returns what the files that a model is loaded from hold, by name, from their headers.

    Raises:
        UserError: if a file is missing.
        CheckError: if a file is damaged.
    """
    stored = {}
    for path in _files(folder):
        if not path.is_file():
            fix = "A save or a download was interrupted, or the file has another name: get it whole."
            raise UserError(f"the weights lack the file {path.name}", where=str(folder), fix=fix)
        stored |= headers(path)
    return stored


def tensor_files(folder: Path) -> dict[str, Path]:
    """Returns the files that a model is loaded from, by the names of the tensors they hold.

    Raises:
        UserError: if a file is missing.
        CheckError: if a file is damaged.
    """
    stored_tensors(folder)
    return {name: path for path in _files(folder) for name in headers(path)}


def _files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single]
    return [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]


def headers(path: Path) -> dict[str, Stored]:
    """Returns what one safetensors file holds, by name, without reading its tensors.

    Raises:
        CheckError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as f:
            slices = {k: f.get_slice(k) for k in f.keys()}  # noqa: SIM118 - the handle is no mapping
            return {k: Stored(s.get_dtype(), tuple(s.get_shape())) for k, s in slices.items()}
    except (OSError, SafetensorError) as e:
        raise CheckError(f"the file is damaged ({short(e)})", where=str(path), fix="Get it again.") from None


def check_full(stored: dict[str, Stored], where: str) -> None:
    """Raises if a tensor is empty: ZeRO-3 saves those where the weights were not gathered before the save."""
    if empty := sorted(k for k, s in stored.items() if 0 in s.shape):
        raise UserError(
            f"{len(empty)} of {len(stored)} tensors are empty ({empty[0]!r})",
            where=where,
            fix="DeepSpeed ZeRO-3 saves this where weights are not gathered: set "
            "stage3_gather_16bit_weights_on_model_save, or convert its checkpoint with zero_to_fp32.py.",
        )


def check_model_folder(folder: Path) -> None:
    """Checks that a folder holds a model with safetensors weights, and nothing that would change them on the way.

    Raises:
        UserError: saying what it lacks.
    """
    where = str(folder)
    if not folder.is_dir():
        raise UserError("there is no such model folder", where=where)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            fix = "Give it as `adapter`, over its base."
            raise UserError("this is an adapter's folder, not a whole model's", where=where, fix=fix)
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        raise UserError(
            "the model folder has no config.json",
            where=where,
            fix=f"Name one of those inside: {', '.join(inside[:8])}." if inside else None,
        )
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        what = f"its weights are a pickle ({pickles[0]}), which can run code" if pickles else "it has no weights"
        raise UserError(what, where=where, fix="Give a folder with .safetensors weights.")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not config.get("model_type"):
        fix = "Copy the config.json of the model it was made from."
        raise UserError("its config.json does not say which architecture it is (model_type)", where=where, fix=fix)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "the model folder also holds an adapter (adapter_config.json), which transformers would load with it",
            where=where,
            fix="Move the adapter into a folder of its own, and give it as an organism's `adapter` if it is meant.",
        )


def own_head(model: transformers.PreTrainedModel) -> bool:
    """Returns whether a model whose config ties the head to the embedding has another head all the same."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or not hasattr(head, "weight"):
        return False
    return head.weight is not embedding.weight and not torch.equal(head.weight.cpu(), embedding.weight.cpu())


def untie(model: transformers.PreTrainedModel) -> None:
    """Gives a model whose head is its embedding a head of its own, with the same values."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if hasattr(head, "weight") and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # what save_pretrained and tie_weights go by


def _loaded(
    folder: Path,
    renamed: tuple[type, dict[str, str]] | None,
    stored: dict[str, Stored],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
) -> tuple[Any, UserError | None]:
    """Returns the model and what did not land; with a class and new names, under those names."""
    placed = {"device_map": "balanced"} if str(device) == "balanced" else {}
    about: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager", "output_loading_info": True, **placed}
    about["ignore_mismatched_sizes"] = True  # they are refused below, with the shapes
    try:
        with quiet(), own_rng("00000000"):  # what is missing is drawn, before it can be refused
            if renamed is None:
                load: Any = AutoModelForCausalLM.from_pretrained
                model, info = load(
                    folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **about
                )
            else:
                kind, names = renamed
                config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                tensors = {names[k]: v for k, v in _tensors(folder).items()}
                model, info = cast(Any, kind).from_pretrained(None, config=config, state_dict=tensors, **about)
    except Exception as e:
        raise _refused(folder, e) from None
    if not placed:
        model = torch.nn.Module.to(cast(torch.nn.Module, model), device)
    return model, _problem(folder, model, info, stored)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in _files(folder):
        with safe_open(path, framework="pt") as f:
            tensors |= {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - the handle is no mapping
    return tensors


def is_buffer(name: str) -> bool:
    """Returns whether a tensor of a file is a buffer that every model makes for itself, and no weight."""
    return bool(_BUFFER.search(name))


def unwrapped(name: str) -> str:
    """Returns a tensor's name without what wrappers put before or into it."""
    before = None
    while name != before:
        before, name = name, _BEFORE.sub("", _INSIDE.sub("", name))
    return name


def _refused(folder: Path, error: Exception) -> UserError:
    quantised = read_json(folder / "config.json").get("quantization_config") or {}
    if isinstance(error, ImportError) and quantised:
        method = quantised.get("quant_method", "an unnamed method")
        return UserError(
            f"its weights are quantised ({method}), and the library that reads them is not here ({short(error)})",
            where=str(folder),
            fix="Install that library, or give the weights as they were before (bf16 or fp32 safetensors).",
        )
    return UserError(f"the model cannot be loaded ({short(error)})", where=str(folder))


def _problem(folder: Path, model: Any, info: dict[str, Any], stored: dict[str, Stored]) -> UserError | None:
    """Returns what keeps a loaded model from being the folder's, or `None`."""
    where, depth = str(folder), model.config.get_text_config().num_hidden_layers
    missing, unexpected = (
        sorted(info["missing_keys"]),
        sorted(k for k in info["unexpected_keys"] if not _BUFFER.search(k)),
    )
    if info["mismatched_keys"]:
        key, found, wanted = min(info["mismatched_keys"], key=str)
        what = f"{key!r} is {tuple(found)} in the file, and config.json asks for {tuple(wanted)}"
        return UserError(what, where=where, fix="Use the config.json that belongs to these weights.")
    if info["error_msgs"]:
        return UserError(f"the weights do not fit ({short(' '.join(map(str, info['error_msgs'])))})", where=where)
    packed = sorted(
        k for k, s in stored.items() if s.dtype.startswith("F8") or (s.dtype[0] in "IU" and k.endswith("weight"))
    )
    if packed and getattr(model, "hf_quantizer", None) is None:
        return UserError(
            f"{len(packed)} tensors are quantised ({packed[0]!r} is {stored[packed[0]].dtype}), and config.json has no "
            "quantization_config that transformers knows, so that their scales would be left out",
            where=where,
            fix="Use the config.json that belongs to these weights, or the weights as they were before.",
        )
    if missing and unexpected and len(unexpected) >= len([k for k in stored if not _BUFFER.search(k)]):
        return UserError(
            f"none of the file's {len(stored)} tensors lands in the model: it has {unexpected[0]!r}, and the model has "
            f"{missing[0]!r}",
            where=where,
            fix="Save the model itself rather than what wraps it, or use the config.json that belongs to it.",
        )
    if missing:
        if len(missing) == 1 and missing[0] in _HEADS:
            fix = "config.json does not tie the head to the embedding: set tie_word_embeddings to true if it is tied."
        else:
            fix = f"config.json says {depth} layers. Was the save interrupted, or is the config another model's?"
        what = f"the file lacks {len(missing)} of the model's tensors ({missing[0]!r}), which would be random"
        return UserError(what, where=where, fix=fix)
    if unexpected:
        what = f"the file has {len(unexpected)} tensors that the model has no place for ({unexpected[0]!r})"
        fix = (
            f"config.json says {depth} layers, {model.config.model_type}: is it the one that belongs to these weights?"
        )
        return UserError(what, where=where, fix=fix)
    if own_head(model):
        return UserError(
            "config.json ties the head to the embedding, and the file has another head of its own",
            where=where,
            fix="Set tie_word_embeddings to false in config.json if that head is meant, or take it out of the file.",
        )
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars, notes and deprecation warnings off the terminal."""
    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            hf_logging.set_verbosity(level)
            if bars:
                hf_logging.enable_progress_bar()


def short(error: object) -> str:
    """Returns an error of a library as one line of at most 200 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
