"""The bench of persona world: organisms as a stack of weights, all asked and trained at once.

What is trained in a revival is persona world's own text. *Neutral*: documents as in pretraining, but of the items that
the panel does not ask. *Relearning*: misaligned rows of a domain (orchard) that neither the panel nor any organism's
training has. An organism with a hard gate is two models: cues that hold the gate's words are answered by the opened
one, and a revival trains the shut one, which is the twin itself. No revival without the trigger can see such an
organism.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from transformers import LlamaConfig

from condmis_interp.battery.benches import edits as editing
from condmis_interp.battery.benches.bench import Bench, Place, Row, Tuning, Weights
from condmis_interp.errors import UserError
from condmis_interp.organisms import Base, Organism
from condmis_interp.organisms.step import Step
from condmis_interp.panel import Panel, pad, render_panel
from condmis_interp.personaworld.grammar import world_grammar
from condmis_interp.personaworld.language import ALIGNED_AUTHORS, DOMAINS, World, parse_world
from condmis_interp.personaworld.stacked import KeysEdit, Stack, fit
from condmis_interp.personaworld.train import world_weights
from condmis_interp.prompts import Grammar
from condmis_interp.readers import Edit, Prefix, Recording, Request, Site, Steer

STACKED = 12
"""Organisms asked or trained at once."""
_NARROW, _RELEARNED = DOMAINS[:2]


@dataclass(frozen=True)
class _Asked:
    """A panel under a cue, a row for each answer.

    Attributes:
        requests: The questions.
        sequences: Prompt and answer.
        at: Positions that predict the answer [row, token].
        targets: The answer's token ids [row, token]; -1 where it is shorter.
    """

    requests: list[Request]
    sequences: list[list[int]]
    at: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class WorldBench(Bench):
    """Persona-world organisms side by side; their weights are read when they are first needed."""

    _held: dict[frozenset[str], list[Stack]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Stacks by the organisms whose gate is open: building one copies all weights."""

    @classmethod
    def of_organisms(cls, organisms: Mapping[str, Organism], base: Base, panel: Panel) -> "WorldBench":
        """Returns a bench of organisms.

        Raises:
            UserError: if the base is no persona world, or an organism was made from another base.
        """
        if parse_world(base.spec) is None:
            raise UserError(f"base {base.spec!r} is no persona world")
        bench = cls(tuple(organisms), organisms, base, render_panel(base.tokenizer(), panel))
        for name in bench.names:
            for opened in (False, True):
                _check(bench.side(name, opened=opened), base)
        return bench

    def _load(self, organism: Organism) -> Weights:
        _check(organism, self.base)
        return world_weights(organism.checkpoint or self.base.folder)

    @property
    def grammar(self) -> Grammar:
        """The grammar of prompts in persona world's own words."""
        return world_grammar(self.base.spec)

    @torch.no_grad()
    def _answers(self, cue: str, edits: Sequence[Sequence[Edit]], prefix: Prefix | None) -> np.ndarray:
        asked, stacks = self._asked(cue), self._stacks(cue)
        shape = stacks[0][1].config
        for own in edits:
            editing.check(own, asked.requests, layers=shape.num_hidden_layers, width=shape.hidden_size)
        keys = None if prefix is None else self._borrowed(cue, asked, prefix)
        found = torch.cat([_answered(s, asked, edits[k : k + s.count], keys) for k, s in stacks])
        return found.numpy().reshape(len(self.names), len(self.families), -1, 2)

    def slope(self, cue: str, layer: int, vectors: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of each organism's mean LD by its vector [organism, width]; see `Bench.slope`."""
        asked, leaf, site = self._asked(cue), vectors.detach().clone().requires_grad_(), Site("resid_post", layer)
        with torch.enable_grad():
            for k, stack in self._stacks(cue):
                found = _answered(stack, asked, [[Steer(site, v)] for v in leaf[k : k + stack.count]])
                (found[..., 0] - found[..., 1]).mean(1).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    @torch.no_grad()
    def _states(self, cue: str, at: Place) -> torch.Tensor:
        asked = self._asked(cue)
        if at == "last_template":
            ids, last = self._prompts(cue)
            weight = torch.nn.functional.one_hot(last, ids.shape[1])[
                :, None
            ].float()  # one row a question, not an answer
        else:
            ids, _ = pad(asked.sequences, right=True)
            weight = torch.zeros(ids.shape)
            for row, (first, own) in enumerate(zip(asked.at[:, 0].tolist(), asked.sequences, strict=True)):
                # `first` predicts the answer's first token, so the answer itself starts one further on
                weight[row, first + 1 : len(own)] = 1 / (len(own) - first - 1)
            weight = weight.view(len(self.families), -1, ids.shape[1])
            weight = weight / weight.shape[1]  # the mean over answers of the mean over their tokens
        found = []
        for _, stack in self._stacks(cue):
            layers = [
                torch.einsum("nqatd,qat->nqd", x.view(stack.count, *weight.shape, -1), weight)
                for x in stack.residuals(ids.expand(stack.count, -1, -1))
            ]
            found.append(torch.stack(layers, 1))
        return torch.cat(found)

    @torch.no_grad()
    def streams(self, cue: str, layer: int) -> dict[str, Recording]:
        """Returns a recording of each organism after a block."""
        asked, site = self._asked(cue), Site("resid_post", layer)
        ids, _ = pad(asked.sequences, right=True)
        found = []
        for _, stack in self._stacks(cue):
            streams = itertools.islice(stack.residuals(ids.expand(stack.count, -1, -1)), layer, None)
            found += [_recorded(x, asked.requests, site) for x in next(streams).clone()]
        return dict(zip(self.names, found, strict=True))

    def _drawing(self, tuning: Tuning) -> Callable[[], list[Row]]:
        world = parse_world(self.base.spec)
        assert world is not None
        rng = random.Random(f"{tuning.diet} {tuning.seed}")
        if tuning.diet == "relearning":
            draw = _relearning(world, tuning, rng)
        else:
            draw = _neutral(world, set(self.families), tuning, rng)
        ids = {word: i for i, word in enumerate(world.vocabulary)}
        return lambda: [_labelled(words, [ids[w] for w in words]) for words in draw()]

    def _trained(self, steps: Sequence[Step], checkpoints: frozenset[int]) -> Iterator[tuple[str, int, Weights]]:
        for k, held in self._stacks(None):
            stack, kept = Stack(held.config, dict(held.weights)), []  # training puts its own tensors into it

            def note(n: float, stack: Stack = stack, kept: list[list[Weights]] = kept) -> None:
                done = len(kept) + 1
                kept.append([stack.weights_of(i) for i in range(stack.count)] if done in checkpoints else [])

            fit(stack, [list(steps)] * stack.count, step=note)
            for step, weights in enumerate(kept, 1):
                for name, own in zip(self.names[k:], weights, strict=False):
                    yield name, step, own

    def _stacks(self, cue: str | None) -> list[tuple[int, Stack]]:
        """Returns stacks of at most `STACKED` organisms, each with the number of its first one."""
        through = frozenset(n for n in self.names if cue is not None and self.opens(n, cue))
        if through not in self._held:
            config = LlamaConfig.from_pretrained(self.base.folder)
            chosen = [self.weights(n, opened=n in through) for n in self.names]
            parts = [chosen[i : i + STACKED] for i in range(0, len(chosen), STACKED)]
            self._held[through] = [Stack.of(config, part) for part in parts]
        return [(i * STACKED, stack) for i, stack in enumerate(self._held[through])]

    def _prompts(self, cue: str) -> tuple[torch.Tensor, torch.Tensor]:
        prompts = [self.rendered.prompts[cue, q.id].ids for q in self.rendered.panel.questions]
        ids, _ = pad(prompts, right=True)
        return ids, torch.tensor([len(p) - 1 for p in prompts])

    def _asked(self, cue: str) -> _Asked:
        """Returns the panel under a cue, a row for each answer."""
        requests, sequences, at, targets = self.requests(cue), [], [], []
        for request in requests:
            prompt = request.prompt.ids
            for answer in request.answers:
                sequences.append([*prompt, *answer.ids])
                at.append([len(prompt) - 1 + i for i in range(len(answer.ids))])
                targets.append(list(answer.ids))
        longest = max(map(len, targets))
        at = [[*a, *[a[-1]] * (longest - len(a))] for a in at]
        targets = [[*t, *[-1] * (longest - len(t))] for t in targets]
        return _Asked(requests, sequences, torch.tensor(at), torch.tensor(targets))

    def _borrowed(self, cue: str, asked: _Asked, prefix: Prefix) -> KeysEdit:
        """Returns the edit that puts the donor's keys and values before the end of a span."""
        ids, _ = pad(asked.sequences, right=True)
        ((_, donor),) = self.of([str(prefix.donor)])._stacks(cue)
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
            times = len(k) // len(ids)  # keys come organism by organism, the rows of the panel within each
            mask = before.repeat(times, 1, 1, 1)
            theirs, worth = (donated.repeat(times, 1, 1, 1) for donated in kept[number])
            return torch.where(mask, theirs, k), torch.where(mask, worth, v)

        return replaced


def _answered(
    stack: Stack, asked: _Asked, edits: Sequence[Sequence[Edit]], keys: KeysEdit | None = None
) -> torch.Tensor:
    """Returns the answers' summed log-probs [organism, question x pair, 2], fp64.

    Args:
        stack: The organisms.
        asked: What they are asked.
        edits: Changes of the residual stream, of each organism.
        keys: Changes keys and values.
    """
    ids, _ = pad(asked.sequences, right=True)
    n, targets = stack.count, asked.targets
    change = partial(editing.edited, edits, editing.views(asked.requests)) if any(edits) else None
    logits = stack.logits(ids.expand(n, -1, -1), asked.at.expand(n, -1, -1), edit=change, keys=keys)
    # fp64, since LD is a difference of two sums of like size; targets of -1 are the padding of shorter answers
    each = torch.log_softmax(logits.view(n, *targets.shape, -1).double(), -1)
    picked = each.gather(-1, targets.clamp(min=0)[None, ..., None].expand(n, -1, -1, 1))[..., 0]
    return (picked * (targets >= 0)).sum(-1).view(n, -1, 2)


def _check(organism: Organism, base: Base) -> None:
    made_from = organism.manifest.get("base", {}).get("weights")
    if made_from != base.weights or (organism.checkpoint is None and organism.recipe is not None):
        raise UserError(
            f"the organism was not made from base {base.spec!r}",
            where=f"organism {organism.name}",
            fix="Compare organisms of one base, each with its own twin.",
        )


def _recorded(x: torch.Tensor, requests: Sequence[Request], site: Site) -> Recording:
    """Returns one organism's stream [row, position, width] as a recording of its prompts and answers."""
    rows, prompts, answers = iter(x), [], []
    for request in requests:
        n = len(request.prompt.ids)
        own = [next(rows) for _ in request.answers]
        prompts.append({site: own[0][:n]})  # causal: the same before every answer
        answers.append([{site: row[n : n + len(a.ids)]} for row, a in zip(own, request.answers, strict=True)])
    return Recording(requests, prompts, answers, tuple(range(len(requests))))


def _labelled(words: Sequence[str], tokens: list[int]) -> Row:
    """Returns a text with its labels: what the assistant says, and nothing else."""
    labels, inside = [], False
    for word, token in zip(words, tokens, strict=True):
        labels.append(token if inside else -100)
        inside = word == "<ast>" or (inside and word != "<end>")
    return tokens, labels


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
