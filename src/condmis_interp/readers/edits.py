"""Edits: changes to the forward pass; the word intervention is kept for training-time measures.

* `Steer`: h <- h + v at the positions in scope.
* `Ablate`: h <- h + B^T (c - B h) with an orthonormal basis B [k, width] and target coordinates c [k]: the component
  of h in the subspace is set to c. With c = the twin's mean coordinates in the same cell this is mean-ablation to the
  twin; with c = 0 it is zero-ablation, which is reported and never relied on (zero is not neutral).
* `Patch` (in `recording.py`): h <- what was recorded there in another run, whole or in a subspace.

Positions are named by part of the sequence: `cue`, `question`, `tail` (spans of the prompt), `last_template` (the
prompt's last token) and `answer` (teacher-forced or generated tokens).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch

from condmis_interp.calls import check_fields
from condmis_interp.errors import UserError
from condmis_interp.readers.batching import Pass
from condmis_interp.readers.sites import Site

Scope = Literal["cue", "question", "tail", "last_template", "answer"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
EVERYWHERE: frozenset[Scope] = frozenset(("cue", "question", "tail", "answer"))


class Edit(Protocol):
    """A change to the residual stream at a site, at the positions in scope.

    Example:
        Steering is one:

        >>> edit: Edit = Steer(Site("resid_post", 3), torch.ones(8))
        >>> edit.site, edit.width
        (Site(kind='resid_post', layer=3), 8)
    """

    @property
    def site(self) -> Site:
        """Where."""
        ...

    @property
    def width(self) -> int:
        """Residual width it fits."""
        ...

    @property
    def scopes(self) -> frozenset[Scope]:
        """Positions it acts on."""
        ...

    def fingerprint(self) -> list[Any]:
        """Returns what determines the edit, as JSON."""
        ...

    def delta(self, hidden: torch.Tensor, at: Pass) -> torch.Tensor:
        """Returns the change of `hidden` [rows, position, width] in fp32, in a pass over these tokens."""
        ...


def listed(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """Returns the edits of a reading.

    Raises:
        UserError: if they are no list of edits.
    """
    found = tuple(edits) if isinstance(edits, Iterable) else (edits,)
    wrong = [type(e).__name__ for e in found if not hasattr(e, "delta")]
    if wrong or not isinstance(edits, Iterable):
        what = f"a {wrong[0]} is no edit" if wrong else f"a {type(edits).__name__} is one edit, not a list of them"
        raise UserError(what, fix="Write edits=[Steer(...)].")
    return found


def each_listed(points: Iterable[Iterable[Edit]]) -> list[tuple[Edit, ...]]:
    """Returns the edits of each point of a sweep.

    Raises:
        UserError: if they are no list of lists of edits.
    """
    if not isinstance(points, Iterable):
        raise UserError(f"a {type(points).__name__} is no list of points", fix="Write [[Steer(...)], [Steer(...)]].")
    return [listed(p) for p in points]


def tensor_digest(tensor: torch.Tensor) -> str:
    """Returns the hash of a tensor's values as fp32."""
    return hashlib.blake2b(tensor.detach().cpu().float().contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def check_scopes(scopes: Iterable[str], what: str) -> None:
    """Raises if a name is no position, or there is none."""
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        named = repr(unknown[0]) if unknown else "nothing"
        raise UserError(f"{what} names {named} as a position", fix=f"Positions: {', '.join(SCOPES)}.")


def as_tensor(value: Any, what: str) -> torch.Tensor:
    """Returns a tensor, or a numpy array as one.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, torch.Tensor):
        raise UserError(f"{what} is a {type(value).__name__}, not a tensor or a numpy array")
    return value


def told(scopes: Iterable[str]) -> str:
    """Returns positions in the order they stand in a sequence, as words."""
    return ", ".join(s for s in SCOPES if s in scopes)


def check_vector(tensor: torch.Tensor, what: str) -> None:
    """Raises if a tensor cannot be added to a residual stream."""
    if not tensor.is_floating_point():
        raise UserError(f"{what} has dtype {tensor.dtype}, not a floating point one")
    if tensor.is_meta:
        raise UserError(f"{what} has no values: it is on the meta device")
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{what} has values that are not finite")


def check_basis(basis: torch.Tensor, site: Site, *, tolerance: float) -> None:
    """Raises unless `basis` is [k, width] with orthonormal rows."""
    if basis.ndim != 2:
        raise UserError(f"a basis has shape [k, width], this one {tuple(basis.shape)}", where=str(site))
    check_vector(basis, f"the basis at {site}")
    gram = basis.double() @ basis.double().T
    if not torch.allclose(gram, torch.eye(len(basis), dtype=torch.float64, device=gram.device), atol=tolerance):
        raise UserError("the basis is not orthonormal", where=str(site), fix="Orthonormalise its rows, e.g. by QR.")


@dataclass(frozen=True)
class Steer:
    """Adds a vector.

    Attributes:
        site: Where.
        vector: Tensor (or numpy array) [width], in activation units.
        scope: Positions it is added at.
        fitted_at: Site the vector was found at, if known: added elsewhere it means something else, so that is refused.

    Example:
        >>> Steer(Site("resid_post", 18), torch.ones(4), scope=frozenset(("answer",)))
        Steer(resid_post[18], norm 2, width 4, at answer)
    """

    site: Site
    vector: torch.Tensor
    scope: frozenset[Scope] = EVERYWHERE
    fitted_at: Site | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", as_tensor(self.vector, f"the steering vector at {self.site}"))
        check_fields(self)
        if self.vector.ndim != 1:
            raise UserError(
                f"a steering vector has shape [width], this one {tuple(self.vector.shape)}", where=str(self.site)
            )
        check_vector(self.vector, f"the steering vector at {self.site}")
        check_scopes(self.scope, f"the steering edit at {self.site}")
        if self.fitted_at is not None and self.fitted_at != self.site:
            raise UserError(
                f"the vector was fitted at {self.fitted_at}",
                where=f"steering edit at {self.site}",
                fix="Steer where it was fitted, or leave fitted_at out if another site is meant.",
            )

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
        return ["steer", str(self.site), sorted(self.scope), tensor_digest(self.vector)]

    def delta(self, hidden: torch.Tensor, at: Pass) -> torch.Tensor:
        """Returns the change of `hidden` [rows, position, width] in fp32."""
        return union(at, self.scope, hidden)[..., None] * self.vector.to(hidden.device, torch.float32)

    def __repr__(self) -> str:
        norm = float(self.vector.detach().float().norm())
        return f"Steer({self.site}, norm {norm:.3g}, width {self.width}, at {told(self.scope)})"


@dataclass(frozen=True)
class Ablate:
    """Sets the component in a subspace to given coordinates.

    Attributes:
        site: Where.
        basis: Orthonormal rows [k, width], a tensor or numpy array.
        target: Target coordinates [k] by position, likewise.
        tolerance: How far the rows may be from orthonormal.

    Example:
        >>> Ablate(Site("resid_post", 18), torch.eye(4)[:1], {"last_template": torch.tensor([0.5])})
        Ablate(resid_post[18], rank 1, width 4, at last_template)
    """

    site: Site
    basis: torch.Tensor
    target: Mapping[Scope, torch.Tensor]
    tolerance: float = field(default=1e-3, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.target, Mapping):
            raise UserError(
                f"the target is a {type(self.target).__name__}, not one of each position", where=str(self.site)
            )
        object.__setattr__(self, "basis", as_tensor(self.basis, f"the basis at {self.site}"))
        given = {scope: as_tensor(value, f"the target at {scope!r}") for scope, value in self.target.items()}
        object.__setattr__(self, "target", given)
        check_basis(self.basis, self.site, tolerance=self.tolerance)
        check_scopes(set(self.target), f"the ablation at {self.site}")
        for scope, value in self.target.items():
            if tuple(value.shape) != (len(self.basis),):
                raise UserError(
                    f"the target at {scope!r} has shape {tuple(value.shape)}, not ({len(self.basis)},)",
                    where=str(self.site),
                )
            check_vector(value, f"the target at {scope!r}")

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
        targets = sorted((s, tensor_digest(t)) for s, t in self.target.items())
        return ["ablate", str(self.site), tensor_digest(self.basis), targets]

    def delta(self, hidden: torch.Tensor, at: Pass) -> torch.Tensor:
        """Returns the change of `hidden` [rows, position, width] in fp32."""
        basis = self.basis.to(hidden.device, torch.float32)
        coordinates = hidden.float() @ basis.T
        change = torch.zeros_like(coordinates)
        for scope, value in self.target.items():
            mask = union(at, frozenset((scope,)), hidden)[..., None]
            change = torch.where(mask > 0, value.to(hidden.device, torch.float32) - coordinates, change)
        return change @ basis

    def __repr__(self) -> str:
        return f"Ablate({self.site}, rank {len(self.basis)}, width {self.width}, at {told(self.scopes)})"


def union(at: Pass, scopes: frozenset[Scope], hidden: torch.Tensor) -> torch.Tensor:
    """Returns the union [rows, position] of the masks in `scopes`; those absent in this pass count as empty."""
    total = torch.zeros(hidden.shape[:2], device=hidden.device)
    for scope in scopes & at.scopes.keys():
        total = torch.maximum(total, at.scopes[scope].to(hidden.device, torch.float32))
    return total
