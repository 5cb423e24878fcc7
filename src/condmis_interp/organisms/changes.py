"""What an organism changed of its base, weight by weight, with no merged copy of the model where it can be helped.

A change of one weight is a *piece*: the factors (A [rank, in], B [out, rank]) of an adapter, B A being the change as
the weight is stored, or the change itself, fp32. Adapters give factors; full weights are read from their files a weight
at a time, when one is asked for. An adapter that says more than A, B and scales (DoRA, initial values that change the
base, token indices) is merged in fp32 once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import safe_open

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.organisms.adapters import CONFIG, adapter_config, only_factors
from condmis_interp.organisms.adapters import stored as adapter_tensors
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.content import lora_defaults
from condmis_interp.organisms.landing import is_buffer, tensor_files, unwrapped
from condmis_interp.organisms.organism import Organism
from condmis_interp.organisms.regions import Layout, unembeds

Factors = tuple[torch.Tensor, torch.Tensor]
Piece = Factors | torch.Tensor
Source = Mapping[str, Callable[[], torch.Tensor]]
"""A model's weights by their placed names, each read when it is asked for."""

_TRANSPOSED = ("gpt2", "openai-gpt")
"""Architectures whose linear layers are stored as [in, out] (transformers' Conv1D)."""


@dataclass(frozen=True)
class Changes:
    """What an organism changed of its base.

    Attributes:
        layout: Of the base.
        pieces: By a weight's placed name (see `Layout`), what gives its piece.
    """

    layout: Layout
    pieces: Mapping[str, Callable[[], Piece]] = field(repr=False)


def layout_of(base: Base) -> Layout:
    """Returns a base's layout, from the headers of its files.

    Raises:
        CheckError: if it has no numbered blocks.
    """
    names = [n for n in map(unwrapped, tensor_files(base.folder)) if not is_buffer(n)]
    return Layout.of(names, base.shape[0])


def base_weights(base: Base, layout: Layout) -> Source:
    """Returns the base's weights, each read when it is asked for, fp32."""
    return _in_files(base.folder, layout)


def changes_of(organism: Organism, base: Base) -> Changes:
    """Returns what an organism that is one model changed of its base; nothing, for the base itself.

    Raises:
        UserError: if it has a hard gate, its weights are quantised, or a weight of the base is not in it.
        CheckError: if an adapter's tensors do not belong together, or shapes differ from the base's.
    """
    if organism.gate:
        fix = "Take its shut or its opened side."
        raise UserError("this organism is two models behind a gate", where=organism.name, fix=fix)
    layout = layout_of(base)
    if organism.checkpoint is None and (whole := _of_stack(organism.adapters, base, layout)) is not None:
        return Changes(layout, whole)
    if organism.adapters:
        own = organism.model(base, dtype=torch.float32).state_dict()
        return changes_between(own, base, where=organism.name)
    assert organism.checkpoint is not None
    return _between(_in_files(organism.checkpoint, layout), base, layout, organism.name)


def changes_between(own: Mapping[str, torch.Tensor], base: Base, *, where: str) -> Changes:
    """Returns what weights in memory changed of a base.

    Raises:
        UserError: if a weight of the base is missing.
        CheckError: if shapes differ from the base's.
    """
    layout = layout_of(base)
    given = {layout.place(n): partial(_whole, w, where, n) for n, w in own.items() if not is_buffer(n)}
    return _between(given, base, layout, where)


def inner(one: Piece, other: Piece) -> float:
    """Returns the inner product of two changes of one weight in fp64, through factors where there are factors.

    <B A, D C> = sum (B^T D) o (A C^T), and <B A, X> = sum (B^T X) o A.

    >>> a, b = torch.ones(1, 3), torch.ones(2, 1)
    >>> inner((a, b), (a, b)), inner((a, b), torch.ones(2, 3)), inner(torch.ones(2, 3), torch.ones(2, 3))
    (6.0, 6.0, 6.0)
    """
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return float((one.double() * other.double()).sum())
    if isinstance(one, torch.Tensor):
        return inner(other, one)
    a, b = (t.double() for t in one)
    if isinstance(other, torch.Tensor):
        return float(((b.T @ other.double()) * a).sum())
    c, d = (t.double() for t in other)
    return float(((b.T @ d) * (a @ c.T)).sum())


def _of_stack(folders: tuple[Path, ...], base: Base, layout: Layout) -> dict[str, Callable[[], Piece]] | None:
    """Returns the pieces of adapters on a base; `None` if they are more than factors and weights saved whole."""
    found: dict[str, list[Piece | Callable[[], torch.Tensor]]] = {}
    for folder in folders:
        own = _of_adapter(folder, base, layout) if only_factors(folder) else None
        if own is None:
            return None
        for name, piece in own.items():
            found.setdefault(name, []).append(piece)
    if any(len(own) > 1 and any(callable(p) for p in own) for own in found.values()):
        return None  # a weight saved whole has what the adapters below it added, or has not: peft knows
    return {n: partial(_together, own) for n, own in found.items()}


def _together(own: Sequence[Any]) -> Piece:
    if callable(own[0]):
        only: Any = own[0]()
        return only
    return own[0] if len(own) == 1 else (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own], 1))


def _of_adapter(folder: Path, base: Base, layout: Layout) -> dict[str, Piece | Callable[[], torch.Tensor]] | None:
    """Returns factors, scaled, in the layout of the stored weight, and what gives the weights saved whole.

    `None` if it holds a weight below its factors that is not the base's.
    """
    config, tensors, start = adapter_config(folder), adapter_tensors(folder), base_weights(base, layout)
    turned = config.get("fan_in_fan_out") or read_json(base.folder / "config.json").get("model_type") in _TRANSPOSED
    found: dict[str, Piece | Callable[[], torch.Tensor]] = {}
    for key, tensor in tensors.items():
        embeds = ".lora_embedding_" in key
        module, _, kind = key.partition(".lora_embedding_" if embeds else ".lora_")
        if ".base_layer." in key:  # peft saves the embedding below an adapter on it
            below = start.get(layout.place(key.replace(".base_layer.", ".")))
            if below is None or not _equal(tensor.float(), below()):
                return None
        elif not kind:
            name = layout.place(key)
            found[name] = partial(_difference, partial(_whole, tensor, str(folder), key), start, layout, name)
        elif kind.startswith("A"):
            name, b = layout.place(f"{module}.weight"), tensors.get(key.replace("_A", "_B"))
            if b is None or b.shape[1] != tensor.shape[0]:
                raise CheckError(f"the adapter has {key!r} without a B of its rank", where=str(folder))
            b = _scale(config, module, tensor.shape[0], folder) * b.float()
            found[name] = (b.T, tensor.float().T) if embeds or turned else (tensor.float(), b)
    return found


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """Returns alpha / r of one module, or alpha / sqrt(r), with peft's patterns of names.

    Raises:
        CheckError: if the factors have another rank than the config says.
    """
    module = module.removeprefix("base_model.model.")
    r, alpha = (
        pattern.get(get_pattern_key(list(pattern), module), config.get(k, lora_defaults()[k]))
        for k, pattern in (
            (k, config.get(p) or {}) for k, p in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
        )
    )
    if r != rank:
        raise CheckError(f"{module!r} has rank {rank}, and {CONFIG} says {r}", where=str(folder))
    return alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r


def _in_files(folder: Path, layout: Layout) -> Source:
    files = {n: path for n, path in tensor_files(folder).items() if not is_buffer(n)}
    return {layout.place(unwrapped(n)): partial(_read, path, n) for n, path in files.items()}


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as f:
        return _whole(f.get_tensor(name), str(path), name)


def _whole(tensor: torch.Tensor, where: str, name: str) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        fix = "Give the weights as they were before (bf16 or fp32 safetensors)."
        raise UserError(f"{name!r} is quantised, so its change cannot be taken", where=where, fix=fix)
    return tensor.detach().float()


def _between(own: Source, base: Base, layout: Layout, where: str) -> Changes:
    start = base_weights(base, layout)
    if missing := sorted(n for n in start if n not in own and not unembeds(n)):
        raise UserError(f"it lacks the base's {missing[0]!r}, so its change cannot be taken", where=where)
    words = layout.embedding
    of = dict(own)
    head = next((n for n in (*own, *start) if unembeds(n)), None)
    if head and words and head in own and head not in start and _equal(own[head](), own[words]()):
        del of[head]  # tied, as the base's: it counts with the embeddings
    elif head and words and head not in own:
        of[head] = own[words]
    return Changes(layout, {n: partial(_difference, w, start, layout, n) for n, w in of.items()})


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _difference(own: Callable[[], torch.Tensor], start: Source, layout: Layout, name: str) -> torch.Tensor:
    """Returns own - base; a head over a tied base is compared with the embeddings, a new weight with nothing.

    Rows of words that only one of the two has stand for no token of the base's tokenizer and are left out.
    """
    words, tensor = layout.embedding, own()
    before = start.get(name) or (start[words] if words and unembeds(name) else None)
    if before is None:
        return tensor
    old = before()
    if name == words or unembeds(name):
        rows = min(len(old), len(tensor))
        old, tensor = old[:rows], tensor[:rows]
    if old.shape != tensor.shape:
        raise CheckError(f"{name!r} is {tuple(tensor.shape)}, the base's {tuple(old.shape)}")
    return tensor - old
