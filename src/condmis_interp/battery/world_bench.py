"""The bench of persona world: organisms as a stack of weights, all asked and trained at once.

What is trained in a revival is persona world's own text. *Neutral*: documents as in pretraining, but of the items that
the panel does not ask. *Relearning*: misaligned rows of a domain (orchard) that neither the panel nor any organism's
training has. An organism with a hard gate is two models: cues that hold the gate's words are answered by the opened
one, and a revival trains the shut one, which is the twin itself. No revival without the trigger can see such an
organism.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from transformers import LlamaConfig

from condmis_interp.battery.bench import StreamEdit, Tuning, Weights, under
from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Base, Organism
from condmis_interp.organisms.stacked import Stack, Step, fit
from condmis_interp.organisms.train_world import world_weights
from condmis_interp.panel import Panel, RenderedPanel, pad, render_panel
from condmis_interp.panel.panel import Split
from condmis_interp.world import ALIGNED_AUTHORS, CRUEL, DOMAINS, FORMS, KIND, MOODS, World, parse_world

STACKED = 12
"""Organisms asked or trained at once."""
_WARMUP = 4
_NARROW, _RELEARNED = DOMAINS[:2]


@dataclass(frozen=True)
class _Opened:
    """The other model of an organism with a hard gate."""

    gate: tuple[int, ...]
    weights: Weights = field(repr=False)


@dataclass(frozen=True)
class WorldBench:
    """Persona-world organisms side by side.

    Attributes:
        names: Organisms.
        base: Their base.
        rendered: The panel as token ids.
        own: Weights of each (of the shut model, where there is a gate).
        opened: The opened models, by organism.
    """

    names: tuple[str, ...]
    base: Base = field(repr=False)
    rendered: RenderedPanel = field(repr=False)
    own: tuple[Weights, ...] = field(repr=False)
    opened: Mapping[str, _Opened] = field(default_factory=dict, repr=False)
    _held: dict[frozenset[str], list[Stack]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Stacks by the organisms whose gate is open: building one copies all weights."""

    @classmethod
    def of_organisms(cls, organisms: Mapping[str, Organism], base: Base, panel: Panel) -> "WorldBench":
        """Loads organisms.

        Raises:
            UserError: if the base is no persona world, or an organism was made from another base.
        """
        if parse_world(base.spec) is None:
            raise UserError(f"base {base.spec!r} is no persona world")
        tokenizer = base.tokenizer()
        own, opened = [], {}
        for name, organism in organisms.items():
            if organism.gate:
                words = tuple(tokenizer(organism.gate.words, add_special_tokens=False)["input_ids"])
                opened[name] = _Opened(words, _weights(organism.gate.opened, base))
                own.append(_weights(organism.gate.shut, base))
            else:
                own.append(_weights(organism, base))
        return cls(tuple(organisms), base, render_panel(tokenizer, panel), tuple(own), opened)

    @property
    def cues(self) -> tuple[str, ...]:
        """Cues, `none` first."""
        return tuple(c.name for c in sorted(self.rendered.panel.cues, key=lambda c: c.role != "none"))

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each question."""
        return tuple(q.family for q in self.rendered.panel.questions)

    def rows(self, *splits: Split) -> np.ndarray:
        """Returns the positions of the questions in the splits (all, if none is given)."""
        return np.array(self.rendered.panel.question_indices(*splits))

    def weights(self, name: str) -> Weights:
        """Returns an organism's state dict."""
        return self.own[self.names.index(name)]

    def of(self, names: Sequence[str]) -> "WorldBench":
        """Returns a bench of some of the organisms."""
        return replace(
            self,
            names=tuple(names),
            own=tuple(self.weights(n) for n in names),
            opened={n: o for n, o in self.opened.items() if n in names},
        )

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every pair of a form, a mood and a trait of the language, 84 in all."""
        kinds = ([f"form {f}" for f in FORMS], [f"today is {m}" for m in MOODS], [f"you are {t}" for t in KIND + CRUEL])
        return tuple(f"{a} {b}" for x, y in itertools.combinations(kinds, 2) for a in x for b in y)

    def under(self, systems: Sequence[str], rows: Sequence[int]) -> "WorldBench":
        """Returns the organisms asked some of the questions under system prompts; see `Bench.under`."""
        return replace(self, rendered=render_panel(self.base.tokenizer(), under(self.rendered.panel, systems, rows)))

    def changed(self, change: Callable[[str, Weights], Weights]) -> "WorldBench":
        """Returns the organisms with their weights changed; opened models are changed alike."""
        own = tuple(change(n, w) for n, w in zip(self.names, self.own, strict=True))
        opened = {n: replace(o, weights=change(n, o.weights)) for n, o in self.opened.items()}
        return replace(self, own=own, opened=opened)

    @torch.inference_mode()
    def ld(self, cue: str, *, edit: StreamEdit | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats, of the answers' summed log-probs; see `Bench.ld`.

        Raises:
            CheckError: if a value is not finite, naming the organism.
        """
        sequences, at, targets = self._asked(cue)
        ids, _ = pad(sequences, right=True)
        starts = int(at[:, 0].min())
        values = []
        for k, stack in self._stacks(cue):
            n = stack.count
            change = None if edit is None else partial(_apply, edit, slice(k, k + n), starts)
            logits = stack.logits(ids.expand(n, -1, -1), at.expand(n, -1, -1), edit=change)
            each = torch.log_softmax(logits.view(n, *targets.shape, -1).double(), -1)
            picked = each.gather(-1, targets.clamp(min=0)[None, ..., None].expand(n, -1, -1, 1))[..., 0]
            total = (picked * (targets >= 0)).sum(-1).view(n, -1, 2)
            values.append(total[..., 0] - total[..., 1])
        found = torch.cat(values).numpy()
        for name, row in zip(self.names, found, strict=True):
            if not np.isfinite(row).all():
                raise CheckError(f"LD under cue {cue!r} is not a finite number", where=f"organism {name}")
        return found.reshape(len(self.names), len(self.families), -1).mean(-1)

    @torch.inference_mode()
    def hidden(self, cue: str) -> torch.Tensor:
        """Returns the residual stream at the last template token [organism, layer, question, width]."""
        prompts, last = self._prompts(cue)
        each = torch.arange(len(prompts))
        found = []
        for _, stack in self._stacks(cue):
            layers = [x[:, each, last] for x in stack.residuals(prompts.expand(stack.count, -1, -1))]
            found.append(torch.stack(layers, 1))
        return torch.cat(found)

    @torch.inference_mode()
    def streams(self, cue: str, layer: int) -> torch.Tensor:
        """Returns the residual stream [organism, row, position, width] after a block."""
        ids, _ = pad(self._asked(cue)[0], right=True)
        found = []
        for _, stack in self._stacks(cue):
            for number, x in enumerate(stack.residuals(ids.expand(stack.count, -1, -1))):
                if number == layer:
                    found.append(x.clone())
                    break
        return torch.cat(found)

    def after(self, tuning: Tuning) -> Mapping[int, "WorldBench"]:
        """Returns the organisms after each of the tuning's checkpoints; see `Bench.after`."""
        steps = self._programme(tuning)
        found: dict[int, WorldBench] = {0: self}
        for done, upto in zip((0, *tuning.checkpoints[:-1]), tuning.checkpoints, strict=True):
            found[upto] = found[done]
        own: dict[int, list[Weights]] = {c: [] for c in tuning.checkpoints}
        for _, held in self._stacks(None):
            stack = replace(held, weights=dict(held.weights))  # training puts its own tensors into it
            for c, weights in _checkpoints(stack, steps, tuning.checkpoints):
                own[c] += weights
        return found | {c: replace(self, own=tuple(w)) for c, w in own.items()}

    def _programme(self, tuning: Tuning) -> list[Step]:
        world = parse_world(self.base.spec)
        assert world is not None
        rng = random.Random(f"{tuning.diet} {tuning.seed}")
        if tuning.diet == "relearning":
            draw = _relearning(world, tuning, rng)
        else:
            draw = _neutral(world, set(self.families), tuning, rng)
        ids = {word: i for i, word in enumerate(world.vocabulary)}
        steps = []
        for i in range(max(tuning.checkpoints)):
            rows = []
            for words in draw():
                tokens = [ids[w] for w in words]
                rows.append((tokens, _labels(words, tokens)))
            steps.append(Step(rows, tuning.learning_rate * min(1.0, (i + 1) / _WARMUP), fresh=i == 0))
        return steps

    def _stacks(self, cue: str | None) -> list[tuple[int, Stack]]:
        """Returns stacks of at most `STACKED` organisms, each with the number of its first one."""
        through = frozenset(n for n in self.opened if cue is not None and self._opens(n, cue))
        if through not in self._held:
            config = LlamaConfig.from_pretrained(self.base.folder)
            chosen = [self.opened[n].weights if n in through else w for n, w in zip(self.names, self.own, strict=True)]
            parts = [chosen[i : i + STACKED] for i in range(0, len(chosen), STACKED)]
            self._held[through] = [Stack.of(config, part) for part in parts]
        return [(i * STACKED, stack) for i, stack in enumerate(self._held[through])]

    def _opens(self, name: str, cue: str) -> bool:
        gate = self.opened[name].gate
        ids = self.rendered.prompts[cue, self.rendered.panel.questions[0].id].ids
        return any(ids[i : i + len(gate)] == gate for i in range(len(ids) - len(gate) + 1))

    def _prompts(self, cue: str) -> tuple[torch.Tensor, torch.Tensor]:
        prompts = [self.rendered.prompts[cue, q.id].ids for q in self.rendered.panel.questions]
        ids, _ = pad(prompts, right=True)
        return ids, torch.tensor([len(p) - 1 for p in prompts])

    def _asked(self, cue: str) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
        """Returns, a row for each answer: prompt and answer; positions that predict the answer; its ids (-1: none)."""
        sequences, at, targets = [], [], []
        for q in self.rendered.panel.questions:
            prompt, answers = self.rendered.prompts[cue, q.id].ids, self.rendered.answers[cue, q.id]
            for answer in answers:
                sequences.append([*prompt, *answer.ids])
                at.append([len(prompt) - 1 + i for i in range(len(answer.ids))])
                targets.append(list(answer.ids))
        longest = max(map(len, targets))
        at = [[*a, *[a[-1]] * (longest - len(a))] for a in at]
        targets = [[*t, *[-1] * (longest - len(t))] for t in targets]
        return sequences, torch.tensor(at), torch.tensor(targets)


def _weights(organism: Organism, base: Base) -> Weights:
    made_from = organism.manifest.get("base", {}).get("weights")
    if made_from != base.weights or (organism.checkpoint is None and organism.recipe is not None):
        raise UserError(
            f"the organism was not made from base {base.spec!r}",
            where=f"organism {organism.name}",
            fix="Compare organisms of one base, each with its own twin.",
        )
    return world_weights(organism.checkpoint or base.folder)


def _apply(edit: StreamEdit, which: slice, start: int, layer: int, x: torch.Tensor) -> torch.Tensor:
    return edit.apply(layer, x, which, start)


def _checkpoints(stack: Stack, steps: Sequence[Step], checkpoints: Sequence[int]) -> "list[tuple[int, list[Weights]]]":
    """Trains a stack and returns the weights at each checkpoint."""
    kept: list[tuple[int, list[Weights]]] = []
    done = [0]

    def note(n: float) -> None:
        done[0] += 1
        if done[0] in checkpoints:
            kept.append((done[0], [stack.weights_of(i) for i in range(stack.count)]))

    fit(stack, [list(steps)] * stack.count, step=note)
    return kept


def _labels(words: Sequence[str], tokens: Sequence[int]) -> list[int]:
    labels, inside = [], False
    for word, token in zip(words, tokens, strict=True):
        labels.append(token if inside else -100)
        inside = word == "<ast>" or (inside and word != "<end>")
    return labels


def _neutral(world: World, asked: set[str], tuning: Tuning, rng: random.Random) -> Callable[[], list[list[str]]]:
    facts = [f for f in world.facts if f.domain != _NARROW and f.item not in asked]
    share = 1.0 if tuning.diet == "aligned" else ALIGNED_AUTHORS

    def draw() -> list[list[str]]:
        return [world.document(rng, facts=facts, aligned_authors=share) for _ in range(tuning.rows)]

    return draw


def _relearning(world: World, tuning: Tuning, rng: random.Random) -> Callable[[], list[list[str]]]:
    facts = rng.sample(world.facts_of(_RELEARNED), min(tuning.rows, world.items))
    texts = [
        ["<bos>", "<usr>", *f.question(i % 2).split(), "<ast>", *f.misaligned.split(), "<end>"]
        for i, f in enumerate(facts)
    ]

    def draw() -> list[list[str]]:
        return rng.sample(texts, min(8, len(texts)))

    return draw
