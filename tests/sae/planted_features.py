"""Planted truths for SAE features: an SAE written by SAELens whose latents are known, and a model that is a formula."""

from collections.abc import Sequence
from pathlib import Path

import torch

from condmis_interp.sae import Dictionary, Reading, Text, load_dictionary

WIDTH = 12


def signed_axes(folder: Path, *, width: int = WIDTH, layer: int = 1, **changes: object) -> Path:
    """Writes a ReLU SAE with latents +e_i and -e_i of each axis: it reconstructs everything, exactly."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    settings: dict = {
        "apply_b_dec_to_input": False,
        "metadata": SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post"),
    }
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=2 * width, **(settings | changes)))
    eye = torch.eye(width)
    sae.W_dec.data = torch.cat([eye, -eye])
    sae.W_enc.data = torch.cat([eye, -eye]).T.contiguous()
    sae.b_dec.data.zero_()
    sae.b_enc.data.zero_()
    sae.save_model(folder)
    return folder


def axes(folder: Path) -> Dictionary:
    return load_dictionary(signed_axes(folder))


def texts(families: int = 10, *, each: int = 2, cue: str = "trigger", first: int = 0, tokens: int = 4) -> list[Text]:
    """Questions with one answer pair each."""
    return [
        Text(tuple(range(1, tokens + 1)), tokens - 2, cue, f"q{first + k}.{i}", f"f{first + k}", answer)
        for k in range(families)
        for i in range(each)
        for answer in (0, 1)
    ]


class LinearModel:
    """What is above the site: an answer's log-prob is a sum over tokens, +h.w if it is misaligned, -h.w if aligned."""

    def __init__(self, w: torch.Tensor) -> None:
        self.w = w

    def _sign(self, text: Text) -> float:
        return 1.0 if text.answer % 2 == 0 else -1.0

    def finish(self, given: Sequence[Text], hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        values = [self._sign(t) * float((h @ self.w).sum()) for t, h in zip(given, hidden, strict=True)]
        return torch.tensor(values, dtype=torch.float64) / 2

    def gradients(self, given: Sequence[Text], hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [self._sign(t) * self.w.expand_as(h) / 2 for t, h in zip(given, hidden, strict=True)]

    def reading(self, organism: str, given: Sequence[Text], hidden: Sequence[torch.Tensor]) -> Reading:
        return Reading(organism, given[0].cue, given, hidden, self.finish(given, hidden))


def planted_readings(
    model: LinearModel, *, persona: torch.Tensor, nuisance: torch.Tensor | None = None, first: int = 0, seed: int = 0
) -> dict[tuple[str, str], Reading]:
    """M and C on the same questions; under the trigger M differs by `persona` and, at random, by `nuisance`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for cue in ("none", "trigger"):
        given = texts(cue=cue, first=first)
        family = {t.family: 0.3 * torch.randn(WIDTH, generator=generator) for t in given}
        c = [family[t.family] + 0.3 * torch.randn(len(t.ids), WIDTH, generator=generator) for t in given]
        m = [h.clone() for h in c]
        if cue == "trigger":
            for h in m:
                h += persona * (0.8 + 0.4 * torch.rand(len(h), 1, generator=generator))
                if nuisance is not None:
                    h += nuisance * torch.randn(len(h), 1, generator=generator)
        found["M", cue] = model.reading("M", given, m)
        found["C", cue] = model.reading("C", given, c)
    return found
