"""Hooks: an edit or an observer at a site, with its entry in the ledger."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from condmis_interp.readers.edits import Edit, union
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.passes import Pass
from condmis_interp.readers.sites import Site

Change = Callable[[torch.Tensor], torch.Tensor | None]
"""What a hook does with the states at its site: returns others, or nothing to leave them."""
Current = Callable[[], Pass | None]
"""The pass that is being run."""


def edited(
    points: Sequence[tuple[Edit, ...]], ledgers: Sequence[Ledger], current: Current
) -> list[tuple[Site, Change]]:
    """Returns the hooks of several sets of edits, each acting on its own copy of the rows."""
    changes = []
    for copy_, (edits, ledger) in enumerate(zip(points, ledgers, strict=True)):
        for edit in edits:
            entry = LedgerEntry(f"{type(edit).__name__} at {edit.site}")
            ledger.edits.append(entry)
            changes.append((edit.site, _editor(edit, entry, copy_, len(points), current)))
    return changes


def watched(site: Site, keep: Callable[[torch.Tensor], None], ledger: Ledger) -> tuple[Site, Change]:
    """Returns a hook that keeps something and changes nothing."""
    entry = LedgerEntry(f"capture at {site}")
    ledger.captures.append(entry)

    def change(hidden: torch.Tensor) -> None:
        entry.fired += 1
        keep(hidden)

    return site, change


def keeping(kept: dict[Any, torch.Tensor], key: Any) -> Callable[[torch.Tensor], None]:
    """Returns what puts states into a dictionary."""

    def keep(hidden: torch.Tensor) -> None:
        kept[key] = hidden

    return keep


def _editor(edit: Edit, entry: LedgerEntry, copy_: int, copies: int, current: Current) -> Change:
    def change(everything: torch.Tensor) -> torch.Tensor:
        p = current()
        assert p is not None
        hidden = everything.chunk(copies)[copy_]
        entry.fired += 1
        touched = union(p, edit.scopes, hidden) > 0
        delta = edit.delta(hidden, p)
        changed = (hidden.float() + delta).to(hidden.dtype)
        changed = torch.where(touched[..., None], changed, hidden)
        entry.positions += int(touched.sum())
        entry.norm += float((changed - hidden).float().norm(dim=-1).sum())
        entry.wanted += float((delta.norm(dim=-1) * touched).sum())
        if copies == 1:
            return changed
        rows = hidden.shape[0]
        out = everything.clone()
        out[copy_ * rows : (copy_ + 1) * rows] = changed
        return out

    return change
