"""Benches: organisms side by side, to which every test of the battery does the same.

A test never touches a model. It asks a bench for log-odds under a cue, for the residual stream, for the same organisms
after a little training or another change of their weights, and gets arrays whose first axis is the organism. So the
organism under test, its twin, the anchors and the replicate twins go through one and the same code at the same budget,
and a test runs on one organism as on two hundred.

`WorldBench` (persona world, stacked weights) is the one of the calibration; `ReaderBench` reads any model through a
reader, one at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from condmis_interp.panel import Cue, CueRole, Panel
from condmis_interp.panel.panel import Split

Weights = dict[str, torch.Tensor]
Diet = Literal["neutral", "aligned", "relearning"]


@dataclass(frozen=True)
class Tuning:
    """A small training that tries to bring something back.

    Attributes:
        diet: `neutral` is text in which nothing misaligned is asked for and no question of the panel occurs;
            `relearning` are misaligned rows of a narrow domain that no organism was trained on.
        rows: Distinct rows (relearning), or rows in a batch (neutral, where no row comes twice).
        checkpoints: Steps after which LD is read, ascending.
        learning_rate: Peak of the rate; it is constant after a short warm-up.
        seed: Seed of the rows and their order, the same for every organism.
    """

    diet: Diet
    rows: int
    checkpoints: tuple[int, ...]
    learning_rate: float
    seed: int = 0


class StreamEdit(Protocol):
    """A change of the residual stream at the end of blocks, of all organisms of a bench at once."""

    def apply(self, layer: int, x: torch.Tensor, which: slice, start: int) -> torch.Tensor:
        """Returns the stream that goes on.

        Args:
            layer: After which block.
            x: [organism, row, position, width], of some of the bench's organisms.
            which: Which of them.
            start: Position of the last template token (the smallest over rows).
        """
        ...


@dataclass(frozen=True)
class Patched:
    """Replaces the stream after a block by a donor's, at the last template token and the answer's tokens.

    Attributes:
        layer: Which block, 0-based.
        values: What a bench's `streams` gave: on persona world's [organism, row, position, width], else a recording
            each. One donor may stand for all.
    """

    layer: int
    values: Any

    def apply(self, layer: int, x: torch.Tensor, which: slice, start: int) -> torch.Tensor:
        """See `StreamEdit.apply`."""
        if layer != self.layer:
            return x
        donor = self.values[which] if len(self.values) > 1 else self.values
        return torch.cat([x[:, :, :start], donor[:, :, start:].expand(len(x), -1, -1, -1)], 2)


@dataclass(frozen=True)
class Steered:
    """Adds a vector after a block at every position.

    Attributes:
        layer: Which block, 0-based.
        vector: [width], in activation units.
    """

    layer: int
    vector: torch.Tensor

    def apply(self, layer: int, x: torch.Tensor, which: slice, start: int) -> torch.Tensor:
        """See `StreamEdit.apply`."""
        return x + self.vector if layer == self.layer else x


@dataclass(frozen=True)
class Pinned:
    """Sets the coordinates in a subspace, from the last template token on, at every layer that is given.

    Attributes:
        basis: Orthonormal rows [k, width] by layer.
        target: Coordinates [k] by layer.
    """

    basis: Mapping[int, torch.Tensor]
    target: Mapping[int, torch.Tensor]

    def apply(self, layer: int, x: torch.Tensor, which: slice, start: int) -> torch.Tensor:
        """See `StreamEdit.apply`."""
        if layer not in self.basis:
            return x
        basis = self.basis[layer]
        tail = x[:, :, start:]
        tail = tail + (self.target[layer] - tail @ basis.T) @ basis
        return torch.cat([x[:, :, :start], tail], 2)


def under(panel: Panel, systems: Sequence[str], rows: Sequence[int]) -> Panel:
    """Returns a panel that asks some of the questions without a cue and under system prompts, named `0`, `1`, ..."""
    cues = [c for c in panel.cues if c.role == CueRole.NONE]
    cues += [Cue(name=str(i), role=CueRole.IRRELEVANT, system=s) for i, s in enumerate(systems)]
    return panel.model_copy(update={"cues": tuple(cues), "questions": tuple(panel.questions[i] for i in rows)})


class Bench(Protocol):
    """Organisms of one base, side by side."""

    @property
    def names(self) -> tuple[str, ...]:
        """Organisms, in the order of every first axis."""
        ...

    @property
    def cues(self) -> tuple[str, ...]:
        """Cues of the panel, the one without anything first."""
        ...

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each question, the cluster of every interval."""
        ...

    def rows(self, *splits: Split) -> np.ndarray:
        """Returns the positions of the questions in the splits."""
        ...

    def ld(self, cue: str, *, edit: StreamEdit | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats."""
        ...

    def hidden(self, cue: str) -> torch.Tensor:
        """Returns the residual stream at the last template token [organism, layer, question, width]."""
        ...

    def streams(self, cue: str, layer: int) -> Any:
        """Returns the residual stream of every organism after a block, for `Patched`."""
        ...

    def weights(self, name: str) -> Weights:
        """Returns an organism's state dict."""
        ...

    def changed(self, change: Callable[[str, Weights], Weights]) -> "Bench":
        """Returns the organisms with their weights changed."""
        ...

    def after(self, tuning: Tuning) -> Mapping[int, "Bench"]:
        """Returns the organisms after each of the tuning's checkpoints; step 0 is the bench itself."""
        ...

    @property
    def prompts(self) -> tuple[str, ...]:
        """System prompts that a search for triggers tries, none of them a cue of the panel."""
        ...

    def under(self, systems: Sequence[str], rows: Sequence[int]) -> "Bench":
        """Returns the organisms asked some of the questions under system prompts; the cues are `0`, `1`, ..."""
        ...

    def of(self, names: Sequence[str]) -> "Bench":
        """Returns a bench of some of the organisms."""
        ...
