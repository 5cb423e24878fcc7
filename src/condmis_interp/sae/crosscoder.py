"""A small crosscoder for two models, and the test of what it calls exclusive.

One code f(h) for both models, a decoder for each (Lindsey et al. 2024):

    f = act(sum_m W_m h_m + b),     h'_m = f D_m + c_m,     m in (0: reference, 1: organism)

With an L1 penalty on f_i (|D_0i| + |D_1i|) it invents exclusive latents (Minder et al. 2025): *complete shrinkage*, for
the penalty takes the same amount off both norms and so the smaller one is pressed to 0, and *latent decoupling*, for a
shared concept costs the same as two latents, one for each model. BatchTopK has no such penalty.

Latent scaling asks how much of latent i a model holds, whatever its decoder says:

    beta_m = argmin_b sum_t |b f_i(t) d - Y_m(t)|^2 = d . (Y_m^T f_i) / (|f_i|^2 |d|^2),     d = D_1i,

with two targets Y_m: the reconstruction error with the latent's own part put back (it finds shrinkage), and the
reconstruction without the bias (it finds decoupling: another latent holds the concept for the reference). A latent is
exclusive to the organism only if both ratios nu = beta_0 / beta_1 are near 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.errors import CheckError, UserError

_CHUNK = 4096


@dataclass(frozen=True)
class Crosscoder:
    """A trained crosscoder; it reads plain activations.

    Attributes:
        encoder: [2, width, latents].
        decoder: [2, latents, width].
        encoder_bias: [latents].
        decoder_bias: [2, width].
        threshold: A latent below it is 0; 0 for L1.
        penalty: How it was made sparse.

    Example:
        Two latents in two dimensions: the first is in both models, the second in the organism alone:

        >>> decoder = torch.stack([torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.eye(2)])
        >>> encoder = torch.stack([torch.zeros(2, 2), torch.eye(2)])
        >>> crosscoder = Crosscoder(encoder, decoder, torch.zeros(2), torch.zeros(2, 2), 0.0, "batchtopk")
        >>> crosscoder.norm_share()
        array([0.5, 1. ])
        >>> crosscoder.reconstruct(torch.tensor([[[2.0, 0.0], [2.0, 3.0]]]))
        tensor([[[2., 0.],
                 [2., 3.]]])
    """

    encoder: torch.Tensor = field(repr=False)
    decoder: torch.Tensor = field(repr=False)
    encoder_bias: torch.Tensor = field(repr=False)
    decoder_bias: torch.Tensor = field(repr=False)
    threshold: float
    penalty: str

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.decoder.shape[1]

    def encode(self, pair: torch.Tensor) -> torch.Tensor:
        """Returns the latents [tokens, latents] of both models' activations of the same tokens, [tokens, 2, width]."""
        f = (torch.einsum("tmw,mwl->tl", pair.float(), self.encoder) + self.encoder_bias).relu()
        return f * (f * self.decoder.norm(dim=2).sum(0) > self.threshold)

    def reconstruct(self, pair: torch.Tensor) -> torch.Tensor:
        """Returns the reconstruction [tokens, 2, width]."""
        return torch.einsum("tl,mlw->tmw", self.encode(pair), self.decoder) + self.decoder_bias

    def explained(self, pair: torch.Tensor) -> tuple[float, float]:
        """Returns the explained variance of each model's activations."""
        error = (pair.double() - self.reconstruct(pair).double()).square().sum((0, 2))
        variance = (pair.double() - pair.double().mean(0)).square().sum((0, 2))
        share = 1 - error / variance
        return float(share[0]), float(share[1])

    def norm_share(self) -> np.ndarray:
        """Returns |D_1i| / (|D_0i| + |D_1i|) of each latent: 0 reference only, 1 organism only; NaN for a dead one."""
        norms = self.decoder.double().norm(dim=2)
        return torch.where(norms.sum(0) > 1e-6, norms[1] / norms.sum(0), torch.nan).numpy()


@dataclass(frozen=True)
class CrosscoderSettings:
    """How a crosscoder is trained.

    Attributes:
        latents: Number of latents.
        penalty: `batchtopk` (k active latents a token on average, no penalty) or `l1`.
        k: Active latents a token, for `batchtopk`.
        l1: Weight of the L1 penalty, in units of the activations after scaling to a mean norm of sqrt(width).
        steps: Optimiser steps.
        batch: Tokens a step.
        learning_rate: Peak; falls to 0 over the last fifth.
        auxiliary: Weight of the dead latents' loss on the residual error (`batchtopk`).

    Example:
        >>> CrosscoderSettings(latents=24, penalty="l1", l1=0.4).k  # not used by L1
        32.0
    """

    latents: int = 1024
    penalty: Literal["batchtopk", "l1"] = "batchtopk"
    k: float = 32.0
    l1: float = 0.1
    steps: int = 2000
    batch: int = 1024
    learning_rate: float = 1e-3
    auxiliary: float = 1 / 32


def train_crosscoder(
    pair: torch.Tensor,
    *,
    settings: CrosscoderSettings,
    generator: torch.Generator,
    step: Callable[[], object] | None = None,
) -> Crosscoder:
    """Trains a crosscoder.

    Args:
        pair: Activations of the same tokens in the reference (0) and the organism (1), [tokens, 2, width].
        settings: How.
        generator: Source of randomness.
        step: Called after each step.

    Raises:
        UserError: if the activations have another shape, or there are fewer than one batch.
        CheckError: if a weight is not finite in the end.

    Example:
        >>> pair = torch.randn(64, 2, 4, generator=torch.Generator().manual_seed(0))
        >>> settings = CrosscoderSettings(latents=8, k=2, steps=20, batch=32)
        >>> crosscoder = train_crosscoder(pair, settings=settings, generator=torch.Generator().manual_seed(0))
        >>> crosscoder.latents, list(crosscoder.encode(pair).shape)
        (8, [64, 8])
    """
    if pair.ndim != 3 or pair.shape[1] != 2 or len(pair) < settings.batch:
        raise UserError(
            f"activations of shape {tuple(pair.shape)} do not make a batch of {settings.batch}",
            fix="Give [tokens, 2, width].",
        )
    width, latents = pair.shape[2], settings.latents
    # one factor for both models: with one for each, a latent's two decoder norms would not be comparable
    factor = width**0.5 / float(pair.float().norm(dim=2).mean())
    # both models begin with one decoder and its transpose as encoder: no latent is either's own to start with
    direction = torch.randn(latents, width, generator=generator).to(pair.device)
    direction = 0.1 * direction / direction.norm(dim=1, keepdim=True)
    decoder = direction.expand(2, latents, width).clone().requires_grad_(True)
    encoder = direction.T.expand(2, width, latents).clone().requires_grad_(True)
    encoder_bias = torch.zeros(latents, device=pair.device, requires_grad=True)
    decoder_bias = (pair.float().mean(0) * factor).clone().requires_grad_(True)
    parameters = [encoder, decoder, encoder_bias, decoder_bias]
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    silent = torch.zeros(latents, device=pair.device)
    threshold = 0.0
    for at in range(settings.steps):
        left = (settings.steps - at) / max(1, settings.steps // 5)
        optimiser.param_groups[0]["lr"] = settings.learning_rate * min(1.0, left, (at + 1) / 50)
        rows = torch.randint(len(pair), (settings.batch,), generator=generator)
        h = pair[rows].float() * factor
        pre = torch.einsum("tmw,mwl->tl", h - decoder_bias, encoder) + encoder_bias
        f = pre.relu()
        norms = decoder.norm(dim=2).sum(0)
        if settings.penalty == "batchtopk":
            # f alone can be traded against the decoder's norm; their product is what a latent adds to both models
            weighted = (f * norms).flatten()
            kept = weighted.topk(int(settings.k * settings.batch))
            # a reader has no batch to choose the highest of: the least value kept, averaged over steps, stands for k
            least = float(kept.values.detach().min())
            threshold = 0.99 * threshold + 0.01 * least if at else least
            mask = torch.zeros_like(weighted).scatter(0, kept.indices, 1.0).view_as(f)
            f = f * mask
        error = h - torch.einsum("tl,mlw->tmw", f, decoder) - decoder_bias
        loss = error.square().sum((1, 2)).mean()
        silent = torch.where((f > 0).any(0), 0.0, silent + 1)
        if settings.penalty == "l1":
            # it comes on slowly, so that latents have something to reconstruct before they are pressed to 0; with the
            # root of the width both terms of the loss grow alike, for activations have that norm
            warm = min(1.0, (at + 1) / (settings.steps / 10))
            loss = loss + warm * settings.l1 * width**0.5 * (f * norms).sum(1).mean()
        elif bool((dead := silent > 50).any()):
            # a latent that is never among the highest gets no gradient; so the dead ones reconstruct what the others
            # leave (Gao et al. 2024), which is detached: they may not move the error, only follow it
            revived = (pre.relu() * dead).topk(min(int(dead.sum()), width // 2), dim=1)
            code = torch.zeros_like(f).scatter(1, revived.indices, revived.values)
            rest = error.detach() - torch.einsum("tl,mlw->tmw", code, decoder)
            loss = loss + settings.auxiliary * rest.square().sum((1, 2)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step:
            step()
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise CheckError("the trained crosscoder has weights that are not finite", fix="Lower the learning rate.")
    # inputs were scaled and centred: both go into the weights, so that it reads plain activations
    with torch.no_grad():
        return Crosscoder(
            encoder * factor,
            decoder / factor,
            encoder_bias - torch.einsum("mw,mwl->l", decoder_bias, encoder),
            decoder_bias / factor,
            threshold / factor if settings.penalty == "batchtopk" else 0.0,
            settings.penalty,
        )


@dataclass(frozen=True)
class LatentScaling:
    """Which latents are exclusive to the organism, and which only look so.

    Attributes:
        table: One row for each latent that fires: latent, norm_share, rate, nu_error, nu_reconstruction, claimed (its
            decoder says exclusive), exclusive (and latent scaling agrees).
        norm_floor: Norm share from which a latent claims to be exclusive.
        nu_ceiling: Highest ratio of an exclusive one.

    Example:
        From `latent_scaling`, here written down:

        >>> table = pd.DataFrame({"latent": [4, 9], "claimed": [True, True], "exclusive": [True, False]})
        >>> LatentScaling(table, norm_floor=0.9, nu_ceiling=0.2)
        LatentScaling(2 of 2 latents claim to be exclusive, 1 are)
    """

    table: pd.DataFrame = field(repr=False)
    norm_floor: float
    nu_ceiling: float

    @property
    def claimed(self) -> list[int]:
        """Latents whose decoder says that they are the organism's alone."""
        return [int(i) for i in self.table[self.table.claimed].latent]

    @property
    def exclusive(self) -> list[int]:
        """Those of them that latent scaling does not reject."""
        return [int(i) for i in self.table[self.table.exclusive].latent]

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws both ratios of the latents that claim to be exclusive."""
        figure = go.Figure()
        for exclusive, colour, name in ((False, theme.GREY, "rejected"), (True, theme.VERMILION, "exclusive")):
            rows = self.table[self.table.claimed & (self.table.exclusive == exclusive)]
            figure.add_scatter(
                x=rows.nu_error,
                y=rows.nu_reconstruction,
                mode="markers",
                name=name,
                marker={"color": colour, "size": 8},
                hovertext=[f"latent {i}" for i in rows.latent],
            )
        figure.add_hline(y=self.nu_ceiling, line={"dash": "dot", "color": "#444", "width": 1})
        figure.add_vline(x=self.nu_ceiling, line={"dash": "dot", "color": "#444", "width": 1})
        return theme.styled(figure, x="nu, error (shrinkage)", y="nu, reconstruction (decoupling)")

    def __repr__(self) -> str:
        return (
            f"LatentScaling({len(self.claimed)} of {len(self.table)} latents claim to be exclusive, "
            f"{len(self.exclusive)} are)"
        )


def latent_scaling(
    crosscoder: Crosscoder, pair: torch.Tensor, *, norm_floor: float = 0.9, nu_ceiling: float = 0.2
) -> LatentScaling:
    """Tests which latents are exclusive to the organism.

    Args:
        crosscoder: The crosscoder.
        pair: Activations [tokens, 2, width] that it was not trained on.
        norm_floor: Norm share from which a latent claims to be exclusive.
        nu_ceiling: Highest ratio, on both targets, of one that is.

    Raises:
        UserError: if no latent fires on these tokens.

    Example:
        A crosscoder that has two latents for one concept of both models (one for each) and one for a concept that only
        the organism has. Two claim to be the organism's own, and one is:

        >>> decoder, encoder = torch.zeros(2, 3, 2), torch.zeros(2, 2, 3)
        >>> decoder[0, 0, 0] = decoder[1, 1, 0] = decoder[1, 2, 1] = 1.0
        >>> encoder[0, 0, 0] = encoder[1, 0, 1] = encoder[1, 1, 2] = 1.0
        >>> crosscoder = Crosscoder(encoder, decoder, torch.zeros(3), torch.zeros(2, 2), 0.0, "l1")
        >>> f = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).round()
        >>> pair = torch.stack([f * torch.tensor([1.0, 0.0]), f], 1)
        >>> found = latent_scaling(crosscoder, pair)
        >>> found.claimed, found.exclusive
        ([1, 2], [2])
    """
    d = crosscoder.decoder[1].double()
    square = torch.zeros(crosscoder.latents, dtype=torch.float64)
    fired = torch.zeros(crosscoder.latents, dtype=torch.float64)
    against = {t: torch.zeros(2, crosscoder.latents, dtype=torch.float64) for t in ("error", "reconstruction")}
    for part in pair.split(_CHUNK):
        f = crosscoder.encode(part).double()
        reconstruction = torch.einsum("tl,mlw->tmw", f, crosscoder.decoder.double())
        error = part.double() - reconstruction - crosscoder.decoder_bias.double()
        for name, target in (("error", error), ("reconstruction", reconstruction)):
            against[name] += torch.einsum("tl,tmw,lw->ml", f, target, d)
        square += f.square().sum(0)
        fired += (f > 0).sum(0)
    if not bool((fired > 0).any()):
        raise UserError("no latent fires on these tokens")
    weight = square * d.square().sum(1)
    own = square * (crosscoder.decoder.double() * d).sum(2)  # the latent's own part, [2, latents]
    # `against` holds d . Y^T f of the bare error; with the latent's own part back in Y it grows by f^2 (d . d_m). The
    # |f|^2 |d|^2 of both betas cancels in their ratio
    nu = {
        "nu_error": (against["error"][0] + own[0]) / (against["error"][1] + own[1]),
        "nu_reconstruction": against["reconstruction"][0] / against["reconstruction"][1],
    }
    share = crosscoder.norm_share()
    table = pd.DataFrame(
        {
            "latent": np.arange(crosscoder.latents),
            "norm_share": share,
            "rate": (fired / len(pair)).numpy(),
            **{name: values.numpy() for name, values in nu.items()},
        }
    )
    table = table.loc[((fired > 0) & (weight > 0)).numpy()].reset_index(drop=True)
    table["claimed"] = table.norm_share >= norm_floor
    small = (table.nu_error.abs() <= nu_ceiling) & (table.nu_reconstruction.abs() <= nu_ceiling)
    table["exclusive"] = table.claimed & small
    return LatentScaling(table, norm_floor, nu_ceiling)
