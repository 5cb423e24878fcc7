"""What a store holds of a bench's organisms: cells that were captured once and need not be read again.

A1, A2 and R1 need nothing but LD in every cell and the state at the last template token without a cue; where both are
in a store, these tests cost no pass. An organism with a hard gate needs no cell of its own: its cells are those of the
two models it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from condmis_interp.errors import CheckError
from condmis_interp.organisms import Organism
from condmis_interp.store import Activations

Checkpoint = tuple[str, int]
"""Organism and seed, as in the store."""


@dataclass(frozen=True)
class Gated:
    """Whose cells an organism with a hard gate has.

    Attributes:
        opened: Who answers under the cues that open it.
        shut: Who answers under the others.

    Example:
        >>> Gated(("u", 1), ("uc", 1)).shut
        ('uc', 1)
    """

    opened: Checkpoint
    shut: Checkpoint


@dataclass(frozen=True)
class Stored:
    """A store, and whose cells in it each organism of a bench has.

    Attributes:
        acts: The store.
        cells: By the organism's name on the bench; one that is not named has its own, of seed 0.

    Example:
        >>> acts = Activations.open("runs/mine/activations")
        >>> stored = Stored(acts, {"u": ("unmitigated", 0), "gated": Gated(("unmitigated", 0), ("mixed-twin", 0))})
        >>> stored.cells["gated"].opened
        ('unmitigated', 0)
    """

    acts: Activations = field(repr=False)
    cells: Mapping[str, Checkpoint | Gated] = field(default_factory=dict)

    def get(self, name: str, organism: Organism, cue: str, what: str, *, opened: bool) -> Any:
        """Returns what is held of an organism under a cue; `None` if it is not there.

        Args:
            name: Its name on the bench.
            organism: The organism, to see that the cell is its own.
            cue: Under which cue.
            what: `ld` for LD [question] in nats, else a position, for the stream there [layer, question, width].
            opened: Whether the cue opens its gate, if it has one.

        Raises:
            CheckError: if the cell is of an organism with other weights, or of another kind of site.
        """
        cell = self.cells.get(name, (name, 0))
        if isinstance(cell, Gated):
            assert organism.gate is not None
            cell, organism = (cell.opened, organism.gate.opened) if opened else (cell.shut, organism.gate.shut)
        who, seed = cell
        manifest = self.acts.shards.manifest
        if (who, seed, cue) not in manifest.cells:
            return None
        if manifest.weights[f"{who}.s{seed}"] != organism.weights:
            raise CheckError("the store holds another organism of this name", where=f"organism {name}")
        if what == "ld":
            ld = self.acts.ld(who, cue, seed=seed)
            return None if np.isnan(ld).all() else ld  # a cell that was captured without answers
        if self.acts.kind != "resid_post":
            raise CheckError(f"the state is read at resid_post, and the store holds {self.acts.kind}")
        if what not in manifest.positions:
            return None
        return self.acts.select(organism=who, cue=cue, position=what, seed=seed).torch().transpose(0, 1)
