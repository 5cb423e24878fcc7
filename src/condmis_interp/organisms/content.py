"""What a reading is keyed by: everything in a folder that decides a result, and nothing that does not.

Tensors are hashed as bytes. Settings beside them (config, generation config, tokenizer, chat template, an adapter's
config) are normalised first: where a folder lay, which version wrote it, and a switch that is off change no result, so
they change no key. A checkpoint's or an adapter's own tokenizer is compared with the base's: every organism of a study
is asked in the base's tokens.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import AutoTokenizer

from condmis_interp.errors import UserError
from condmis_interp.files import digest, file_digest, read_json
from condmis_interp.organisms.landing import short

_ABOUT = {"_name_or_path", "_from_model_config", "architectures", "torch_dtype", "dtype", "use_cache", "auto_map"}
"""Of a model's config: names and habits; the dtype is the study's, the class follows from model_type."""
_ADAPTER_ABOUT = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type", "lora_dropout"}
_TOKENIZER_ABOUT = {"name_or_path", "tokenizer_file", "processor_class", "is_local", "local_files_only", "backend"}
_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_TURNS = (
    [{"role": "user", "content": "a?"}],
    [{"role": "system", "content": "b."}, {"role": "user", "content": "a?"}],
    [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "c."}, {"role": "user", "content": "d?"}],
    [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "c."}],
)


def folder_settings(folder: Path) -> dict[str, str]:
    """Returns a model folder's settings, hashed piece by piece: config, generation, tokenizer, template.

    A piece that the folder does not have is left out.
    """
    pieces: dict[str, Any] = {
        "config": _without(_mapping(folder / "config.json"), _ABOUT),
        "generation": _without(_mapping(folder / "generation_config.json"), _ABOUT),
        "tokenizer": _tokenizer_pieces(folder),
        "template": _template(folder),
    }
    return {name: digest(piece) for name, piece in pieces.items() if piece}


def weights_hash(folder: Path) -> str:
    """Returns the content hash of a folder's safetensors files, in the order of their names."""
    return digest([[p.name, file_digest(p)] for p in sorted(folder.glob("*.safetensors"))])


def adapter_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of an adapter's config decides its result; defaults and switches that are off are left out.

    >>> adapter_settings({"r": 2, "peft_type": "LORA", "base_model_name_or_path": "here", "use_rslora": False})
    {'lora_alpha': 8, 'peft_type': 'LORA', 'r': 2}
    """
    kept = {k: v for k, v in _without(config, _ADAPTER_ABOUT).items() if not is_off(v)}
    if config.get("peft_type") == "LORA":
        kept = {k: v for k, v in kept.items() if v != lora_defaults().get(k)}
        kept |= {"peft_type": "LORA"} | {k: config.get(k, lora_defaults()[k]) for k in ("r", "lora_alpha")}
    sets = {k: sorted(v) for k, v in kept.items() if isinstance(v, list) and all(isinstance(i, str) for i in v)}
    return dict(sorted((kept | sets).items()))


def is_off(value: Any) -> bool:
    """Returns whether a value is how a switch of a config says that it is off (0 is a number, and no switch)."""
    return value is None or value is False or value in ("", "none") or value in ([], {})


@lru_cache(maxsize=1)
def lora_defaults() -> dict[str, Any]:
    """Returns the settings of a LoRA adapter that says nothing, by the peft that is installed."""
    return json.loads(json.dumps(LoraConfig().to_dict(), default=str))


def open_tokenizer(folder: Path) -> Any:
    """Loads a folder's tokenizer.

    Raises:
        UserError: if there is none, or it cannot be loaded.
    """
    if not has_tokenizer(folder):
        raise UserError(
            "the model folder has no tokenizer",
            where=str(folder),
            fix="Copy tokenizer.json and tokenizer_config.json (and chat_template.jinja) from the model's release.",
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:
        raise UserError(f"the tokenizer cannot be loaded ({short(e)})", where=str(folder)) from None


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", *_TOKENIZER_FILES))


def check_tokenizer(folder: Path, base: Path, *, where: str) -> None:
    """Checks that a folder's own tokenizer and template, where it has them, say the same as the base's.

    The same means: the same ids for the base's whole vocabulary (tokens that a fine-tune added on top are never
    asked), and the same text for the same turns. How the files spell it does not matter.

    Raises:
        UserError: with the first difference.
    """
    if not has_tokenizer(folder) or not has_tokenizer(base) or folder.resolve() == base.resolve():
        return
    pieces = [{k: v for k, v in folder_settings(f).items() if k in ("tokenizer", "template")} for f in (folder, base)]
    if pieces[0] == pieces[1]:
        return
    if difference := _difference(folder, digest(pieces[0]), base, digest(pieces[1])):
        raise UserError(
            difference,
            where=where,
            fix="Every organism of a study is asked in the base's tokens, and this one was trained with its own: name "
            "a base folder with the tokenizer and template it was trained with, or, if it was trained with the base's, "
            "take its tokenizer files out of its folder.",
        )


@lru_cache(maxsize=256)
def _difference(folder: Path, _: str, base: Path, __: str) -> str | None:
    own, asked = open_tokenizer(folder), open_tokenizer(base)
    ids, wanted = own.get_vocab(), asked.get_vocab()
    if moved := sorted(k for k, i in wanted.items() if ids.get(k) != i):
        token = moved[0]
        return (
            f"its tokenizer is not its base's: {len(moved)} tokens have other ids ({token!r} is {ids.get(token)}, in "
            f"the base {wanted[token]})"
        )
    sample = "The 2 cats' naïve plan:\n\n  x = 1  # ok\t…\n"
    if own.encode(sample, add_special_tokens=False) != asked.encode(sample, add_special_tokens=False):
        return "its tokenizer splits text otherwise than its base's"
    if own.chat_template is None or asked.chat_template is None:
        return None  # a folder without a template claims nothing
    for turns in _TURNS:
        one, other = (_rendered(t, turns) for t in (own, asked))
        if one != other:
            return f"its chat template is not its base's: it renders {one!r} where the base's renders {other!r}"
    return None


def _rendered(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=turns[-1]["role"] == "user"
        )  # fmt: skip
    except Exception:  # a stranger's template: whatever it raises, it renders nothing
        return "an error"


def _mapping(path: Path) -> dict[str, Any]:
    raw = read_json(path) if path.is_file() else {}
    if not isinstance(raw, dict):
        raise UserError("this must be a JSON object", where=str(path))
    return raw


def _without(config: Mapping[str, Any], about: Iterable[str]) -> dict[str, Any]:
    dropped = {k for k in config if k in about or k.endswith("_version") or k.startswith("unsloth_")}
    return {k: v for k, v in config.items() if k not in dropped and v is not None}


def _tokenizer_pieces(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {n: file_digest(folder / n) for n in _TOKENIZER_FILES if (folder / n).is_file()}
    backend = _without(_mapping(folder / "tokenizer.json"), {"padding", "truncation", "version"})
    if backend:
        found["tokenizer.json"] = digest(backend)
    config = _without(_mapping(folder / "tokenizer_config.json"), {*_TOKENIZER_ABOUT, "chat_template"})
    return (found | {"tokenizer_config.json": config}) if found else {}


def _template(folder: Path) -> Any:
    jinja, old = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    return _mapping(old).get("chat_template") or _mapping(folder / "tokenizer_config.json").get("chat_template")
