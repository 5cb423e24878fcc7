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

from condmis_interp.battery.benches.bench import Borrowed, Place, Steered, StreamEdit, Tuning, Weights, under
from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Base, Organism
from condmis_interp.panel import Panel, RenderedPanel, pad, render_panel
from condmis_interp.panel.panel import Split
from condmis_interp.personaworld.language import ALIGNED_AUTHORS, CRUEL, DOMAINS, FORMS, KIND, MOODS, World, parse_world
from condmis_interp.personaworld.stacked import KeysEdit, Stack, Step, fit
from condmis_interp.personaworld.train import world_weights

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
class _Asked:
    """A panel under a cue, a row for each answer.

    Attributes:
        sequences: Prompt and answer.
        at: Positions that predict the answer [row, token].
        targets: The answer's token ids [row, token]; -1 where it is shorter.
    """

    sequences: list[list[int]]
    at: torch.Tensor
    targets: torch.Tensor


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

    def under(self, systems: Sequence[str], rows: Sequence[int], *, arbitrary: bool = False) -> "WorldBench":
        """Returns the organisms asked some of the questions under system prompts; see `Bench.under`."""
        panel = under(self.rendered.panel, systems, rows, arbitrary=arbitrary)
        return replace(self, rendered=render_panel(self.base.tokenizer(), panel))

    def changed(self, change: Callable[[str, Weights], Weights]) -> "WorldBench":
        """Returns the organisms with their weights changed; opened models are changed alike."""
        own = tuple(change(n, w) for n, w in zip(self.names, self.own, strict=True))
        opened = {n: replace(o, weights=change(n, o.weights)) for n, o in self.opened.items()}
        return replace(self, own=own, opened=opened)

    @torch.no_grad()
    def logprobs(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """Returns the answers' summed log-probs [organism, question, pair, 2] in nats; see `Bench.logprobs`.

        Raises:
            CheckError: if a value is not finite, naming the organism.
        """
        asked = self._asked(cue)
        keys = None if prefix is None else self._borrowed(cue, asked, prefix)
        found = torch.cat([_answered(stack, asked, edit, k, keys) for k, stack in self._stacks(cue)]).numpy()
        for name, row in zip(self.names, found, strict=True):
            if not np.isfinite(row).all():
                raise CheckError(f"LD under cue {cue!r} is not a finite number", where=f"organism {name}")
        return found.reshape(len(self.names), len(self.families), -1, 2)

    def ld(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats; see `Bench.ld`.

        Raises:
            CheckError: if a value is not finite, naming the organism.
        """
        found = self.logprobs(cue, edit=edit, prefix=prefix)
        return (found[..., 0] - found[..., 1]).mean(-1)

    def slope(self, cue: str, push: Steered) -> torch.Tensor:
        """Returns the gradient of each organism's mean LD by its vector [organism, width]; see `Bench.slope`."""
        asked, vector = self._asked(cue), push.vector.detach().clone().requires_grad_()
        with torch.enable_grad():
            for k, stack in self._stacks(cue):
                found = _answered(stack, asked, Steered(push.layer, vector), k)
                (found[..., 0] - found[..., 1]).mean(1).sum().backward()
        assert vector.grad is not None
        return vector.grad

    @torch.no_grad()
    def hidden(self, cue: str, *, at: Place = "last_template") -> torch.Tensor:
        """Returns the residual stream at a place [organism, layer, question, width]; see `Bench.hidden`."""
        asked = self._asked(cue)
        if at == "last_template":
            ids, last = self._prompts(cue)
            weight = torch.nn.functional.one_hot(last, ids.shape[1])[:, None].float()
        else:
            ids, _ = pad(asked.sequences, right=True)
            weight = torch.zeros(ids.shape)
            for row, (first, own) in enumerate(zip(asked.at[:, 0].tolist(), asked.sequences, strict=True)):
                weight[row, first + 1 : len(own)] = 1 / (len(own) - first - 1)
            weight = weight.view(len(self.families), -1, ids.shape[1])
            weight = weight / weight.shape[1]
        found = []
        for _, stack in self._stacks(cue):
            layers = [
                torch.einsum("nqatd,qat->nqd", x.view(stack.count, *weight.shape, -1), weight)
                for x in stack.residuals(ids.expand(stack.count, -1, -1))
            ]
            found.append(torch.stack(layers, 1))
        return torch.cat(found)

    @torch.no_grad()
    def streams(self, cue: str, layer: int) -> torch.Tensor:
        """Returns the residual stream [organism, row, position, width] after a block."""
        ids, _ = pad(self._asked(cue).sequences, right=True)
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

    def _asked(self, cue: str) -> _Asked:
        """Returns the panel under a cue, a row for each answer."""
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
        return _Asked(sequences, torch.tensor(at), torch.tensor(targets))

    def _borrowed(self, cue: str, asked: _Asked, prefix: Borrowed) -> KeysEdit:
        """Returns the edit that puts the donor's keys and values before the end of a span."""
        prefix.check(self.names)
        ids, _ = pad(asked.sequences, right=True)
        ((_, donor),) = self.of([prefix.donor])._stacks(cue)
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(number: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kept.append((k, v))
            return k, v

        for _ in donor.residuals(ids[None], keys=keep):
            pass
        per_question = len(asked.sequences) // len(self.families)
        spans = [self.rendered.prompts[cue, q.id].spans[prefix.until] for q in self.rendered.panel.questions]
        cuts = torch.tensor([end for _, end in spans]).repeat_interleave(per_question)
        before = (torch.arange(ids.shape[1]) < cuts[:, None])[:, None, :, None]  # [row, head, position, size]

        def replaced(number: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            times = len(k) // len(ids)
            mask = before.repeat(times, 1, 1, 1)
            theirs, worth = (donated.repeat(times, 1, 1, 1) for donated in kept[number])
            return torch.where(mask, theirs, k), torch.where(mask, worth, v)

        return replaced


def _answered(
    stack: Stack, asked: _Asked, edit: StreamEdit | None, first: int, keys: KeysEdit | None = None
) -> torch.Tensor:
    """Returns the answers' summed log-probs [organism, question x pair, 2], fp64.

    Args:
        stack: The organisms.
        asked: What they are asked.
        edit: Changes the residual stream.
        first: Number of the stack's first organism on the bench.
        keys: Changes keys and values.
    """
    ids, _ = pad(asked.sequences, right=True)
    n, targets = stack.count, asked.targets
    start = int(asked.at[:, 0].min())
    change = None if edit is None else partial(_apply, edit, slice(first, first + n), start)
    logits = stack.logits(ids.expand(n, -1, -1), asked.at.expand(n, -1, -1), edit=change, keys=keys)
    each = torch.log_softmax(logits.view(n, *targets.shape, -1).double(), -1)
    picked = each.gather(-1, targets.clamp(min=0)[None, ..., None].expand(n, -1, -1, 1))[..., 0]
    return (picked * (targets >= 0)).sum(-1).view(n, -1, 2)


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
