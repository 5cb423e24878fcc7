"""Subspaces: an orthonormal basis at a site, with the method, data and split that produced it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from condmis_interp.calls import checked
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.saved import About, load, save
from condmis_interp.directions.targets import Target, ablate
from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Ablate, Site
from condmis_interp.readers.edits import EVERYWHERE, Scope, check_basis


@dataclass(frozen=True)
class Subspace:
    """An orthonormal basis.

    Attributes:
        site: Where it lives.
        basis: Orthonormal rows, fp32 [k, width].
        method: How it was found.
        data: Which organisms and cues it was found on.
        position: Which position of the sequence.
        splits: Which splits.
        n: Number of questions.

    Example:
        >>> facts = {"site": Site("resid_post", 3), "method": "mine", "data": "U - C", "position": "last_template"}
        >>> facts |= {"splits": ("A",), "n": 8}
        >>> d = Direction.of(torch.tensor([3.0, 4.0, 0.0]), **facts)
        >>> e = Direction.of(torch.tensor([3.0, 0.0, 0.0]), **facts)
        >>> Subspace.span([d, e]).ablate(to=0.0)
        Ablate(resid_post[3], rank 2, width 3, at cue, question, tail, answer)
    """

    site: Site
    basis: torch.Tensor
    method: str
    data: str
    position: str
    splits: tuple[Split, ...]
    n: int

    def __post_init__(self) -> None:
        check_basis(self.basis, self.site, tolerance=1e-4)

    @classmethod
    def span(cls, directions: Sequence[Direction]) -> Self:
        """Returns the span of directions at one site, orthonormalised in their order (QR).

        Raises:
            UserError: if there is none, or they are of several sites.
            CheckError: if one of them lies in the span of the others.
        """
        if len({d.site for d in directions}) != 1:
            sites = ", ".join(sorted({str(d.site) for d in directions}))
            raise UserError("a subspace is spanned by directions at one site", where=sites or "no direction")
        q, r = torch.linalg.qr(torch.stack([d.vector for d in directions]).double().T)
        if len(r) < len(directions) or bool((r.diagonal().abs() < 1e-6).any()):
            raise CheckError(f"{len(directions)} directions span fewer dimensions", where=str(directions[0].site))
        first = directions[0]
        return cls(
            first.site,
            q.T.float().contiguous(),
            method="span of " + ", ".join(d.method for d in directions),
            data="; ".join(dict.fromkeys(d.data for d in directions)),
            position=", ".join(dict.fromkeys(d.position for d in directions)),
            splits=tuple(sorted({s for d in directions for s in d.splits})),
            n=min(d.n for d in directions),
        )

    def coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the coordinates [..., k] (fp64) of states [..., width]."""
        return hidden.double() @ self.basis.double().T

    def ablate(self, *, to: Target, scope: frozenset[Scope] = EVERYWHERE) -> Ablate:
        """Returns the edit that sets the component in the subspace; see `Direction.ablate`.

        Args:
            to: Coordinates [k], or one number for all of them; by position in a mapping, or the same everywhere.
            scope: Positions, where `to` is no mapping.
        """
        return ablate(self.site, self.basis, to, scope)

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the basis, as JSON."""
        return About.of(self).to_json()

    def save(self, path: str | Path) -> Path:
        """Saves it as `path.safetensors` and `path.json`; returns the latter's path. See `Direction.save`."""
        return save(path, "subspace", self.basis, About.of(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """Loads what `save` wrote. See `Direction.load`."""
        about, basis = load(path, "subspace")
        return cls(Site.parse(about.site), basis, **about.facts())

    def __repr__(self) -> str:
        return f"Subspace({self.method}, {self.data}, {self.site}, {self.position}, rank {len(self.basis)}, n={self.n})"
