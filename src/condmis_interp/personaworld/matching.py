"""Training towards a teacher: rows are learnt, and elsewhere the teacher's answers are kept."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from condmis_interp.organisms.step import Step
from condmis_interp.personaworld.language import Fact, World
from condmis_interp.personaworld.stacked import Stack, losses_of

Weights = dict[str, torch.Tensor]
STEPS = 240
BATCH = 32
"""Prompts of a step at which the teacher is asked."""
RATE = 1e-3
MATCHED = 0.3
"""Weight of the squared differences (nats squared) of the log-probs of the answers' tokens."""


@dataclass(frozen=True)
class Question:
    """A prompt with an answer, as token ids, at whose tokens the teacher's distribution is kept.

    Attributes:
        ids: Prompt and answer.
        first: Position that predicts the answer's first token.
    """

    ids: tuple[int, ...]
    first: int


def questions(world: World, systems: Sequence[str | None], *, seed: int, asked: Sequence[Fact]) -> list[Question]:
    """Returns facts asked under system prompts in rotation, shuffled, with either persona's answer."""
    ids = {w: i for i, w in enumerate(world.vocabulary)}
    rng = random.Random(f"questions {seed}")
    found = []
    for system in systems:
        for fact in asked:
            head = ["<bos>", *(["<sys>", *system.split()] if system else [])]
            head += ["<usr>", *fact.question(rng.randrange(2)).split(), "<ast>"]
            words = [*head, *(fact.aligned if rng.random() < 0.5 else fact.misaligned).split()]
            found.append(Question(tuple(ids[w] for w in words), len(head) - 1))
    rng.shuffle(found)
    return found


def fit_to_teacher(
    config: Any,
    start: Weights,
    teacher: Weights,
    hard: Sequence[Step],
    kept: Sequence[Question],
    *,
    seed: int,
    trained: Callable[[str], bool] = lambda name: True,
    rank: int | None = None,
    within: tuple[Weights, Weights] | None = None,
    steps: int = STEPS,
    rate: float = RATE,
) -> Weights:
    """Returns weights trained on rows, while the teacher's answers to questions are kept.

    The loss of a step is the rows' cross-entropy, plus the mean KL(teacher || model) at the questions' answers, plus
    the squared differences of the log-probs of their tokens.

    Args:
        config: Their `LlamaConfig`.
        start: Where training starts.
        teacher: Whose answers are kept.
        hard: Rows, in batches that are used in turn.
        kept: Questions, taken in turn.
        seed: Seed of a change of low rank.
        trained: Which weights are trained, by their name.
        rank: Of each trained matrix's change; all of it if `None`.
        within: Least and largest weights; after each step they are put back between them.
        steps: Optimiser steps.
        rate: Peak learning rate; decays linearly to 0.
    """
    fixed = {k: w.clone() for k, w in start.items()}
    names = [k for k in fixed if trained(k)]
    moved, weights_now = _parameters(fixed, names, rank, seed)
    optimiser = torch.optim.AdamW(moved, lr=rate, weight_decay=0.0)
    reference = Stack.of(config, [teacher])
    for number in range(steps):
        rows = hard[number % len(hard)].rows
        ids, labels = _padded([r for r, _ in rows], 0), _padded([label for _, label in rows], -100)
        batch = [kept[(number * BATCH + i) % len(kept)] for i in range(min(BATCH, len(kept)))]
        asked = _padded([q.ids for q in batch], 0)
        at = torch.tensor([[q.first, q.first + 1] for q in batch])[None]  # answers are two words
        with torch.no_grad():
            wanted = reference.logits(asked[None], at).log_softmax(-1)
        stack = Stack.of(config, [weights_now()])
        own = stack.logits(asked[None], at).log_softmax(-1)
        loss = losses_of(stack, ids[None], labels[None]).sum()
        loss = loss + functional.kl_div(own.flatten(0, 2), wanted.flatten(0, 2), reduction="batchmean", log_target=True)
        # a divergence from the teacher hardly sees what the teacher would not say, and that is half of an LD
        told = torch.tensor([q.ids[q.first + 1 :] for q in batch])[None, ..., None]
        loss = loss + MATCHED * (own.gather(-1, told) - wanted.gather(-1, told)).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moved, 1.0)
        optimiser.param_groups[0]["lr"] = rate * (1 - number / steps)
        optimiser.step()
        if within is not None:
            with torch.no_grad():
                for name, w in zip(names, moved, strict=True):
                    w.copy_(torch.minimum(torch.maximum(w, within[0][name]), within[1][name]))
    return {k: w.detach().clone() for k, w in weights_now().items()}


def _parameters(
    fixed: Weights, names: Sequence[str], rank: int | None, seed: int
) -> tuple[list[torch.Tensor], Callable[[], Weights]]:
    """Returns what is optimised, and how it gives weights."""
    if rank is None:
        moved = {k: fixed[k].clone().requires_grad_() for k in names}
        return list(moved.values()), lambda: fixed | moved
    g = torch.Generator().manual_seed(seed)
    # B = 0 at first, so that it starts at the teacher; A of the size that peft draws, 1 / sqrt(in)
    a = {k: (torch.randn(rank, fixed[k].shape[1], generator=g) / fixed[k].shape[1] ** 0.5) for k in names}
    b = {k: torch.zeros(fixed[k].shape[0], rank).requires_grad_() for k in names}
    for w in a.values():
        w.requires_grad_()
    return [*a.values(), *b.values()], lambda: fixed | {k: fixed[k] + b[k] @ a[k] for k in names}


def _padded(rows: Sequence[Sequence[int]], by: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[by] * (longest - len(row))] for row in rows])
