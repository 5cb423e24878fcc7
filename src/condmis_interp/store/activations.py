"""Views over a run's cells: LD and activations by organism, cue, position and split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from condmis_interp.errors import UserError
from condmis_interp.panel.panel import Split
from condmis_interp.readers import SiteKind
from condmis_interp.store.cells import Cell, CellKey, CellStore


@dataclass(frozen=True)
class Activations:
    """The cells of a run, read lazily and verified when first read.

    Attributes:
        store: The cells on disk.
        seeds: Seeds by organism.
        cues: Cue names, in the panel's order.
    """

    store: CellStore
    seeds: Mapping[str, tuple[int, ...]]
    cues: tuple[str, ...]
    _read: dict[CellKey, Cell] = field(default_factory=dict, repr=False)

    def cell(self, organism: str, cue: str, seed: int) -> Cell:
        """Returns one cell."""
        if organism not in self.seeds or cue not in self.cues:
            raise UserError(
                f"there is no cell ({organism!r}, {cue!r})",
                fix=f"Organisms: {', '.join(self.seeds)}. Cues: {', '.join(self.cues)}.",
            )
        key = CellKey(organism, seed, cue)
        if key not in self._read:
            self._read[key] = self.store.read(key)
        return self._read[key]

    @property
    def _any(self) -> Cell:
        organism = next(iter(self.seeds))
        return self.cell(organism, self.cues[0], self.seeds[organism][0])

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers captured, 0-based."""
        return self._any.layers

    @property
    def kind(self) -> SiteKind:
        """Kind of site captured."""
        return self._any.kind

    def rows(self, *splits: Split) -> np.ndarray:
        """Returns the positions of the questions in the given splits (of all, if none is given), [n]."""
        return np.array([i for i, s in enumerate(self._any.splits) if not splits or s in splits])

    def families(self, *splits: Split) -> list[str]:
        """Returns the family of each question in the given splits."""
        return [self._any.families[i] for i in self.rows(*splits)]

    def ld(self, organism: str, cue: str, *splits: Split, seed: int | None = None) -> np.ndarray:
        """Returns LD [n] in nats over the questions of the splits, mean over seeds unless one is named."""
        cells = [self.cell(organism, cue, s) for s in self._seeds(organism, seed)]
        return np.mean([c.ld().numpy()[self.rows(*splits)] for c in cells], axis=0)

    def at(
        self, organism: str, cue: str, *splits: Split, layer: int, position: str, seed: int | None = None
    ) -> torch.Tensor:
        """Returns activations [n, width] (fp32) at one layer, mean over seeds unless one is named.

        Raises:
            UserError: if the layer or position was not captured.
        """
        if layer not in self.layers:
            raise UserError(f"layer {layer} was not captured", fix=f"Layers: {self.layers[0]} to {self.layers[-1]}.")
        cells = [self.cell(organism, cue, s) for s in self._seeds(organism, seed)]
        if position not in cells[0].activations:
            raise UserError(
                f"position {position!r} was not captured", fix=f"Positions: {', '.join(cells[0].activations)}."
            )
        rows = torch.from_numpy(self.rows(*splits))
        j = self.layers.index(layer)
        return torch.stack([c.activations[position][rows, j] for c in cells]).mean(0)

    def _seeds(self, organism: str, seed: int | None) -> tuple[int, ...]:
        if organism not in self.seeds:
            raise UserError(f"there is no organism {organism!r}", fix=f"Organisms: {', '.join(self.seeds)}.")
        return self.seeds[organism] if seed is None else (seed,)

    def to_pandas(self) -> pd.DataFrame:
        """Returns LD as a table: one row for each organism, seed, cue and question."""
        frames = []
        for organism, seeds in self.seeds.items():
            for seed in seeds:
                for cue in self.cues:
                    cell = self.cell(organism, cue, seed)
                    frames.append(
                        pd.DataFrame(
                            {
                                "organism": organism,
                                "seed": seed,
                                "cue": cue,
                                "question": cell.questions,
                                "family": cell.families,
                                "split": cell.splits,
                                "ld": cell.ld().numpy(),
                            }
                        )
                    )
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        organisms = ", ".join(f"{o} x{len(s)}" for o, s in self.seeds.items())
        return (
            f"Activations({organisms}; cues {', '.join(self.cues)}; {len(self.rows())} questions; "
            f"layers {self.layers[0]}-{self.layers[-1]}; {self.store.folder})"
        )
