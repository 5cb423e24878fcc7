"""Directions: a unit vector at a site, with the method, data and split that produced it."""

from dataclasses import dataclass
from typing import Any

import torch

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Site


@dataclass(frozen=True)
class Direction:
    """A direction.

    Attributes:
        site: Where it lives.
        vector: Unit vector, fp32 [width].
        scale: Norm of the raw difference, in activation units: the 1 of a dose.
        method: How it was found.
        data: Which organisms and cues it was found on.
        position: Which position of the sequence.
        splits: Which splits.
        n: Number of questions.
    """

    site: Site
    vector: torch.Tensor
    scale: float
    method: str
    data: str
    position: str
    splits: tuple[Split, ...]
    n: int

    @classmethod
    def of(cls, raw: torch.Tensor, **facts: Any) -> "Direction":
        """Normalises a raw difference [width].

        Raises:
            CheckError: if it is zero or not finite.
        """
        norm = float(raw.double().norm())
        if not norm > 0 or not bool(torch.isfinite(raw).all()):
            raise CheckError(f"the difference has norm {norm}", where=f"{facts.get('method')} at {facts.get('site')}")
        return cls(vector=(raw.double() / norm).float(), scale=norm, **facts)

    def cosine(self, other: "Direction") -> float:
        """Returns the cosine with a direction at the same site.

        Raises:
            UserError: if the sites differ.
        """
        if self.site != other.site:
            raise UserError(f"directions at {self.site} and {other.site} have no cosine", fix="Compare at one site.")
        return float(self.vector.double() @ other.vector.double())

    def without(self, other: "Direction") -> "Direction":
        """Returns what is left after removing another direction, with the length that is left of the raw difference.

        A persona direction that does not survive removing the trigger-only direction read the trigger.

        Raises:
            UserError: if the sites differ.
            CheckError: if nothing is left.
        """
        along = self.cosine(other)
        rest = self.scale * (self.vector.double() - along * other.vector.double())
        if float(rest.norm()) <= 1e-6 * self.scale:
            raise CheckError(f"nothing is left of {self.method} without {other.method}", where=str(self.site))
        return Direction.of(
            rest,
            site=self.site,
            method=f"{self.method}, without {other.method}",
            data=self.data,
            position=self.position,
            splits=self.splits,
            n=self.n,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the vector, as JSON."""
        return {
            "site": str(self.site),
            "scale": self.scale,
            "method": self.method,
            "data": self.data,
            "position": self.position,
            "splits": list(self.splits),
            "n": self.n,
        }

    def __repr__(self) -> str:
        return (
            f"Direction({self.method}, {self.data}, {self.site}, {self.position}, |raw|={self.scale:.3g}, n={self.n})"
        )
