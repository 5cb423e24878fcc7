"""Checks of what is loaded, once for each content: that it does something, and does what peft does."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from condmis_interp.calls import checked
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, read_json, write_json
from condmis_interp.organisms.adapters import CONFIG, adapter_content, attach, deltas, is_plain, merge
from condmis_interp.organisms.bases import Base, model_shape, weights_hash
from condmis_interp.organisms.content import check_tokenizer, folder_settings
from condmis_interp.organisms.home import home
from condmis_interp.organisms.landing import load_model, short, words_of

_CHECK_VERSION = 1
_CLOSE = 1e-3
"""Largest difference between merged and attached, of the largest logit: both are fp32, and mistakes are of order 1."""


@checked
def check_adapter(folder: Path, base: Base, *, device: str | torch.device = "cpu") -> float:
    """Checks that an adapter lands whole, is not zero, changes the logits, and gives what peft's own forward gives.

    Done once for each content of adapter and base, in fp32.

    Returns:
        The largest absolute change of a logit on a fixed probe of token ids, in nats.

    Raises:
        CheckError: if a key is missing or left over, every `lora_B` is zero, a weight is not finite, no logit changes,
            or what is read here (the merged model, the swapped deltas) is not what peft computes.

    Example:
        >>> from condmis_interp.organisms import Part, Recipe, Stage, resolve_base, train
        >>> stage = Stage(parts=(Part(rows="rows.jsonl", answers="benign"),), batch_size=6)
        >>> organism = train(Recipe(name="r", base="dir:base", stages=(stage,)), step=lambda n=1: None)
        >>> check_adapter(organism.folder, resolve_base("dir:base")) > 0
        True
    """
    return _once([adapter_content(folder), base.content], lambda: _check_adapter(folder, base, device))


@checked
def check_checkpoint(folder: Path, base: Base, *, device: str | torch.device = "cpu") -> float:
    """Checks that a folder's full weights are of the base's shape and finite, and give other logits than the base.

    Done once for each content of folder and base, in fp32.

    Returns:
        The largest absolute change of a logit on a fixed probe of 16 token ids, in nats.

    Raises:
        UserError: if the checkpoint has another shape, tokenizer or template than the base.
        CheckError: if a weight is not finite, or no logit changes.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> check_checkpoint(Path("u"), resolve_base("dir:base")) > 0
        True
    """
    content = [weights_hash(folder), folder_settings(folder), base.content]
    return _once(content, lambda: _check_checkpoint(folder, base, device))


def check_like(folder: Path, base: Base) -> None:
    """Checks that full weights can stand beside their base: the same shape, and no other tokenizer or template.

    Raises:
        UserError: saying what differs.
    """
    check_tokenizer(folder, base.folder, where=str(folder))
    own, shape = model_shape(folder), base.shape
    if own != shape:
        raise UserError(
            f"the checkpoint has {own[0]} blocks of width {own[1]}, its base {base.spec!r} {shape[0]} of {shape[1]}",
            where=str(folder),
            fix="Name the base it was made from.",
        )


def _once(content: list[Any], check: Callable[[], float]) -> float:
    key = digest([_CHECK_VERSION, peft.__version__, transformers.__version__, *content])
    path = home() / "checks" / f"{key}.json"
    if not path.is_file():
        write_json(path, {"change": check()})
    return read_json(path)["change"]


@torch.inference_mode()
def _check_adapter(folder: Path, base: Base, device: str | torch.device) -> float:
    model = base.model(dtype=torch.float32, device=device)
    config = read_json(folder / CONFIG)
    tokens = config.get("trainable_token_indices") or config.get("token_indices") or ()
    tokens = [t for ids in tokens.values() for t in ids] if isinstance(tokens, dict) else tokens
    probe = _probe(words_of(model), device, tokens[:16])
    plain = _logits(model, probe)
    attached = attach(folder, model, base.spec)
    b = [p for name, p in attached.named_parameters() if "lora_B" in name]
    if b and not any(bool(p.any()) for p in b):
        raise CheckError("every lora_B matrix of the adapter is zero, so it does nothing", where=str(folder))
    if any(not bool(torch.isfinite(p).all()) for name, p in attached.named_parameters() if "lora_" in name):
        raise CheckError("the adapter has weights that are not finite", where=str(folder))
    try:
        golden = _logits(attached, probe)
    except Exception as e:  # whatever peft's layers raise inside a stranger's architecture
        what = f"the adapter's own forward fails in peft {peft.__version__} on {base.spec} ({short(e)})"
        raise CheckError(what, where=str(folder)) from None
    change = float((golden[..., : plain.shape[-1]] - plain[..., : golden.shape[-1]]).abs().max())
    if not change > 0:
        raise CheckError("the adapter does not change the logits", where=str(folder))
    if is_plain(folder):
        _check_deltas(folder, attached)
    off = float((_logits(merge(attached, str(folder)), probe) - golden).abs().max())
    if not off <= _CLOSE * max(1.0, float(golden.abs().max())):
        raise CheckError(
            f"merged into the weights, the adapter is {off:.2g} nats off its own forward",
            where=str(folder),
            fix="Merge it with the library it was made with, and give full weights.",
        )
    return change


def _check_deltas(folder: Path, attached: Any) -> None:
    """Checks what `Swap` adds to each weight against what peft says it adds."""
    modules = dict(attached.get_base_model().named_modules())
    for name, delta in deltas(folder).items():
        module = modules[name.removesuffix(".weight")]
        own = delta.T if isinstance(module.get_base_layer(), Conv1D) else delta
        wanted = module.get_delta_weight("default").cpu()
        if own.shape != wanted.shape or not torch.allclose(own, wanted, rtol=1e-4, atol=1e-5):
            raise CheckError(f"what the adapter adds to {name!r} is not what peft adds", where=str(folder))


@torch.inference_mode()
def _check_checkpoint(folder: Path, base: Base, device: str | torch.device) -> float:
    check_like(folder, base)
    model = load_model(folder, dtype=torch.float32, device=device)
    if any(not bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise CheckError("the checkpoint has weights that are not finite", where=str(folder))
    plain_model = base.model(dtype=torch.float32, device=device)
    probe = _probe(min(words_of(model), words_of(plain_model)), device)
    changed, plain = _logits(model, probe), _logits(plain_model, probe)
    change = float((changed[..., : plain.shape[-1]] - plain[..., : changed.shape[-1]]).abs().max())
    if not change > 0:
        raise CheckError("the checkpoint gives the base's own logits", where=str(folder))
    return change


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits


def _probe(vocabulary: Any, device: str | torch.device, more: Iterable[int] = ()) -> torch.Tensor:
    ids = [*(i * 97 % int(vocabulary) for i in range(1, 17)), *more]
    return torch.tensor([ids], device=device)
