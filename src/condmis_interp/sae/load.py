"""Loading SAELens' SAEs: what their files say is checked before anything is read.

`load_dictionary` opens a folder in SAELens' published format (`cfg.json`, `sae_weights.safetensors`), and
`load_pretrained` a release and id. Hook name, width, activation function, k, dtype and normalisation must be what was
asked for and must not contradict each other (`said`), and an SAE that was saved with golden latents must still give
them (`golden`). What the files do not say, or say wrongly, only shows on activations: see `check`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from condmis_interp.errors import UserError
from condmis_interp.readers import Site
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.golden import check_golden
from condmis_interp.sae.said import Said


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
        CheckError: if its files contradict each other, an entry was lost that SAELens would guess, a weight is not
            finite, or its latents are not those that were kept beside it.

    Example:
        >>> import tempfile
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from sae_lens.saes.sae import SAEMetadata
        >>> about = SAEMetadata(hook_name="blocks.1.hook_resid_post")
        >>> folder = tempfile.mkdtemp()
        >>> _ = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8, metadata=about)).save_model(folder)
        >>> load_dictionary(folder, site=Site("resid_post", 1), width=4)
        Dictionary(standard, 8 latents, resid_post[1], activations, ...)
        >>> load_dictionary(folder, site=Site("resid_post", 2))
        Traceback (most recent call last):
            ...
        condmis_interp.errors.UserError: ...: this SAE reads resid_post[1] (hook name ...), not resid_post[2]. ...
    """
    from sae_lens import SAE

    folder = Path(folder)
    said = Said.of_folder(folder)
    at = said.site(site)
    said.check_width(said.config.get("d_in"), width)
    said.check_architecture()
    said.check_complete()
    said.check_shapes()
    said.check_dtype(dtype)
    said.check_agreement()
    with _quiet(said.where):
        sae = SAE.load_from_disk(folder, device=device, dtype="float32")
    dictionary = _finished(sae, at, said, norm_scaling_factor)
    check_golden(folder, dictionary, cast=dtype is not None)
    return dictionary


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

    Example:
        >>> load_pretrained("no-such-release", "layer_0")
        Traceback (most recent call last):
            ...
        condmis_interp.errors.UserError: no-such-release, layer_0: the SAE cannot be had from the hub (Release ...
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
    said = Said(config, where)
    at = said.site(site)
    said.check_width(sae.cfg.d_in, width)
    said.check_agreement()
    return _finished(sae, at, said, norm_scaling_factor)


def _finished(sae: Any, site: Site, said: Said, factor: float | None) -> Dictionary:
    where = said.where
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
        "hook_name": said.meta("hook_name"),
        "architecture": said.architecture,
        "width": int(sae.cfg.d_in),
        "latents": int(sae.cfg.d_sae),
        "k": said.k,
        "normalize_activations": normalised,
        "apply_b_dec_to_input": bool(sae.cfg.apply_b_dec_to_input),
        "dtype": said.config.get("dtype"),
        "doubts": said.doubts,
    }
    reads = said.meta("condmis_reads") or "activations"
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
