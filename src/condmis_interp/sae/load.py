"""Loading SAELens' SAEs: what their files say is checked before anything is read.

`load_dictionary` opens a folder in SAELens' published format (`cfg.json`, `sae_weights.safetensors`), and
`load_pretrained` a release and id. Hook name, width, activation function, dtype and normalisation must be what was
asked for and must not contradict each other. What the files do not say, or say wrongly, only shows on activations: see
`check`.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.readers import Site, SiteKind
from condmis_interp.sae.dictionary import Dictionary

_HOOKS: dict[str, SiteKind] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
}
_TL = re.compile(r"blocks\.(\d+)\.((?:attn\.|mlp\.)?hook_\w+)")
_HF = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)(?:\.(self_attn|attn|attention|mlp))?")
_SPARSE = ("topk", "batchtopk", "jumprelu")


def site_of_hook(name: str) -> Site:
    """Returns the site that a hook name of TransformerLens or a module path of Hugging Face names.

    Raises:
        UserError: if it names no site of ours.
    """
    if (m := _TL.fullmatch(name)) and m[2] in _HOOKS:
        return Site(_HOOKS[m[2]], int(m[1]))
    if m := _HF.fullmatch(name):
        kind: SiteKind = "resid_post" if m[2] is None else "mlp_out" if m[2] == "mlp" else "attn_out"
        return Site(kind, int(m[1]))
    raise UserError(
        f"the SAE's hook name {name!r} names no site known here",
        fix="Known are blocks.N.hook_resid_pre, hook_resid_post, hook_attn_out, hook_mlp_out and model.layers.N.",
    )


def load_dictionary(
    folder: str | Path,
    *,
    site: Site | None = None,
    width: int | None = None,
    dtype: str | None = None,
    norm_scaling_factor: float | None = None,
    device: str = "cpu",
) -> Dictionary:
    """Loads an SAE from a folder in SAELens' format and checks what its files say.

    Args:
        folder: With `cfg.json` and `sae_weights.safetensors`.
        site: Where it will be read; must be what its hook name says. By default that is where it is read.
        width: Width of the model it will be read on.
        dtype: What the weights are stored in, if that is not what the configuration says.
        norm_scaling_factor: For an SAE of normalised inputs (`expected_average_only_in`) whose factor was not folded
            into its weights: sqrt(width) / mean norm of the activations it was trained on. It is folded here.
        device: Torch device.

    Raises:
        UserError: naming what is missing, or what the files say that is not what was asked for.
        CheckError: if configuration and weights contradict each other, or a weight is not finite.
    """
    from sae_lens import SAE

    folder = Path(folder)
    where = str(folder)
    config = _config(folder)
    stored = _stored(folder / "sae_weights.safetensors")
    said = _said_site(config, site, where)
    _check_architecture(config, stored, where)
    _check_shapes(config, stored, width, where)
    _check_dtype(config, stored, dtype, where)
    with _quiet(where):
        sae = SAE.load_from_disk(folder, device=device, dtype="float32")
    return _finished(sae, said, where, config, norm_scaling_factor)


def load_pretrained(
    release: str,
    sae_id: str,
    *,
    site: Site | None = None,
    width: int | None = None,
    norm_scaling_factor: float | None = None,
    device: str = "cpu",
) -> Dictionary:
    """Loads a pretrained SAE by SAELens' release and id, from the cache of the hub or from the hub.

    Args:
        release: Name in SAELens' list of releases, or a Hugging Face repository.
        sae_id: Which of the release's SAEs.
        site: Where it will be read; must be what its hook name says.
        width: Width of the model it will be read on.
        norm_scaling_factor: As in `load_dictionary`, for a release of which SAELens does not know it.
        device: Torch device.

    Raises:
        UserError: if it is not known, cannot be had (offline), or is not for this site or width.
    """
    from sae_lens import SAE

    where = f"{release}, {sae_id}"
    try:
        with _quiet(where):
            sae, config, _ = SAE.from_pretrained_with_cfg_and_sparsity(release, sae_id, device=device)
    except UserError:
        raise
    except Exception as e:  # requests, huggingface_hub and SAELens raise many kinds, all with the same meaning here
        raise UserError(
            f"the SAE cannot be had from the hub ({_short(e)})",
            where=where,
            fix="Check release and id (SAELens' table of pretrained SAEs) and the connection; offline, give a folder "
            "to load_dictionary.",
        ) from None
    said = _said_site(config, site, where)
    if width is not None and sae.cfg.d_in != width:
        raise _wrong_width(sae.cfg.d_in, width, where)
    return _finished(sae, said, where, config, norm_scaling_factor)


def _config(folder: Path) -> dict[str, Any]:
    for name in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / name).is_file():
            pickles = sorted(p.name for p in folder.glob("*.pt")) if folder.is_dir() else []
            also = f" (there is {pickles[0]}, a pickle, which can run code)" if pickles else ""
            raise UserError(
                f"the folder has no {name}{also}", where=str(folder), fix="Save the SAE with SAELens' save_model."
            )
    config = read_json(folder / "cfg.json")
    if not isinstance(config, dict):
        raise UserError("cfg.json is no JSON object", where=str(folder))
    if "architecture" not in config and "activation_fn_str" not in config and "activation_fn" not in config:
        raise UserError("cfg.json names no architecture", where=str(folder))
    return config


def _stored(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype, bool]]:
    """Returns shape, dtype and finiteness of each stored tensor."""
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise CheckError(f"the SAE's weights are damaged ({e})", where=str(path)) from None
    found = {n: (tuple(t.shape), t.dtype, bool(torch.isfinite(t).all())) for n, t in tensors.items()}
    if broken := sorted(n for n, (_, _, finite) in found.items() if not finite):
        raise CheckError(f"weight {broken[0]!r} is not finite", where=str(path))
    return found


def _meta(config: Mapping[str, Any], key: str) -> Any:
    return (config.get("metadata") or {}).get(key, config.get(key, config.get(key.replace("name", "point"))))


def _said_site(config: Mapping[str, Any], asked: Site | None, where: str) -> Site:
    name = _meta(config, "hook_name")
    if name is None:
        if asked is None:
            raise UserError("the SAE does not say where it reads (no hook_name)", where=where, fix="Give the site.")
        return asked
    said = site_of_hook(str(name))
    if asked is not None and said != asked:
        raise UserError(
            f"this SAE reads {said} (hook name {name!r}), not {asked}",
            where=where,
            fix=f"Read {said}, or load another.",
        )
    return said


def _check_architecture(config: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> None:
    architecture = config.get("architecture", "standard")
    trained = _meta(config, "training_architecture")
    old = str(config.get("activation_fn", config.get("activation_fn_str", "relu")))
    found = None
    if architecture == "standard" and "threshold" in stored:
        found = "its weights hold thresholds, so it is a JumpReLU SAE"
    elif architecture == "standard" and trained in _SPARSE:
        found = f"it was trained as {trained}"
    elif architecture == "standard" and ("k" in config or _details(config).get("k")) and old == "relu":
        found = f"its configuration has k = {config.get('k', _details(config).get('k'))}, so it is a TopK SAE"
    if found:
        raise CheckError(
            f"the configuration says 'standard' (ReLU), but {found}; loaded as ReLU its latents mean nothing",
            where=where,
            fix="Correct 'architecture' in cfg.json.",
        )
    if architecture == "topk" and "k" not in config and not _details(config).get("k"):
        raise CheckError("a TopK SAE without k", where=where, fix="Put the k it was trained with into cfg.json.")
    if architecture == "jumprelu" and "threshold" not in stored and "log_threshold" not in stored:
        raise CheckError("a JumpReLU SAE without thresholds in its weights", where=where)


def _details(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _meta(config, "training_architecture_details") or config.get("activation_fn_kwargs") or {}


def _check_shapes(config: Mapping[str, Any], stored: Mapping[str, Any], width: int | None, where: str) -> None:
    d_in, d_sae = config.get("d_in"), config.get("d_sae")
    if width is not None and d_in != width:
        raise _wrong_width(d_in, width, where)
    for name, shape in {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}.items():
        if name not in stored:
            raise CheckError(f"the weights lack {name!r}", where=where)
        if stored[name][0] != shape:
            raise CheckError(
                f"{name} has shape {stored[name][0]}, and the configuration says {shape}",
                where=where,
                fix="Weights and cfg.json are of two different SAEs.",
            )


def _wrong_width(d_in: Any, width: int, where: str) -> UserError:
    return UserError(
        f"this SAE reads activations of width {d_in}, the model's are {width} wide",
        where=where,
        fix="It was trained on another model.",
    )


def _check_dtype(config: Mapping[str, Any], stored: Mapping[str, Any], given: str | None, where: str) -> None:
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}
    said = str(given or config.get("dtype", "float32")).removeprefix("torch.")
    found = names.get(stored["W_enc"][1], str(stored["W_enc"][1]))
    if found != said:
        raise CheckError(
            f"the weights are stored in {found}, and the configuration says {said}",
            where=where,
            fix=f"If they were cast on purpose, pass dtype={found!r}.",
        )


def _finished(sae: Any, site: Site, where: str, config: Mapping[str, Any], factor: float | None) -> Dictionary:
    normalised = sae.cfg.normalize_activations
    if normalised == "expected_average_only_in":
        if factor is None:
            raise UserError(
                "this SAE reads normalised activations (expected_average_only_in) and its factor is not folded in",
                where=where,
                fix="Pass norm_scaling_factor: sqrt(width) / mean norm of the activations it was trained on.",
            )
        sae.fold_activation_norm_scaling_factor(factor)
    elif factor is not None:
        raise UserError(
            f"a norm_scaling_factor was given, but this SAE normalises by {normalised!r}",
            where=where,
            fix="Leave it out: it is folded in already, or not needed.",
        )
    if normalised == "covariance_whitening":
        raise UserError(
            "the SAE's whitening is not folded into its weights", where=where, fix="Save it after training."
        )
    sae.eval()
    sae.requires_grad_(False)
    facts = {
        "hook_name": _meta(config, "hook_name"),
        "architecture": config.get("architecture"),
        "width": int(sae.cfg.d_in),
        "latents": int(sae.cfg.d_sae),
        "k": config.get("k") or _details(config).get("k") or _details(config).get("target_l0"),
        "normalize_activations": normalised,
        "apply_b_dec_to_input": bool(sae.cfg.apply_b_dec_to_input),
        "dtype": config.get("dtype"),
    }
    reads = _meta(config, "condmis_reads") or "activations"
    return Dictionary(sae=sae, site=site, source=where, reads=reads, facts=facts)


@contextmanager
def _quiet(where: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (KeyError, RuntimeError) as e:
            raise UserError(f"SAELens cannot load it ({_short(e)})", where=where) from None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
