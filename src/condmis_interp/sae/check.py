"""Checking an SAE on real activations: what loads without a complaint can still be the wrong one.

Explained variance and L0 on activations of the model it will be read on, at its site and at others. Where they are bad,
the usual mistakes are undone one by one, and the message names the one without which the SAE would pass.

An SAE whose activation function was lost on the way gives itself away by its small latents: it was trained without
them, so dropping them makes the reconstruction better, where those of a sound SAE make it better by being there. A k
that was raised shows in the same way; one that was lowered, in that twice as many latents explain more.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from condmis_interp.errors import CheckError
from condmis_interp.readers import Site
from condmis_interp.sae.dictionary import Dictionary, explained_variance, l0

EXPLAINED = 0.5
"""Least explained variance by which an SAE counts as one for these activations."""
_MORE = 0.03
"""Least that a change must explain more, to count: beyond its own k a TopK SAE gains next to nothing."""


@dataclass(frozen=True)
class DictionaryCheck:
    """What an SAE does on real activations.

    Attributes:
        explained: Explained variance.
        by_half: Explained variance by the half of the active latents that are highest at each token.
        by_double: Explained variance by twice k latents, for a TopK SAE; `None` for others.
        l0: Mean number of active latents a token.
        dead: Share of latents that never fired on these tokens.
        norm_ratio: Mean norm of the reconstruction over mean norm of the activations.
        elsewhere: Explained variance at other sites.
        tokens: Number of tokens.

    Example:
        >>> from condmis_interp.sae.planted import planted_dictionary
        >>> h = torch.eye(12)[:4] + 2 * torch.eye(12)[4:8]
        >>> check = check_dictionary(planted_dictionary(), h)
        >>> check.l0, check.tokens
        (2.0, 4)
    """

    explained: float
    by_half: float
    l0: float
    dead: float
    norm_ratio: float
    elsewhere: dict[str, float]
    tokens: int
    by_double: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers, for manifests."""
        return asdict(self)


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
        >>> from condmis_interp.sae.planted import planted_dictionary
        >>> sae, h = planted_dictionary(), torch.eye(12) + 2 * torch.eye(12).roll(1, 0)
        >>> round(check_dictionary(sae, h).explained, 3)
        1.0
        >>> check_dictionary(sae, torch.randn(50, 12, generator=torch.Generator().manual_seed(0)))
        Traceback (most recent call last):
            ...
        condmis_interp.errors.CheckError: planted at resid_post[1]: 12 latents are active a token on a width of 12: ...
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
    double = None
    if dictionary.architecture == "topk" and 2 * dictionary.sae.cfg.k <= dictionary.latents:
        double = explained_variance(hidden, _changed(dictionary, k=2 * dictionary.sae.cfg.k).reconstruct(hidden))
    return DictionaryCheck(
        explained=explained_variance(hidden, reconstruction),
        by_half=explained_variance(hidden, dictionary.reconstruct(hidden, highest=max(1, round(l0(f) / 2)))),
        l0=l0(f),
        dead=float((f > 0).any(0).logical_not().float().mean()),
        norm_ratio=float(reconstruction.norm(dim=1).mean() / hidden.float().norm(dim=1).mean()),
        elsewhere=elsewhere,
        tokens=len(f),
        by_double=double,
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
            "A TopK or JumpReLU SAE loaded as ReLU, or with a higher k, looks like this; check cfg.json.",
        )
    if check.by_double is not None and check.by_double > check.explained + _MORE:
        return (
            f"twice its k = {dictionary.sae.cfg.k} latents explain more ({check.by_double:.3f} against "
            f"{check.explained:.3f}): it was trained with a higher k",
            "Put the k it was trained with into cfg.json.",
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
        "apply_b_dec_to_input is set wrongly": (
            _changed(dictionary, apply_b_dec_to_input=not dictionary.sae.cfg.apply_b_dec_to_input),
            hidden,
        ),
        "its input must be scaled to a norm of sqrt(width): the factor was not folded in": (
            dictionary,
            hidden.float() * factor,
        ),
        "the factor of normalised inputs was folded in twice": (dictionary, hidden.float() / factor),
    }
    if dictionary.sae.cfg.normalize_activations == "none":
        for lost in ("layer_norm", "constant_norm_rescale"):
            trials[f"normalize_activations was {lost!r}"] = (_changed(dictionary, normalize_activations=lost), hidden)
    checks = {what: _checked(d, h, {}) for what, (d, h) in trials.items()}
    mended = {what: c.explained for what, c in checks.items() if _fault(dictionary, c, floor) is None}
    if not mended:
        return None
    best = max(mended.values())
    # mistakes of scale mend one another almost: those that cannot be told apart are all named
    likely = [what for what, explained in mended.items() if explained > best - _MORE]
    return f"It seems that {', or that '.join(likely)}: then it would explain {best:.3f}."


def _changed(dictionary: Dictionary, **settings: Any) -> Dictionary:
    """Returns the SAE as if its configuration said something else; its weights are shared."""
    sae = dictionary.sae
    config = replace(sae.cfg, **settings)
    with torch.device("meta"):  # no weights of its own
        other = type(sae)(replace(config, device="meta"))
    other.load_state_dict(sae.state_dict(), assign=True)
    other.cfg, other.device, other.dtype = config, sae.device, sae.dtype
    other.requires_grad_(False)
    return replace(dictionary, sae=other.eval())
