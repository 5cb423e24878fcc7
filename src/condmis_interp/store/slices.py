"""Lazy slices of a store: which rows, layers and positions, read when they are asked for."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from condmis_interp.readers import Position
from condmis_interp.store.manifest import Cell, Planned
from condmis_interp.store.shards import Shards

if TYPE_CHECKING:
    import polars as pl

FACTS = ("organism", "seed", "cue", "question", "family", "split", "ld")


@dataclass(frozen=True)
class Slice:
    """Some rows of a store at some layers and positions; nothing is read before it is asked for.

    Rows go organism by organism, then seed, cue and question, in the order of the store.

    Attributes:
        shards: The shards on disk.
        cells: Organisms, seeds and cues.
        questions: Numbers of the questions in each cell, ascending [n].
        layers: 0-based layers; an `int` for one, whose axis is left out.
        positions: Positions; a `str` for one, whose axis is left out.

    Example:
        >>> from condmis_interp.store import Activations
        >>> acts = Activations.open("runs/mine/activations")
        >>> found = acts.select(organism="mixed", cue="trigger", layer=2, position="answer_mean")
        >>> found.shape, found.torch().shape
        ((12, 32), torch.Size([12, 32]))
    """

    shards: Shards
    cells: tuple[Cell, ...]
    questions: tuple[int, ...]
    layers: tuple[int, ...] | int
    positions: tuple[Position, ...] | Position

    def __len__(self) -> int:
        return len(self.cells) * len(self.questions)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array: rows, layers (if several), positions (if several), width."""
        axes = (x for x in (self.layers, self.positions) if isinstance(x, tuple))
        return (len(self), *map(len, axes), self.shards.manifest.width)

    def torch(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns the activations [rows, layers, positions, width]; the axis of a single layer or position is left out.

        Args:
            dtype: Dtype of the tensor; a store in bf16 is exact in bf16 and in fp32.
        """
        layers, positions = _several(self.layers), _several(self.positions)
        out = torch.empty(len(self), len(layers), len(positions), self.shards.manifest.width, dtype=dtype)
        for planned, local, at in self._pieces():
            rows = slice(None) if len(local) == planned.count else torch.tensor(local)
            for layer, position, tensor in self.shards.tensors(planned, layers, positions):
                out[at, layers.index(layer), positions.index(position)] = tensor[rows]
        return out.reshape(self.shape)

    def numpy(self) -> np.ndarray:
        """Returns the activations as fp32 (NumPy has no bf16), in the shape of `torch`."""
        return self.torch().numpy()

    def index(self, *columns: str) -> pa.Table:
        """Returns the rows without activations, as an Arrow table (`.to_pandas()`, `polars.from_arrow`).

        Args:
            *columns: Which columns, all by default: organism, seed, cue, question, family, split, ld (nats), logprobs
                (by answer, nats; misaligned and aligned alternate), token_logprobs (by answer, if they were measured),
                prompt_ids, cue_span, question_span, tail_span (half-open), last_template, answer_ids, closing_ids.
        """
        chosen = columns or None
        tables = [self.shards.table(planned, chosen).take(local) for planned, local, _ in self._pieces()]
        return pa.concat_tables(tables or [self.shards.table(self.shards.manifest.shards[0], chosen)[:0]])

    def to_polars(self) -> "pl.DataFrame":
        """Returns a line for each row, layer and position: who was asked what, ld, and the activation (fp32)."""
        import polars as pl  # half a second that only this needs

        layers, positions = _several(self.layers), _several(self.positions)
        values = self.numpy().reshape(-1, self.shards.manifest.width)
        sites = {
            "layer": [layer for layer in layers for _ in positions],
            "position": [position for _ in layers for position in positions],
        }
        facts = pl.DataFrame(self.index(*FACTS))
        long = facts.join(pl.DataFrame(sites), how="cross", maintain_order="left_right")
        return long.with_columns(pl.Series("activation", values))

    def to_pandas(self) -> pd.DataFrame:
        """Returns `to_polars` as pandas; the activation is an array in each row."""
        return self.to_polars().to_pandas()

    def parts(self) -> Iterator["Slice"]:
        """Yields the slice shard by shard, so that a store of any size fits into memory."""
        for planned, local, _ in self._pieces():
            yield replace(self, cells=(planned.cell,), questions=tuple(planned.first + i for i in local))

    def _pieces(self) -> Iterator[tuple[Planned, list[int], slice]]:
        """Yields each shard, which of its rows are wanted, and where they go."""
        start = 0
        for cell in self.cells:
            for planned in self.shards.manifest.cells[cell]:
                first, stop = planned.first, planned.first + planned.count
                wanted = self.questions[bisect_left(self.questions, first) : bisect_left(self.questions, stop)]
                local = [i - first for i in wanted]
                if local:
                    yield planned, local, slice(start, start + len(local))
                    start += len(local)

    def __repr__(self) -> str:
        cells = ", ".join(dict.fromkeys(f"{name}.s{seed}" for name, seed, _ in self.cells))
        cues = ", ".join(dict.fromkeys(cue for *_, cue in self.cells))
        return (
            f"Slice({cells}; cues {cues}; {len(self.questions)} questions; layers {self.layers}; "
            f"positions {self.positions}; shape {self.shape})"
        )


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
