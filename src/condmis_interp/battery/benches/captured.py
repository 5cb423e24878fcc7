"""A bench over what a run has read already: the panel's cells come from its store, everything else from a live bench.

A1, A2 and R1 need nothing but LD in every cell and the state at the last template token without a cue; both are in the
store, so these tests cost no pass. An organism with a hard gate is in no cell of its own: its cells are those of the
two models it is, which the store has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from condmis_interp.battery.benches.bench import Bench, Borrowed, Place, Steered, StreamEdit, Tuning, Weights
from condmis_interp.errors import CheckError
from condmis_interp.panel import CueRole, RenderedPanel
from condmis_interp.panel.panel import Split
from condmis_interp.store import Activations

Checkpoint = tuple[str, int]
"""Organism and seed, as in the store."""


@dataclass(frozen=True)
class Gated:
    """Whose cells an organism with a hard gate has.

    Attributes:
        opened: Who answers under the cues that open it.
        shut: Who answers under the others.
        cues: The cues that open it.
    """

    opened: Checkpoint
    shut: Checkpoint
    cues: frozenset[str]

    def under(self, cue: str) -> Checkpoint:
        """Returns who answers under a cue."""
        return self.opened if cue in self.cues else self.shut


@dataclass(frozen=True)
class CapturedBench:
    """Organisms whose cells are in a store.

    Attributes:
        cells: Whose cells each organism of the bench has; its names are the bench's.
        acts: The store.
        rendered: The panel as token ids.
        live: Makes a bench of the same organisms, by the names it is given, for what the store does not hold.
    """

    cells: Mapping[str, Checkpoint | Gated]
    acts: Activations = field(repr=False)
    rendered: RenderedPanel = field(repr=False)
    live: Callable[[tuple[str, ...]], Bench] = field(repr=False)

    @cached_property
    def _live(self) -> Bench:
        return self.live(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Organisms."""
        return tuple(self.cells)

    @property
    def cues(self) -> tuple[str, ...]:
        """Cues, the one without anything first."""
        return tuple(c.name for c in sorted(self.rendered.panel.cues, key=lambda c: c.role != CueRole.NONE))

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each question."""
        return tuple(q.family for q in self.rendered.panel.questions)

    def rows(self, *splits: Split) -> np.ndarray:
        """Returns the positions of the questions in the splits (all, if none is given)."""
        return np.array(self.rendered.panel.question_indices(*splits), dtype=int)

    def of(self, names: Sequence[str]) -> "CapturedBench":
        """Returns a bench of some of the organisms."""
        return replace(self, cells={n: self.cells[n] for n in names})

    def logprobs(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """See `Bench.logprobs`; from the live bench."""
        return self._live.logprobs(cue, edit=edit, prefix=prefix)

    def ld(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats; from the live bench if anything is changed. See `Bench.ld`."""
        if edit is not None or prefix is not None:
            return self._live.ld(cue, edit=edit, prefix=prefix)
        found = []
        for name in self.names:
            organism, seed = self._who(name, cue)
            found.append(self.acts.ld(organism, cue, seed=seed))
        return np.stack(found)

    def slope(self, cue: str, push: Steered) -> torch.Tensor:
        """See `Bench.slope`; from the live bench."""
        return self._live.slope(cue, push)

    def hidden(self, cue: str, *, at: Place = "last_template") -> torch.Tensor:
        """Returns the residual stream at a place [organism, layer, question, width]; see `Bench.hidden`.

        Raises:
            CheckError: if the store holds another kind of site.
        """
        if self.acts.kind != "resid_post":
            raise CheckError(f"the state is read at resid_post, and the store holds {self.acts.kind}")
        found = []
        for name in self.names:
            organism, seed = self._who(name, cue)
            chosen = self.acts.select(organism=organism, cue=cue, position=at, seed=seed)
            found.append(chosen.torch().transpose(0, 1))
        return torch.stack(found)

    def _who(self, name: str, cue: str) -> Checkpoint:
        cell = self.cells[name]
        return cell.under(cue) if isinstance(cell, Gated) else cell

    def streams(self, cue: str, layer: int) -> Any:
        """See `Bench.streams`; from the live bench."""
        return self._live.streams(cue, layer)

    def weights(self, name: str) -> Weights:
        """See `Bench.weights`; from the live bench."""
        return self._live.weights(name)

    def changed(self, change: Callable[[str, Weights], Weights]) -> Bench:
        """See `Bench.changed`; from the live bench."""
        return self._live.changed(change)

    def after(self, tuning: Tuning) -> Mapping[int, Bench]:
        """See `Bench.after`; from the live bench."""
        return self._live.after(tuning)

    @property
    def prompts(self) -> tuple[str, ...]:
        """See `Bench.prompts`; from the live bench."""
        return self._live.prompts

    def under(self, systems: Sequence[str], rows: Sequence[int], *, arbitrary: bool = False) -> Bench:
        """See `Bench.under`; from the live bench."""
        return self._live.under(systems, rows, arbitrary=arbitrary)
