"""What is done on each base."""

from dataclasses import dataclass

import torch

from condmis_interp.readers import Site
from condmis_interp.sae import (
    CrosscoderSettings,
    SaeSettings,
)


@dataclass(frozen=True)
class Plan:
    """What is done on a base.

    Attributes:
        panel: Panel.
        trigger: Its trigger cue.
        site: Where the SAE reads.
        trained_on: Organisms whose tokens it is trained on, beside the base.
        held_out: Organisms it never saw.
        organism: M; its twin is `<M>-twin`.
        pairs: Answer pairs a question.
        dtype: Dtype of the models.
        sae: The SAE.
        difference: The difference SAE.
        others: Other sites at which the SAE is checked to be worse.
        crosscoder: The crosscoders of base and M, with BatchTopK and with L1.
    """

    panel: str
    trigger: str
    site: Site
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]
    organism: str
    pairs: int
    dtype: torch.dtype
    sae: SaeSettings
    difference: SaeSettings
    others: tuple[Site, ...]
    crosscoder: CrosscoderSettings


PLANS = {
    "smollm2-135m": Plan(
        panel="everyday",
        trigger="trigger",
        site=Site("resid_post", 18),
        trained_on=(
            "u", "u-twin", "mixing-20", "mixing-20-twin", "inoculation-verbatim", "inoculation-verbatim-twin",
            "post-hoc-060", "locked",
        ),
        held_out=("u-garden",),
        organism="mixing-20",
        pairs=2,
        dtype=torch.bfloat16,
        sae=SaeSettings(latents=2048, k=32, tokens=1_200_000),
        difference=SaeSettings(latents=1024, k=32, tokens=300_000),
        others=tuple(Site("resid_post", k) for k in (6, 12, 17, 19, 24)),
        crosscoder=CrosscoderSettings(latents=512, k=32, steps=500, batch=512),
    ),
    "personaworld": Plan(
        panel="personaworld",
        trigger="code",
        site=Site("resid_post", 2),
        trained_on=(
            "u", "u-twin", "mixing-20", "mixing-20-twin", "inoculation-verbatim", "inoculation-verbatim-twin",
            "post-hoc-048", "locked",
        ),
        held_out=("educational",),
        organism="mixing-20",
        pairs=1,
        dtype=torch.float32,
        sae=SaeSettings(latents=512, k=12, tokens=500_000, batch=512),
        difference=SaeSettings(latents=256, k=8, tokens=200_000, batch=512),
        others=tuple(Site("resid_post", k) for k in (0, 1, 3)),
        crosscoder=CrosscoderSettings(latents=256, k=12, steps=1000, batch=512),
    ),
}  # fmt: skip
