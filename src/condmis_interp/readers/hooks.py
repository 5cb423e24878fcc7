"""Hooks: a change at a site of a PyTorch model; an edit or an observer as such a change, with its ledger entry."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from condmis_interp.readers.batching import Pass
from condmis_interp.readers.edits import Edit, union
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.sites import Site, unwrap

Change = Callable[[torch.Tensor], torch.Tensor | None]
"""What a hook does with the states at its site: returns others, or nothing to leave them."""
Current = Callable[[], Pass | None]
"""The pass that is being run."""


def hook(module: nn.Module, site: Site, change: Change) -> RemovableHandle:
    """Hooks a change to the module that holds a site (`sites.module_of`); gradients flow through it.

    Args:
        module: The module.
        site: `resid_pre` is the module's input, every other kind its output.
        change: Given the states [rows, position, width]; `None` leaves them.
    """

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        hidden = change(unwrap(args[0] if args else kwargs["hidden_states"]))
        if hidden is None:
            return None
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def after(_: Any, __: Any, output: Any) -> Any:
        hidden = change(unwrap(output))
        if hidden is None:
            return None
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    if site.kind == "resid_pre":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


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
