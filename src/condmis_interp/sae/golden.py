"""Golden latents: what an SAE gave for a few activations when it was saved, kept beside it and held against it on load.

Nothing in SAELens' format says what the right latents are, so that a changed k, a lost normalisation, another bias or
another version of the library shows as nothing but other numbers. A few kilobytes of examples show all of these.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from condmis_interp.errors import CheckError
from condmis_interp.files import whole_file
from condmis_interp.sae.dictionary import Dictionary

NAME = "golden.safetensors"
TOKENS = 16
_TOLERANCE, _CAST = 1e-4, 2e-2
"""Largest difference, as a share of the norm, of the median token; the second for weights that were cast to 16 bits.
The median, because rounding on another machine may carry a latent of one token across its threshold, and what is meant
to be found here changes them all."""
_SETTINGS = (
    "k", "normalize_activations", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "reshape_activations"
)  # fmt: skip


def write_golden(folder: str | Path, dictionary: Dictionary, hidden: torch.Tensor) -> Path:
    """Keeps an SAE's latents of a few activations beside it; `load_dictionary` refuses it if it gives others.

    Do this for an SAE of others once `check_dictionary` has passed it.

    Args:
        folder: The SAE's folder.
        dictionary: The SAE.
        hidden: Activations at its site [tokens, width]; the first 16 are kept.

    Returns:
        The file.

    Example:
        >>> import tempfile
        >>> from condmis_interp.readers import Site
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8))
        >>> write_golden(tempfile.mkdtemp(), Dictionary(sae, Site("resid_post", 0), "mine"), torch.ones(3, 4)).name
        'golden.safetensors'
    """
    path = Path(folder) / NAME
    kept = hidden[:TOKENS].float().cpu().contiguous()
    tensors = {
        "hidden": kept,
        "latents": dictionary.encode(kept).contiguous(),
        "reconstruction": dictionary.reconstruct(kept).contiguous(),
    }
    with whole_file(path) as part:
        save_file(tensors, part, {"settings": json.dumps(_settings(dictionary), sort_keys=True)})
    return path


def check_golden(folder: Path, dictionary: Dictionary, *, cast: bool = False) -> None:
    """Holds an SAE against the latents that were kept beside it, if any were.

    Args:
        folder: Where they are kept.
        dictionary: The SAE.
        cast: Whether its weights were cast since, on purpose.

    Raises:
        CheckError: saying which setting has changed since, if one has.
    """
    path = folder / NAME
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as f:
        kept = {name: f.get_tensor(name) for name in ("hidden", "latents", "reconstruction")}
        before = json.loads((f.metadata() or {}).get("settings", "{}"))
    off = {
        "latents": _off(dictionary.encode(kept["hidden"]), kept["latents"]),
        "reconstruction": _off(dictionary.reconstruct(kept["hidden"]), kept["reconstruction"]),
    }
    wrong = {what: share for what, share in off.items() if not share <= (_CAST if cast else _TOLERANCE)}
    if not wrong:
        return
    now = _settings(dictionary)
    changed = [f"{key} was {before[key]} and is {now.get(key)}" for key in before if before[key] != now.get(key)]
    what, share = next(iter(wrong.items()))
    raise CheckError(
        f"the SAE's {what} are not what they were when it was saved: they differ by {share:.2g} of their norm"
        + f" ({'; '.join(changed)})" * bool(changed),
        where=str(folder),
        fix="Undo the change of its files." if changed else f"Were its weights changed? If rightly, delete {NAME}.",
    )


def _off(found: torch.Tensor, kept: torch.Tensor) -> float:
    """Returns the median token's difference as a share of its norm; infinite if the shapes differ."""
    if found.shape != kept.shape:
        return float("inf")
    return float(((found - kept).norm(dim=1) / kept.norm(dim=1).clamp(min=1e-12)).median())


def _settings(dictionary: Dictionary) -> dict[str, Any]:
    return {key: getattr(dictionary.sae.cfg, key) for key in _SETTINGS if hasattr(dictionary.sae.cfg, key)}
