"""Organisms: a checkpoint with its recipe and manifest, and the checks that loading one is no silent no-op."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import digest, file_digest, read_json
from condmis_interp.organisms.adapters import ADAPTER, CONFIG, adapter_config, adapter_content, attach, is_plain, merge
from condmis_interp.organisms.bases import Base, weights_hash
from condmis_interp.organisms.checks import check_adapter as check_adapter
from condmis_interp.organisms.checks import check_checkpoint as check_checkpoint
from condmis_interp.organisms.checks import check_like
from condmis_interp.organisms.content import check_tokenizer, folder_settings
from condmis_interp.organisms.landing import check_model_folder, load_model, stored_tensors, taken_off, words_of
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.progress import console

_DECIDES = ("config", "tokenizer", "template")
"""Pieces of a base that decide what training on it gives."""
_PACKAGES = ("condmis-interp", "torch", "transformers", "peft", "trl", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide numbers.

    Example:
        >>> sorted(versions())
        ['condmis-interp', 'numpy', 'peft', 'python', 'safetensors', 'torch', 'transformers', 'trl']
    """
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES}


@dataclass(frozen=True)
class Gate:
    """A hard gate: which organism answers.

    Attributes:
        words: Text that opens it wherever it is in a prompt.
        opened: Who answers then.
        shut: Who answers otherwise.

    Example:
        >>> u, c = (Organism(n, (), None, weights=n, recipe=None, manifest={}) for n in "uc")
        >>> Gate("form = 1", opened=u, shut=c).opened.name
        'u'
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
        weights: Content hash of all that decides what is read from it: tensors and the settings beside them, of the
            adapters, of the full weights, or of the base. Readings are keyed by it.
        recipe: How it was made, if it was made here from a recipe.
        manifest: The whole manifest.
        gate: For an organism that is two models behind a gate; it has no weights of its own then.
        tensors: Content hash of the tensors alone.

    Example:
        >>> Organism("u", adapters=(), checkpoint=None, weights="hash", recipe=None, manifest={}).folder
    """

    name: str
    adapters: tuple[Path, ...]
    checkpoint: Path | None
    weights: str
    recipe: Recipe | None
    manifest: dict[str, Any]
    gate: Gate | None = None
    tensors: str = ""

    @property
    def origin(self) -> str:
        """What things made from this organism are filed under.

        The tensors alone where its manifest says how it was made, which fixes the rest (and finds what was made
        before settings were hashed); everything for what others made.
        """
        made_here = self.folder is None or self.manifest.get("recipe") or self.manifest.get("known")
        return self.tensors if made_here and self.tensors else self.weights

    @property
    def folder(self) -> Path | None:
        """Where it is; `None` for a base as it is."""
        return self.adapters[-1] if self.adapters else self.checkpoint

    @property
    def truth(self) -> str | None:
        """The known answer, for organisms that have one by construction."""
        return self.manifest.get("known", {}).get("truth")

    @classmethod
    @checked
    def open(cls, folder: str | Path, *, name: str) -> "Organism":
        """Opens an organism that was made here.

        Raises:
            UserError: if the folder has no manifest.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        recipe = Recipe.model_validate(manifest["recipe"]) if manifest.get("recipe") else None
        if (folder / ADAPTER).is_file():
            _check_made(folder, recipe, manifest)
            tensors = file_digest(folder / ADAPTER)
            return cls(name, (folder,), None, adapter_content(folder), recipe, manifest, tensors=tensors)
        tensors = weights_hash(folder)
        return cls(name, (), folder, digest([tensors, folder_settings(folder)]), recipe, manifest, tensors=tensors)

    @classmethod
    def of_base(cls, base: Base, *, name: str) -> "Organism":
        """Returns the base itself as an organism."""
        return cls(name, (), None, base.content, None, {"base": base.record()}, tensors=base.weights)

    @classmethod
    def gated(cls, gate: Gate, *, name: str, manifest: dict[str, Any]) -> "Organism":
        """Returns two organisms behind a gate as one."""
        weights, tensors = (
            digest([gate.words, *of])
            for of in zip(*((o.weights, o.tensors) for o in (gate.opened, gate.shut)), strict=True)
        )
        return cls(name, (), None, weights, None, manifest, gate, tensors)

    @classmethod
    @checked
    def of_adapters(cls, *folders: str | Path, name: str) -> "Organism":
        """Opens somebody else's PEFT adapter folder, or a stack of them in the order they are merged.

        Raises:
            UserError: if a folder has no adapter_config.json, its weights are not safetensors, or the stack holds an
                adapter twice.
        """
        return cls._of_adapters(tuple(Path(f) for f in folders), name)

    @classmethod
    def _of_adapters(cls, folders: tuple[Path, ...], name: str) -> "Organism":
        for folder in folders:
            if not (folder / CONFIG).is_file():
                inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
                raise UserError(
                    "this is no adapter folder: it has no adapter_config.json",
                    where=str(folder),
                    fix=f"Name one of those inside: {', '.join(inside[:8])}." if inside else None,
                )
            if not (folder / ADAPTER).is_file():
                pickles = sorted(p.name for p in folder.glob("*.bin"))
                what = f"the adapter's weights are a pickle ({pickles[0]})" if pickles else "the adapter has no weights"
                raise UserError(what, where=str(folder), fix="Give a folder with adapter_model.safetensors.")
        if len(folders) == 1 and (folders[0] / "manifest.json").is_file():
            return cls.open(folders[0], name=name)
        hashes, contents = [file_digest(f / ADAPTER) for f in folders], [adapter_content(f) for f in folders]
        if len(set(hashes)) < len(hashes):
            raise UserError("the stack holds the same adapter twice", where=", ".join(map(str, folders)))
        for i, folder in enumerate(folders):
            _check_order(folder, hashes[:i], contents[:i])
        weights, tensors = (h[0] if len(h) == 1 else digest(h) for h in (contents, hashes))
        return cls(name, folders, None, weights, None, {"adapters": [str(f) for f in folders]}, tensors=tensors)

    @classmethod
    @checked
    def of_checkpoint(cls, folder: str | Path, *, name: str) -> "Organism":
        """Opens a folder with full weights.

        Raises:
            UserError: if it has no config.json, or its weights are not safetensors.
        """
        folder = Path(folder)
        check_model_folder(folder)
        if (folder / "manifest.json").is_file() and "recipe" in _manifest(folder):
            return cls.open(folder, name=name)
        tensors, about = weights_hash(folder), {"checkpoint": str(folder)}
        if off := taken_off(stored_tensors(folder)):
            about["taken_off_names"] = off
        return cls(name, (), folder, digest([tensors, folder_settings(folder)]), None, about, tensors=tensors)

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
            if words_of(model) < words:
                raise UserError(
                    f"the checkpoint knows {words_of(model)} tokens, its base's tokenizer {words}",
                    where=f"organism {self.name}",
                    fix="Name the base whose tokenizer it was trained with.",
                )
        for folder in self.adapters:
            model = merge(attach(folder, model, base.spec), str(folder))
        return model.to(dtype).eval().requires_grad_(False)  # type: ignore[return-value]  # eval() is typed as the bare Module


def check_base(organism: Organism, base: Base) -> None:
    """Raises if an organism was made from another base, or for another tokenizer or template than the base's.

    Raises:
        UserError: saying which of the base's pieces is not what the organism was made with.
    """
    where = f"organism {organism.name}"
    made_from = organism.manifest.get("base") or {}
    if made_from and made_from["weights"] != base.weights:
        raise UserError(
            f"the organism was trained on base {made_from['spec']!r}, whose weights are not those of {base.spec!r}",
            where=where,
            fix="Name the base it was trained on.",
        )
    recorded = made_from.get("settings") or {}
    changed = [k for k in _DECIDES if recorded and recorded.get(k) != base.settings.get(k)]
    if changed:
        raise UserError(
            f"the {changed[0]} of base {base.spec!r} is not what it was when this organism was made from it",
            where=where,
            fix=f"Put it back, or delete {organism.folder} so that it is made anew.",
        )
    for folder in organism.adapters:
        check_tokenizer(folder, base.folder, where=str(folder))
        _say_base(folder, organism, base)
    if organism.checkpoint:
        check_like(organism.checkpoint, base)


def _say_base(folder: Path, organism: Organism, base: Base) -> None:
    """Compares the base that an adapter names with the study's, as far as names and files allow.

    Raises:
        UserError: if the named folder is here and holds other weights.
    """
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named or organism.manifest.get("base") or Path(named) == base.folder:
        return
    place = Path(named).expanduser()
    if place.is_dir() and list(place.glob("*.safetensors")):
        if weights_hash(place) != base.weights:
            raise UserError(
                f"the adapter was trained on {named!r}, whose weights are not those of {base.spec!r}",
                where=str(folder),
                fix="Name the base it was trained on.",
            )
        return
    ours = {str(base.source.get(k, "")).casefold() for k in ("name", "model", "path")} | {base.spec.casefold()}
    if named.casefold() not in ours and organism.manifest.get("names_base") != named:
        organism.manifest["names_base"] = named
        note = f"  {folder.name}: names {named} as its base, the study {base.spec}; nothing here says that they are one"
        console.print(note, highlight=False, markup=False)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict):
        raise UserError("a manifest must be a JSON object", where=str(folder / "manifest.json"))
    return manifest


def _check_made(folder: Path, recipe: Recipe | None, manifest: dict[str, Any]) -> None:
    """Checks that an adapter made here still has the settings it was made with."""
    config = adapter_config(folder)
    found = (config.get("r"), config.get("lora_alpha"))
    if recipe and recipe.lora:
        wanted = (recipe.lora.rank, recipe.lora.alpha)
    elif "known" in manifest:
        wanted = (config.get("r"), config.get("r"))  # constructions have their scale in B
    else:
        return
    if found != wanted or not is_plain(folder):
        raise UserError(
            f"its adapter_config.json (rank {found[0]}, alpha {found[1]}) is not the one it was made with",
            where=str(folder),
            fix="Put that file back, or delete the folder so that the organism is made anew.",
        )


def _check_order(folder: Path, *below: list[str]) -> None:
    """Checks a stack's order as far as an adapter made here says what it was trained on top of."""
    path = folder / "manifest.json"
    on = _manifest(folder).get("on") if path.is_file() else None
    if on is not None and on not in below:
        raise UserError(
            "this adapter was trained on top of other adapters than those before it in the stack",
            where=str(folder),
            fix="List the adapters in the order they were trained.",
        )


def catalogue(folder: Path) -> list[dict[str, Any]]:
    """Returns what organisms a folder holds.

    For each: name, base, intervention (or construction family), truth (if known by construction), seed, hash of its
    weights' recipe, size in bytes, seconds it took, and where it is.

    Example:
        >>> catalogue(Path("no organisms here"))
        []
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
