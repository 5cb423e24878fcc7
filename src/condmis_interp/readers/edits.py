"""Edits: changes to the forward pass; the word intervention is kept for training-time measures.

* `Steer`: h <- h + v at the positions in scope.
* `Ablate`: h <- h + B^T (c - B h) with an orthonormal basis B [k, width] and target coordinates c [k]: the component
  of h in the subspace is set to c. With c = the twin's mean coordinates in the same cell this is mean-ablation to the
  twin; with c = 0 it is zero-ablation, which is reported and never relied on (zero is not neutral).

Positions are named by part of the sequence: `cue`, `question`, `tail` (spans of the prompt), `last_template` (the
prompt's last token) and `answer` (teacher-forced or generated tokens).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from condmis_interp.errors import UserError
from condmis_interp.readers.sites import Site

Scope = Literal["cue", "question", "tail", "last_template", "answer"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
EVERYWHERE: frozenset[Scope] = frozenset(("cue", "question", "tail", "answer"))


def _bytes(tensor: torch.Tensor) -> str:
    return hashlib.blake2b(tensor.detach().cpu().float().contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def _check_scopes(scopes: object, what: str) -> None:
    unknown = sorted(set(scopes) - set(SCOPES))  # type: ignore[call-overload]
    if unknown or not scopes:
        named = repr(unknown[0]) if unknown else "nothing"
        raise UserError(f"{what} names {named} as a position", fix=f"Positions: {', '.join(SCOPES)}.")


def _check_finite(tensor: torch.Tensor, what: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{what} has values that are not finite")


@dataclass(frozen=True)
class Steer:
    """Adds a vector.

    Attributes:
        site: Where.
        vector: Tensor [width], in activation units.
        scope: Positions it is added at.
    """

    site: Site
    vector: torch.Tensor
    scope: frozenset[Scope] = EVERYWHERE

    def __post_init__(self) -> None:
        if self.vector.ndim != 1:
            raise UserError(
                f"a steering vector has shape [width], this one {tuple(self.vector.shape)}", where=str(self.site)
            )
        _check_finite(self.vector, f"the steering vector at {self.site}")
        _check_scopes(self.scope, f"the steering edit at {self.site}")

    @property
    def width(self) -> int:
        """Residual width the edit fits."""
        return self.vector.shape[0]

    @property
    def scopes(self) -> frozenset[Scope]:
        """Positions it acts on."""
        return self.scope

    def fingerprint(self) -> list[Any]:
        """Returns what determines the edit, as JSON."""
        return ["steer", str(self.site), sorted(self.scope), _bytes(self.vector)]

    def delta(self, hidden: torch.Tensor, masks: Mapping[Scope, torch.Tensor]) -> torch.Tensor:
        """Returns the change of `hidden` [batch, position, width] in fp32; `masks` are [batch, position] of 0 and 1."""
        mask = union(masks, self.scope, hidden)
        return mask[..., None] * self.vector.to(hidden.device, torch.float32)


@dataclass(frozen=True)
class Ablate:
    """Sets the component in a subspace to given coordinates.

    Attributes:
        site: Where.
        basis: Orthonormal rows [k, width].
        target: Target coordinates [k] by position.
        tolerance: How far the rows may be from orthonormal.
    """

    site: Site
    basis: torch.Tensor
    target: Mapping[Scope, torch.Tensor]
    tolerance: float = field(default=1e-3, repr=False)

    def __post_init__(self) -> None:
        if self.basis.ndim != 2:
            raise UserError(f"a basis has shape [k, width], this one {tuple(self.basis.shape)}", where=str(self.site))
        k = self.basis.shape[0]
        _check_finite(self.basis, f"the basis at {self.site}")
        gram = self.basis.double() @ self.basis.double().T
        if not torch.allclose(gram, torch.eye(k, dtype=torch.float64, device=gram.device), atol=self.tolerance):
            raise UserError(
                "the basis is not orthonormal", where=str(self.site), fix="Orthonormalise its rows, e.g. by QR."
            )
        _check_scopes(set(self.target), f"the ablation at {self.site}")
        for scope, value in self.target.items():
            if tuple(value.shape) != (k,):
                raise UserError(
                    f"the target at {scope!r} has shape {tuple(value.shape)}, not ({k},)", where=str(self.site)
                )
            _check_finite(value, f"the target at {scope!r}")

    @property
    def width(self) -> int:
        """Residual width the edit fits."""
        return self.basis.shape[1]

    @property
    def scopes(self) -> frozenset[Scope]:
        """Positions it acts on."""
        return frozenset(self.target)

    def fingerprint(self) -> list[Any]:
        """Returns what determines the edit, as JSON."""
        return ["ablate", str(self.site), _bytes(self.basis), sorted((s, _bytes(t)) for s, t in self.target.items())]

    def delta(self, hidden: torch.Tensor, masks: Mapping[Scope, torch.Tensor]) -> torch.Tensor:
        """Returns the change of `hidden` [batch, position, width] in fp32; `masks` are [batch, position] of 0 and 1."""
        basis = self.basis.to(hidden.device, torch.float32)
        coordinates = hidden.float() @ basis.T
        change = torch.zeros_like(coordinates)
        for scope, value in self.target.items():
            mask = union(masks, frozenset((scope,)), hidden)[..., None]
            change = torch.where(mask > 0, value.to(hidden.device, torch.float32) - coordinates, change)
        return change @ basis


Edit = Steer | Ablate


def union(masks: Mapping[Scope, torch.Tensor], scopes: frozenset[Scope], hidden: torch.Tensor) -> torch.Tensor:
    """Returns the union [batch, position] of the masks in `scopes`; those absent in this pass count as empty."""
    total = torch.zeros(hidden.shape[:2], device=hidden.device)
    for scope in scopes & masks.keys():
        total = torch.maximum(total, masks[scope].to(hidden.device, torch.float32))
    return total
