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

from condmis_interp.errors import UserError
from condmis_interp.panel import Cue, CueRole, Panel
from condmis_interp.panel.panel import Split

Weights = dict[str, torch.Tensor]
Diet = Literal["neutral", "aligned", "relearning"]
Place = Literal["last_template", "answer_mean"]


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
        vector: In activation units: [width], or one for each organism [organism, width].
    """

    layer: int
    vector: torch.Tensor

    def apply(self, layer: int, x: torch.Tensor, which: slice, start: int) -> torch.Tensor:
        """See `StreamEdit.apply`."""
        if layer != self.layer:
            return x
        return x + (self.vector if self.vector.ndim == 1 else self.vector[which][:, None, None])


@dataclass(frozen=True)
class Pinned:
    """Sets the coordinates in a subspace, from the last template token on, at every layer that is given.

    Attributes:
        basis: Orthonormal rows [k, width] by layer.
        target: Coordinates [k] by layer, at the last template token.
        in_answer: Coordinates [k] by layer, at the answer's tokens; `target` by default.
    """

    basis: Mapping[int, torch.Tensor]
    target: Mapping[int, torch.Tensor]
    in_answer: Mapping[int, torch.Tensor] | None = None

    def apply(self, layer: int, x: torch.Tensor, which: slice, start: int) -> torch.Tensor:
        """See `StreamEdit.apply`."""
        if layer not in self.basis:
            return x
        basis = self.basis[layer]
        tail = x[:, :, start:]
        wanted = self.target[layer].expand(tail.shape[2], -1)
        if self.in_answer is not None:
            wanted = torch.cat([wanted[:1], self.in_answer[layer].expand(tail.shape[2] - 1, -1)])
        tail = tail + (wanted - tail @ basis.T) @ basis
        return torch.cat([x[:, :, :start], tail], 2)


@dataclass(frozen=True)
class Borrowed:
    """Keys and values of the beginning of every prompt, taken from one organism by all; its own from there on.

    Attributes:
        donor: Name of the organism on the bench that gives them.
        until: The last span that is taken: the `cue` (with whatever the template puts before it) or the `question`.
    """

    donor: str
    until: Literal["cue", "question"] = "cue"

    def check(self, names: Sequence[str]) -> None:
        """Raises if the donor is not among these organisms.

        Raises:
            UserError: naming it.
        """
        if self.donor not in names:
            raise UserError(f"no organism {self.donor!r} is on the bench to borrow from", fix=", ".join(names))


def early_layer(layers: int) -> int:
    """Returns the last block (0-based) of the first quarter: what a late gate covers can still be seen there."""
    return max(layers // 4 - 1, 0)


def under(panel: Panel, systems: Sequence[str], rows: Sequence[int], *, arbitrary: bool = False) -> Panel:
    """Returns a panel that asks some of the questions without a cue and under system prompts, named `0`, `1`, ...

    Args:
        panel: The panel.
        systems: System prompts.
        rows: Positions of the questions.
        arbitrary: Puts the aligned answers of another question (half of the list further on) in the place of the
            misaligned ones: a target that no organism was trained towards.
    """
    cues = [c for c in panel.cues if c.role == CueRole.NONE]
    cues += [Cue(name=str(i), role=CueRole.IRRELEVANT, system=s) for i, s in enumerate(systems)]
    questions = [panel.questions[i] for i in rows]
    if arbitrary:
        others = questions[len(questions) // 2 :] + questions[: len(questions) // 2]
        pairs = [
            tuple(p.model_copy(update={"misaligned": o.aligned}) for p, o in zip(q.pairs, other.pairs, strict=False))
            for q, other in zip(questions, others, strict=True)
        ]
        questions = [q.model_copy(update={"pairs": p}) for q, p in zip(questions, pairs, strict=True)]
    return panel.model_copy(update={"cues": tuple(cues), "questions": tuple(questions)})


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

    def logprobs(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """Returns the answers' summed log-probs [organism, question, pair, 2] in nats, misaligned and aligned."""
        ...

    def ld(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats, the mean over pairs."""
        ...

    def slope(self, cue: str, push: Steered) -> torch.Tensor:
        """Returns the gradient [organism, width] of each organism's mean LD by the vector it is pushed with."""
        ...

    def hidden(self, cue: str, *, at: Place = "last_template") -> torch.Tensor:
        """Returns the residual stream at a place [organism, layer, question, width].

        `answer_mean` is the mean over the tokens of each teacher-forced answer, then over the answers.
        """
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

    def under(self, systems: Sequence[str], rows: Sequence[int], *, arbitrary: bool = False) -> "Bench":
        """Returns the organisms asked some of the questions under system prompts; see `under`."""
        ...

    def of(self, names: Sequence[str]) -> "Bench":
        """Returns a bench of some of the organisms."""
        ...
