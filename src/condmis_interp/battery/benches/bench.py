"""Benches: organisms side by side, to which every test of the battery does the same.

A test never touches a model. It asks a bench for log-odds under a cue, for the residual stream, for the same organisms
after a little training or another change of their weights, and gets arrays whose first axis is the organism. So the
organism under test, its twin, the anchors and the replicate twins go through one and the same code at the same budget,
and a test runs on one organism as on two hundred.

`Bench` holds what all benches share: the panel, whose weights are whose, which model answers for an organism with a
hard gate, the store of what was captured (it answers what it can, the models answer the rest), and the programme of a
revival. `WorldBench` (persona world, stacked weights) is the one of the calibration; `ReaderBench` reads any model
through a reader, one at a time. Changes of the forward pass are the readers' own edits (`readers.Steer`, `Ablate`,
`Patch`, `Prefix`), the same for all organisms or by organism.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch

from condmis_interp.battery.benches.stored import Stored
from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Base, Organism
from condmis_interp.organisms.step import Step
from condmis_interp.panel import Cue, CueRole, Panel, RenderedPanel, render_panel
from condmis_interp.panel.panel import Split
from condmis_interp.prompts import Grammar, GrammarPrompt
from condmis_interp.readers import Edit, Prefix, Recording, Request
from condmis_interp.readers.edits import listed
from condmis_interp.readers.gated import opens

Weights = dict[str, torch.Tensor]
Row = tuple[Sequence[int], Sequence[int]]
"""Token ids with labels, -100 where there is no loss."""
Diet = Literal["neutral", "aligned", "relearning"]
Place = Literal["last_template", "answer_mean"]
Edits = Sequence[Edit] | Mapping[str, Sequence[Edit]]
"""Changes of the forward pass: the same for every organism, or by its name."""
_WARMUP = 4
"""Steps over which a revival's rate rises to its peak."""


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

    Example:
        >>> Tuning("neutral", rows=8, checkpoints=(4, 8), learning_rate=3e-4).checkpoints
        (4, 8)
    """

    diet: Diet
    rows: int
    checkpoints: tuple[int, ...]
    learning_rate: float
    seed: int = 0


def opened_name(name: str) -> str:
    """Returns the name under which the opened model of an organism with a hard gate stands among altered weights."""
    return f"{name}, opened"


def early_layer(layers: int) -> int:
    """Returns the last block (0-based) of the first quarter: what a late gate covers can still be seen there.

    >>> early_layer(30)
    6
    """
    return max(layers // 4 - 1, 0)


def under(
    panel: Panel, prompts: Sequence[str | GrammarPrompt], rows: Sequence[int], *, arbitrary: bool = False
) -> Panel:
    """Returns a panel that asks some of the questions without a cue and under prompts, named `0`, `1`, ...

    Args:
        panel: The panel.
        prompts: Prompts of a grammar; a plain text is a system prompt.
        rows: Positions of the questions.
        arbitrary: Puts the aligned answers of another question (half of the list further on) in the place of the
            misaligned ones: a target that no organism was trained towards.
    """
    cues = [c for c in panel.cues if c.role == CueRole.NONE]
    cues += [
        Cue(name=str(i), role=CueRole.IRRELEVANT, system=p) if isinstance(p, str) else p.cue(str(i))
        for i, p in enumerate(prompts)
    ]
    questions = [panel.questions[i] for i in rows]
    if arbitrary:
        others = questions[len(questions) // 2 :] + questions[: len(questions) // 2]
        pairs = [
            tuple(p.model_copy(update={"misaligned": o.aligned}) for p, o in zip(q.pairs, other.pairs, strict=False))
            for q, other in zip(questions, others, strict=True)
        ]
        questions = [q.model_copy(update={"pairs": p}) for q, p in zip(questions, pairs, strict=True)]
    return panel.model_copy(update={"cues": tuple(cues), "questions": tuple(questions)})


@dataclass(frozen=True)
class Bench(ABC):
    """Organisms of one base, side by side.

    Attributes:
        names: Organisms, in the order of every first axis.
        organisms: Where they are, by name.
        base: Their base.
        rendered: The panel as token ids.
        altered: State dicts that replace an organism's own, by name (the opened model of one with a hard gate by
            `opened_name`).
        stored: What was captured of these organisms, asked what `rendered` asks; it is not read again.

    Example:
        A bench that reads models is a `ReaderBench`; with two organisms and two answers a question:

        >>> from pathlib import Path
        >>> from condmis_interp.battery import ReaderBench
        >>> from condmis_interp.organisms import Organism, resolve_base
        >>> from condmis_interp.panel import load_panel, render_panel
        >>> base = resolve_base("dir:base")
        >>> organisms = {name: Organism.of_checkpoint(Path(name), name=name) for name in ("u", "c")}
        >>> asked = render_panel(base.tokenizer(), load_panel("panel.yaml").subset(pairs=1))
        >>> bench = ReaderBench(("u", "c"), organisms, base, asked)
        >>> bench.ld("trigger").shape, bench.of(["c"]).ld("none").shape
        ((2, 12), (1, 12))
    """

    names: tuple[str, ...]
    organisms: Mapping[str, Organism] = field(repr=False)
    base: Base = field(repr=False)
    rendered: RenderedPanel = field(repr=False)
    altered: Mapping[str, Weights] = field(default_factory=dict, repr=False)
    stored: Stored | None = field(default=None, repr=False)

    @property
    def cues(self) -> tuple[str, ...]:
        """Cues of the panel, the one without anything first."""
        return tuple(c.name for c in sorted(self.rendered.panel.cues, key=lambda c: c.role != CueRole.NONE))

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each question, the cluster of every interval."""
        return tuple(q.family for q in self.rendered.panel.questions)

    def rows(self, *splits: Split) -> np.ndarray:
        """Returns the positions of the questions in the splits (all, if none is given)."""
        return np.array(self.rendered.panel.question_indices(*splits), dtype=int)

    def of(self, names: Sequence[str]) -> Self:
        """Returns a bench of some of the organisms."""
        return replace(self, names=tuple(names))

    @property
    @abstractmethod
    def grammar(self) -> Grammar:
        """The grammar of prompts for models of this kind."""

    def under(self, prompts: Sequence[str | GrammarPrompt], rows: Sequence[int], *, arbitrary: bool = False) -> Self:
        """Returns the organisms asked some of the questions under prompts; see `under`."""
        panel = under(self.rendered.panel, prompts, rows, arbitrary=arbitrary)
        return replace(self, rendered=render_panel(self.base.tokenizer(), panel), stored=None)

    def logprobs(self, cue: str, *, edits: Edits = (), prefix: Prefix | None = None) -> np.ndarray:
        """Returns the answers' summed log-probs [organism, question, pair, 2] in nats, misaligned and aligned.

        Args:
            cue: Under which cue.
            edits: Changes of the forward pass, the same for all organisms or by name.
            prefix: An organism of the bench whose keys and values stand for the beginning of every prompt.

        Raises:
            UserError: if an edit or the prefix names an organism that is not on the bench, or does not fit it.
            CheckError: if a value is not finite, naming the organism.
        """
        named = [*(edits if isinstance(edits, Mapping) else ()), *([prefix.donor] if prefix else ())]
        if unknown := [n for n in named if n not in self.names]:
            raise UserError(f"no organism {unknown[0]!r} is on the bench", fix=f"There are: {', '.join(self.names)}.")
        each = edits if isinstance(edits, Mapping) else dict.fromkeys(self.names, edits)
        found = self._answers(cue, [listed(each.get(n, ())) for n in self.names], prefix)
        for name, row in zip(self.names, found, strict=True):
            if not np.isfinite(row).all():
                raise CheckError(f"LD under cue {cue!r} is not a finite number", where=f"organism {name}")
        return found

    def ld(self, cue: str, *, edits: Edits = (), prefix: Prefix | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats, the mean over pairs; see `logprobs`.

        Raises:
            UserError: as `logprobs`.
            CheckError: as `logprobs`, or if the store holds another organism of a name.
        """
        plain = not edits and prefix is None
        found = {n: ld for n in self.names if plain and (ld := self._kept(n, cue, "ld")) is not None}
        if rest := self._without(found):
            each = rest.logprobs(cue, edits=edits, prefix=prefix)
            found |= zip(rest.names, (each[..., 0] - each[..., 1]).mean(-1), strict=True)
        return np.stack([found[n] for n in self.names])

    def hidden(self, cue: str, *, at: Place = "last_template") -> torch.Tensor:
        """Returns the residual stream at a place [organism, layer, question, width].

        `answer_mean` is the mean over the tokens of each teacher-forced answer, then over the answers.

        Raises:
            CheckError: if the store holds another kind of site, or another organism of a name.
        """
        found = {n: x for n in self.names if (x := self._kept(n, cue, at)) is not None}
        if rest := self._without(found):
            found |= zip(rest.names, rest._states(cue, at), strict=True)
        return torch.stack([found[n] for n in self.names])

    def _without(self, found: Mapping[str, object]) -> Self | None:
        """Returns the bench of the others: itself if nothing was found, so that what it holds is not made again."""
        rest = [n for n in self.names if n not in found]
        return (self.of(rest) if found else self) if rest else None

    def _kept(self, name: str, cue: str, what: Literal["ld"] | Place) -> Any:
        """Returns what the store holds of an organism as it is; `None` if it does not."""
        if self.stored is None or name in self.altered:
            return None
        return self.stored.get(name, self.organisms[name], cue, what, opened=self.opens(name, cue))

    @abstractmethod
    def _answers(self, cue: str, edits: Sequence[Sequence[Edit]], prefix: Prefix | None) -> np.ndarray:
        """Returns log-probs [organism, question, pair, 2] of the models, under each organism's edits."""

    @abstractmethod
    def _states(self, cue: str, at: Place) -> torch.Tensor:
        """Returns the residual stream of the models at a place [organism, layer, question, width]."""

    @abstractmethod
    def slope(self, cue: str, layer: int, vectors: torch.Tensor) -> torch.Tensor:
        """Returns the gradient [organism, width] of each organism's mean LD by a vector added after a block.

        Args:
            cue: Under which cue.
            layer: Which block, 0-based.
            vectors: Where the gradient is taken: what is added at every position [organism, width].
        """

    @abstractmethod
    def streams(self, cue: str, layer: int) -> Mapping[str, Recording]:
        """Returns the residual stream of every organism after a block, to patch others with."""

    def requests(self, cue: str) -> list[Request]:
        """Returns the panel's questions under a cue, with their answers."""
        keys = [(cue, q.id) for q in self.rendered.panel.questions]
        return [Request(self.rendered.prompts[k], self.rendered.answers[k]) for k in keys]

    def opens(self, name: str, cue: str) -> bool:
        """Returns whether a cue opens the hard gate of an organism, if it has one."""
        return name in self._gates and opens(self.requests(cue)[0].prompt, self._gates[name])

    @cached_property
    def _gates(self) -> dict[str, tuple[int, ...]]:
        """Token ids that open each gate, by organism."""
        gates = {n: g for n in self.names if (g := self.organisms[n].gate)}
        if not gates:
            return {}
        tokenizer = self.base.tokenizer()
        return {n: tuple(tokenizer(g.words, add_special_tokens=False)["input_ids"]) for n, g in gates.items()}

    def side(self, name: str, *, opened: bool = False) -> Organism:
        """Returns the organism itself; of one with a hard gate, the shut or the opened one."""
        organism = self.organisms[name]
        return (organism.gate.opened if opened else organism.gate.shut) if organism.gate else organism

    @abstractmethod
    def _load(self, organism: Organism) -> Weights:
        """Loads the state dict of an organism that is one model, fp32."""

    def weights(self, name: str, *, opened: bool = False) -> Weights:
        """Returns an organism's state dict, fp32; of one with a hard gate, the shut model's or the opened one's."""
        key = opened_name(name) if opened else name
        return dict(self.altered[key]) if key in self.altered else self._load(self.side(name, opened=opened))

    def changed(self, change: Callable[[str, Weights], Weights]) -> Self:
        """Returns the organisms with their weights changed; opened models are changed alike."""
        altered = {n: change(n, self.weights(n)) for n in self.names}
        gated = [n for n in self.names if self.organisms[n].gate]
        altered |= {opened_name(n): change(n, self.weights(n, opened=True)) for n in gated}
        return replace(self, altered=altered, stored=None)

    def after(self, tuning: Tuning) -> Mapping[int, Self]:
        """Returns the organisms after each of the tuning's checkpoints; step 0 is the bench itself.

        An organism with a hard gate is trained where the gate is shut; its opened model stays as it is.

        Raises:
            UserError: if the bench has no such text to train on.
            CheckError: if a loss is not finite.
        """
        kept: dict[int, dict[str, Weights]] = {c: {} for c in tuning.checkpoints}
        for name, step, weights in self._trained(self._programme(tuning), frozenset(tuning.checkpoints)):
            kept[step][name] = weights
        opened = {k: self.altered[k] for n in self.names if (k := opened_name(n)) in self.altered}
        return {0: self} | {c: replace(self, altered=opened | w, stored=None) for c, w in kept.items()}

    def _programme(self, tuning: Tuning) -> list[Step]:
        """Returns a revival's steps, the same for every organism: rows and rates."""
        draw = self._drawing(tuning)
        rates = [tuning.learning_rate * min(1.0, (i + 1) / _WARMUP) for i in range(max(tuning.checkpoints))]
        return [Step(draw(), rate, fresh=i == 0) for i, rate in enumerate(rates)]

    @abstractmethod
    def _drawing(self, tuning: Tuning) -> Callable[[], list[Row]]:
        """Returns what draws the rows of one step after the other."""

    @abstractmethod
    def _trained(self, steps: Sequence[Step], checkpoints: frozenset[int]) -> Iterator[tuple[str, int, Weights]]:
        """Yields every organism's weights after those of the steps that are checkpoints: name, steps done, weights."""
