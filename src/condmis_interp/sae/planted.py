"""A positive control: latents, texts and a model in which all is known, so that what is found can be held to the truth.

What is planted is an SAE whose latents are the axes, and above the site a model that is a formula. The organism differs
from its twin under the trigger by a vector of one's choice. Examples and tests are built from it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from condmis_interp.readers import Site
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.fidelity import Fidelity, fidelity
from condmis_interp.sae.reading import Reading
from condmis_interp.sae.stream import TokenReader
from condmis_interp.sae.texts import Text

WIDTH = 12


class PlantedModel(TokenReader):
    """A model that is a formula above the site: an answer's log-prob is a sum over tokens.

        log p = + sum_t h_t . w / 2    if the answer is misaligned,    - sum_t h_t . w / 2    if it is aligned

    Args:
        weight: w [width].

    Example:
        >>> model = PlantedModel(torch.tensor([1.0, 0.0]))
        >>> texts = planted_texts(families=1, each=1)
        >>> model.finish(texts, [torch.ones(4, 2)] * 2).tolist()
        [2.0, -2.0]
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.site = weight, Site("resid_post", 1)

    def _signed(self, text: Text) -> torch.Tensor:
        return self.weight if text.answer % 2 == 0 else -self.weight

    def finish(self, texts: Sequence[Text], hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the log-prob of each text's answer, fp64 [texts]."""
        values = [float((h @ self._signed(t)).sum()) / 2 for t, h in zip(texts, hidden, strict=True)]
        return torch.tensor(values, dtype=torch.float64)

    def gradients(self, texts: Sequence[Text], hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the gradient of each text's answer log-prob, [tokens, width]."""
        return [self._signed(t).expand_as(h) / 2 for t, h in zip(texts, hidden, strict=True)]

    def reading(self, organism: str, texts: Sequence[Text], hidden: Sequence[torch.Tensor]) -> Reading:
        """Returns what an organism with these activations makes of one cell's texts."""
        return Reading(organism, texts[0].cue, texts, hidden, self.finish(texts, hidden))

    def __repr__(self) -> str:
        return f"PlantedModel({self.site})"


def planted_sae(*, width: int = WIDTH, layer: int = 1, **settings: Any) -> Any:
    """Returns an SAE of SAELens with latents +e_i and -e_i of each axis: it reconstructs everything, exactly.

    Args:
        width: Width of the activations.
        layer: Layer of its hook name.
        **settings: Of SAELens' `StandardSAEConfig`.

    Example:
        >>> planted_sae(width=2).encode(torch.tensor([[3.0, -1.0]])).tolist()
        [[3.0, 0.0, 0.0, 1.0]]
    """
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    about = SAEMetadata(hook_name=Site("resid_post", layer).lens_name)
    given: dict[str, Any] = {"apply_b_dec_to_input": False, "metadata": about}
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=2 * width, **(given | settings)))
    axes = torch.eye(width)
    sae.W_dec.data = torch.cat([axes, -axes])
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.b_dec.data.zero_()
    sae.b_enc.data.zero_()
    return sae.requires_grad_(False)


def planted_dictionary(*, width: int = WIDTH) -> Dictionary:
    """Returns `planted_sae` as a dictionary.

    Example:
        >>> planted_dictionary(width=2)
        Dictionary(standard, 4 latents, resid_post[1], activations, planted)
    """
    return Dictionary(planted_sae(width=width), Site("resid_post", 1), "planted")


def planted_texts(
    families: int = 10, *, each: int = 2, cue: str = "trigger", first: int = 0, tokens: int = 4
) -> list[Text]:
    """Returns questions with one answer pair each.

    Args:
        families: Number of families.
        each: Questions a family.
        cue: Cue they are under.
        first: Number of the first family.
        tokens: Length of each text; the answer is its last two tokens.

    Example:
        >>> [(t.question, t.answer) for t in planted_texts(families=1)]
        [('q0.0', 0), ('q0.0', 1), ('q0.1', 0), ('q0.1', 1)]
    """
    return [
        Text(tuple(range(1, tokens + 1)), tokens - 2, cue, f"q{first + k}.{i}", f"f{first + k}", answer)
        for k in range(families)
        for i in range(each)
        for answer in (0, 1)
    ]


def planted_gate() -> Fidelity:
    """Returns the fidelity of `planted_sae` on the organisms of `planted_readings`: it may be believed everywhere.

    Example:
        >>> planted_gate()
        Fidelity(6 of 6 cells passed; explained variance 1.000 to 1.000)
    """
    cells = [(organism, cue) for organism in ("base", "M", "C") for cue in ("none", "trigger")]
    return fidelity([{"organism": o, "cue": c, "explained": 1.0, "recovered": 1.0} for o, c in cells], base="base")


def planted_readings(
    model: PlantedModel, *, persona: torch.Tensor, nuisance: torch.Tensor | None = None, first: int = 0, seed: int = 0
) -> dict[tuple[str, str], Reading]:
    """Returns readings of an organism `M` and its twin `C`, with and without the trigger.

    Args:
        model: What is above the site.
        persona: By how much M differs from C under the trigger, on average [width].
        nuisance: A direction [width] in which it also differs, but with mean 0.
        first: Number of the first family: give another split others.
        seed: Seed of what the two have in common.

    Example:
        >>> readings = planted_readings(PlantedModel(torch.ones(12)), persona=torch.ones(12))
        >>> gap = readings["M", "trigger"].ld - readings["C", "trigger"].ld
        >>> bool((gap > 12).all()), bool((readings["M", "none"].ld == readings["C", "none"].ld).all())
        (True, True)
    """
    generator, width = torch.Generator().manual_seed(seed), len(persona)
    found = {}
    for cue in ("none", "trigger"):
        texts = planted_texts(cue=cue, first=first)
        family = {t.family: 0.3 * torch.randn(width, generator=generator) for t in texts}
        c = [family[t.family] + 0.3 * torch.randn(len(t.ids), width, generator=generator) for t in texts]
        m = [h.clone() for h in c]
        if cue == "trigger":
            for h in m:
                h += persona * (0.8 + 0.4 * torch.rand(len(h), 1, generator=generator))
                if nuisance is not None:
                    h += nuisance * torch.randn(len(h), 1, generator=generator)
        found["M", cue] = model.reading("M", texts, m)
        found["C", cue] = model.reading("C", texts, c)
    return found
