"""Dictionaries: a sparse autoencoder at a site, and the one change of the residual stream that an edit of a latent is.

For an SAE with latents f(h) and decoder rows d_i, setting latent i from f_i to a_i changes the residual stream by

    h + (a_i - f_i(h)) d_i                                   (SAELens' `use_error_term`; methods: 2.2)

which keeps what the SAE fails to reconstruct. d_i is in activation units: rows of `W_dec`, divided by their norm where
SAELens rescales activations by it, and times the token's own scale where the SAE normalises each token.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from condmis_interp.errors import UserError
from condmis_interp.readers import Site

_CHUNK = 8192
"""Tokens encoded at once: 8192 x 4096 latents in fp32 are 128 MB."""


@dataclass(frozen=True)
class Dictionary:
    """An SAE of SAELens at a site.

    Attributes:
        sae: The SAE (`sae_lens.SAE`), fp32.
        site: Where its input is read.
        source: Folder or release it came from.
        reads: What it was trained on: a model's activations, or the difference of two models' on the same tokens.
        facts: What was checked when it was loaded, for manifests.

    Example:
        An SAE with a latent for each direction of each axis, in two dimensions:

        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=4, apply_b_dec_to_input=False))
        >>> axes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> sae.W_enc.data, sae.W_dec.data = axes.T.contiguous(), axes
        >>> dictionary = Dictionary(sae, Site("resid_post", 3), "mine")
        >>> dictionary
        Dictionary(standard, 4 latents, resid_post[3], activations, mine)
        >>> h = torch.tensor([[2.0, -3.0]])
        >>> dictionary.encode(h)
        tensor([[2., 0., 0., 3.]])
        >>> dictionary.edited(h, latents=torch.tensor([3]), values=torch.tensor([1.0]))
        tensor([[ 2., -1.]])
    """

    sae: Any = field(repr=False)
    site: Site
    source: str
    reads: Literal["activations", "difference"] = "activations"
    facts: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def width(self) -> int:
        """Width of its input."""
        return int(self.sae.cfg.d_in)

    @property
    def latents(self) -> int:
        """Number of latents."""
        return int(self.sae.cfg.d_sae)

    @property
    def architecture(self) -> str:
        """SAELens' name of its activation function's family."""
        return str(self.sae.cfg.architecture())

    @property
    def decoder(self) -> torch.Tensor:
        """Decoder rows in activation units (before any per-token scale), fp32 [latents, width]."""
        rows = self.sae.W_dec.detach().float()
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            rows = rows / rows.norm(dim=1, keepdim=True)
        return rows.cpu()

    @torch.no_grad()
    def encode(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the latents [tokens, latents], fp32, of activations [tokens, width].

        Raises:
            UserError: if the width does not fit.
        """
        self._check(hidden)
        parts = [self.sae.encode(h.to(self.sae.device)).float().cpu() for h in hidden.float().split(_CHUNK)]
        return torch.cat(parts) if parts else torch.zeros(0, self.latents)

    @torch.no_grad()
    def reconstruct(self, hidden: torch.Tensor, *, highest: int | None = None) -> torch.Tensor:
        """Returns the reconstruction [tokens, width], fp32.

        Args:
            hidden: Activations [tokens, width].
            highest: Keep only so many latents a token, the highest; all by default.
        """
        self._check(hidden)
        parts = []
        for h in hidden.float().split(_CHUNK):
            # decode uses the statistics that encode left behind, so the two belong together, chunk by chunk
            f = self.sae.encode(h.to(self.sae.device))
            if highest is not None:
                top = f.topk(highest, dim=1)
                f = torch.zeros_like(f).scatter(1, top.indices, top.values)
            parts.append(self.sae.decode(f).float().cpu())
        return torch.cat(parts) if parts else hidden.float()

    def scale(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns what a decoder row is multiplied with at each token, [tokens, 1]."""
        kind = self.sae.cfg.normalize_activations
        if kind == "layer_norm":
            return (hidden.float() - hidden.float().mean(-1, keepdim=True)).std(-1, keepdim=True)
        if kind == "constant_norm_rescale":
            return hidden.float().norm(dim=-1, keepdim=True) / self.width**0.5
        return torch.ones(*hidden.shape[:-1], 1)

    def edited(self, hidden: torch.Tensor, latents: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Returns the activations with some latents set, the reconstruction error kept.

        Args:
            hidden: Activations [tokens, width].
            latents: Which latents [k].
            values: Their new values [tokens, k] (or [k]).
        """
        change = values - self.encode(hidden)[:, latents]
        return hidden.float() + self.scale(hidden) * (change @ self.decoder[latents])

    def _check(self, hidden: torch.Tensor) -> None:
        if hidden.ndim != 2 or hidden.shape[1] != self.width:
            raise UserError(
                f"activations of shape {tuple(hidden.shape)} do not fit an SAE of width {self.width}",
                where=str(self.site),
                fix="Give [tokens, width].",
            )

    def __repr__(self) -> str:
        return f"Dictionary({self.architecture}, {self.latents} latents, {self.site}, {self.reads}, {self.source})"


def explained_variance(hidden: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """Returns 1 - sum |h - h'|^2 / sum |h - mean h|^2 over tokens, in fp64.

    The mean is that of the tokens given, so what an SAE knows of it counts for nothing.

    Example:
        >>> h = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> explained_variance(h, h), explained_variance(h, h.mean(0).expand(2, 2))
        (1.0, 0.0)
    """
    h, r = hidden.double(), reconstruction.double()
    return float(1 - (h - r).square().sum() / (h - h.mean(0)).square().sum())


def l0(latents: torch.Tensor) -> float:
    """Returns the mean number of latents above zero a token.

    Example:
        >>> l0(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]))
        1.5
    """
    return float((latents > 0).sum(1).double().mean())
