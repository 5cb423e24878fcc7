"""Directions: a unit vector at a site, with the method, data and split that produced it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from condmis_interp.calls import checked
from condmis_interp.directions.saved import About, load, save
from condmis_interp.directions.targets import Target, ablate
from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Ablate, Site, Steer
from condmis_interp.readers.edits import EVERYWHERE, Scope


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

    Example:
        >>> d = Direction.of(
        ...     torch.tensor([3.0, 4.0]), site=Site("resid_post", 3), method="mine", data="U - C",
        ...     position="last_template", splits=("A",), n=8,
        ... )
        >>> d
        Direction(mine, U - C, resid_post[3], last_template, |raw|=5, n=8)
        >>> d.steer(-1).vector
        tensor([-3., -4.])
        >>> d.ablate(to={"answer": 0.5})
        Ablate(resid_post[3], rank 1, width 2, at answer)
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

    def coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the coordinate [...] (fp64, in activation units) of states [..., width]."""
        return hidden.double() @ self.vector.double()

    def steer(self, dose: float, *, scope: frozenset[Scope] = EVERYWHERE) -> Steer:
        """Returns the edit that adds `dose * scale * vector` where the direction was found.

        Args:
            dose: How much, in norms of the raw difference (`scale`): 1 adds the difference itself, -1 takes it away.
            scope: Positions it is added at.

        Raises:
            UserError: if the dose is not finite, or a position is none.
        """
        if not math.isfinite(dose):
            raise UserError(f"a dose of {dose} cannot be added", where=str(self.site), fix="Give a finite number.")
        return Steer(self.site, dose * self.scale * self.vector, scope=scope, fitted_at=self.site)

    def ablate(self, *, to: Target, scope: frozenset[Scope] = EVERYWHERE) -> Ablate:
        """Returns the edit that sets the component along the direction.

        Args:
            to: The coordinate it is set to, in activation units: a number; or one for each position, in a mapping, as
                `mean_coordinates` gives it for a twin's mean in a cell. It has no default: 0 is a choice, and it is not
                neutral.
            scope: Positions, where `to` is no mapping.

        Raises:
            UserError: if `to` is not finite, or a position is none.
        """
        return ablate(self.site, self.vector[None], to, scope)

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the vector, as JSON."""
        return About.of(self, scale=self.scale).to_json()

    def save(self, path: str | Path) -> Path:
        """Saves it as `path.safetensors` and `path.json`, whole or not at all; returns the latter's path.

        Args:
            path: Folder and name; `.json` or `.safetensors` at its end makes no difference.

        Raises:
            UserError: if the last part of the path cannot be used as a name.
        """
        return save(path, "direction", self.vector, About.of(self, scale=self.scale))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """Loads what `save` wrote.

        Raises:
            UserError: if there is no such pair of files, or they are no direction of a schema known here.
            CheckError: if the numbers are not those that were saved.

        Example:
            >>> import tempfile
            >>> site, vector = Site("resid_post", 3), torch.tensor([0.0, 1.0])
            >>> d = Direction(site, vector, 2.5, "mine", "U - C", "answer_mean", ("A",), 8)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Direction.load(d.save(f"{folder}/persona"))
            Direction(mine, U - C, resid_post[3], answer_mean, |raw|=2.5, n=8)
        """
        about, vector = load(path, "direction")
        if about.scale is None:
            raise UserError("a direction needs its scale", where=str(path), fix="It is the 1 of a dose.")
        return cls(Site.parse(about.site), vector, about.scale, **about.facts())

    def __repr__(self) -> str:
        return (
            f"Direction({self.method}, {self.data}, {self.site}, {self.position}, |raw|={self.scale:.3g}, n={self.n})"
        )
