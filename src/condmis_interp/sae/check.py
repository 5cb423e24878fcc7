"""Checking an SAE on real activations: what loads without a complaint can still be the wrong one.

Explained variance and L0 on activations of the model it will be read on, at its site and at others. Where they are bad,
the usual mistakes are undone one by one, and the message names the one without which the SAE would pass.

An SAE whose activation function was lost on the way gives itself away by its small latents: it was trained without
them, so dropping them makes the reconstruction better, where those of a sound SAE make it better by being there.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from condmis_interp.errors import CheckError
from condmis_interp.readers import Site
from condmis_interp.sae.dictionary import Dictionary, explained_variance, l0

EXPLAINED = 0.5
"""Least explained variance by which an SAE counts as one for these activations."""


@dataclass(frozen=True)
class DictionaryCheck:
    """What an SAE does on real activations.

    Attributes:
        explained: Explained variance.
        by_half: Explained variance by the half of the active latents that are highest at each token.
        l0: Mean number of active latents a token.
        dead: Share of latents that never fired on these tokens.
        norm_ratio: Mean norm of the reconstruction over mean norm of the activations.
        elsewhere: Explained variance at other sites.
        tokens: Number of tokens.

    Example:
        From `check_dictionary`, here written down:

        >>> facts = {"dead": 0.01, "norm_ratio": 0.95, "elsewhere": {}, "tokens": 500}
        >>> check = DictionaryCheck(explained=0.9, by_half=0.7, l0=12.0, **facts)
        >>> check.by_half < check.explained
        True
    """

    explained: float
    by_half: float
    l0: float
    dead: float
    norm_ratio: float
    elsewhere: dict[str, float]
    tokens: int


def check_dictionary(
    dictionary: Dictionary,
    hidden: torch.Tensor,
    *,
    elsewhere: Mapping[Site, torch.Tensor] | None = None,
    floor: float = EXPLAINED,
    margin: float = 0.02,
) -> DictionaryCheck:
    """Checks an SAE on real activations, and names what is wrong with one that does not reconstruct them.

    Args:
        dictionary: The SAE.
        hidden: Activations at its site, without first positions (attention sinks), [tokens, width].
        elsewhere: Activations of the same tokens at other sites. An SAE that is better there by `margin` is another
            layer's, even if it is good enough here: neighbouring layers of a residual stream are much alike.
        floor: Least explained variance.
        margin: See `elsewhere`.

    Raises:
        CheckError: if it explains too little, is not sparse, has another L0 than its k, or is another layer's.

    Example:
        A sound SAE, and the same one on activations that it does not fit:

        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=4, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(4), torch.eye(4)
        >>> dictionary = Dictionary(sae, Site("resid_post", 3), "mine")
        >>> h = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
        >>> h = torch.where(h > 0.7, h, 0.0)
        >>> check_dictionary(dictionary, h).explained
        1.0
        >>> check_dictionary(dictionary, -h)
        Traceback (most recent call last):
            ...
        condmis_interp.errors.CheckError: mine at resid_post[3]: no latent is active on any token. ...
    """
    others = {str(site): explained_variance(h, dictionary.reconstruct(h)) for site, h in (elsewhere or {}).items()}
    others.pop(str(dictionary.site), None)
    check = _checked(dictionary, hidden, others)
    explained = check.explained
    where = f"{dictionary.source} at {dictionary.site}"
    best = max(others, key=lambda s: others[s], default=None)
    if best is not None and others[best] > max(explained + margin, floor):
        raise CheckError(
            f"this is another layer's SAE: it explains {others[best]:.3f} of the variance at {best} and "
            f"{explained:.3f} at {dictionary.site}",
            where=where,
            fix=f"Read it at {best}.",
        )
    if what := _fault(dictionary, check, floor):
        message, usual = what
        raise CheckError(message, where=where, fix=_diagnosis(dictionary, hidden, floor) or usual)
    return check


def _checked(dictionary: Dictionary, hidden: torch.Tensor, elsewhere: dict[str, float]) -> DictionaryCheck:
    f, reconstruction = dictionary.encode(hidden), dictionary.reconstruct(hidden)
    return DictionaryCheck(
        explained=explained_variance(hidden, reconstruction),
        by_half=explained_variance(hidden, dictionary.reconstruct(hidden, highest=max(1, round(l0(f) / 2)))),
        l0=l0(f),
        dead=float((f > 0).any(0).logical_not().float().mean()),
        norm_ratio=float(reconstruction.norm(dim=1).mean() / hidden.float().norm(dim=1).mean()),
        elsewhere=elsewhere,
        tokens=len(f),
    )


def _fault(dictionary: Dictionary, check: DictionaryCheck, floor: float) -> tuple[str, str] | None:
    """Returns what is wrong and what is usually behind it, or `None`."""
    k = dictionary.facts.get("k")
    if not check.l0 > 0:
        return "no latent is active on any token", "Check the normalisation."
    if check.by_half > check.explained:
        return (
            f"the highest half of the {check.l0:.0f} active latents explains more than all of them "
            f"({check.by_half:.3f} against {check.explained:.3f}): the rest were never meant to be active",
            "A TopK or JumpReLU SAE loaded as ReLU looks like this; check 'architecture' in cfg.json.",
        )
    if check.l0 > dictionary.width / 2:
        return (
            f"{check.l0:.0f} latents are active a token on a width of {dictionary.width}: the code is not sparse",
            "A TopK or JumpReLU SAE loaded as ReLU looks like this; check 'architecture' in cfg.json.",
        )
    if k and not k / 4 <= check.l0 <= 4 * k:
        return (
            f"the SAE was trained for {k:g} active latents a token and has {check.l0:.1f} on these activations",
            "Check normalisation, layer and model.",
        )
    if not check.explained >= floor:
        return (
            f"the SAE explains {check.explained:.3f} of the variance of these activations (L0 {check.l0:.1f}, norm "
            f"ratio {check.norm_ratio:.2f}), less than {floor}",
            "It may be another layer's, another model's, or loaded as another architecture.",
        )
    return None


def _diagnosis(dictionary: Dictionary, hidden: torch.Tensor, floor: float) -> str | None:
    """Returns what would mend the SAE: the usual mistake without which it would pass, if there is one."""
    factor = dictionary.width**0.5 / float(hidden.float().norm(dim=1).mean())
    trials = {
        "apply_b_dec_to_input is set wrongly": (_flipped(dictionary), hidden),
        "its input must be scaled to a norm of sqrt(width): the factor was not folded in": (
            dictionary,
            hidden.float() * factor,
        ),
        "the factor of normalised inputs was folded in twice": (dictionary, hidden.float() / factor),
    }
    checks = {what: _checked(d, h, {}) for what, (d, h) in trials.items()}
    mended = {what: c.explained for what, c in checks.items() if _fault(dictionary, c, floor) is None}
    if not mended:
        return None
    best = max(mended, key=lambda what: mended[what])
    return f"It seems that {best}: then it would explain {mended[best]:.3f}."


def _flipped(dictionary: Dictionary) -> Dictionary:
    sae = copy.copy(dictionary.sae)
    sae.cfg = copy.copy(sae.cfg)
    sae.cfg.apply_b_dec_to_input = not sae.cfg.apply_b_dec_to_input
    return replace(dictionary, sae=sae)
