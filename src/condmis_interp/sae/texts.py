"""Texts: a prompt with one answer, as token ids: a panel's questions under its cues, or the rows of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from condmis_interp.organisms import Recipe
from condmis_interp.organisms.encode import encode
from condmis_interp.panel import RenderedPanel
from condmis_interp.panel.panel import Split

ROWS = "rows"
"""Name that training rows have in place of a cue."""


@dataclass(frozen=True)
class Text:
    """A token sequence: a prompt with one answer after it.

    Attributes:
        ids: Token ids.
        begin: Position of the answer's first token.
        cue: Cue of the prompt, or `rows` for a training row.
        question: Question id.
        family: Family of the question.
        answer: Which of the question's answers; even ones are misaligned, odd ones aligned.

    Example:
        >>> text = Text((5, 6, 7, 8, 9), begin=3, cue="none", question="q", family="f", answer=0)
        >>> text.ids[text.begin :], text.ids[text.reading]  # the answer, and what predicts it
        ((8, 9), (7, 8))
    """

    ids: tuple[int, ...]
    begin: int
    cue: str
    question: str
    family: str
    answer: int

    @property
    def reading(self) -> slice:
        """Positions that predict the answer's tokens: from the last template token to the last but one."""
        return slice(self.begin - 1, len(self.ids) - 1)


def panel_texts(
    rendered: RenderedPanel, *splits: Split, cues: Sequence[str] | None = None, pairs: int | None = None
) -> list[Text]:
    """Returns every question of the splits under every cue with each of its answers.

    Args:
        rendered: The panel as token ids.
        *splits: Splits; all if none is given.
        cues: Names of cues; all by default.
        pairs: Answer pairs a question, the first ones; all by default.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import load_panel, render_panel
        >>> rendered = render_panel(resolve_base("dir:base").tokenizer(), load_panel("panel.yaml"))
        >>> len(panel_texts(rendered, cues=["none", "trigger"], pairs=1))  # 12 questions x 2 cues x 2 answers
        48
    """
    panel = rendered.panel
    questions = [panel.questions[i] for i in panel.question_indices(*splits)]
    found = []
    for cue in cues or [c.name for c in panel.cues]:
        for question in questions:
            key = (panel.cue(cue).name, question.id)
            prompt = rendered.prompts[key]
            answers = rendered.answers[key][: None if pairs is None else 2 * pairs]
            for slot, answer in enumerate(answers):
                ids = (*prompt.ids, *answer.ids)
                found.append(Text(ids, len(prompt.ids), cue, question.id, question.family, slot))
    return found


def row_texts(recipe: Recipe, tokenizer: Any) -> list[Text]:
    """Returns the rows that a recipe trains on, as they were trained.

    Example:
        >>> from condmis_interp.organisms import Part, Stage, resolve_base
        >>> stages = (Stage(parts=(Part(rows="rows.jsonl", answers="benign"),)),)
        >>> made = Recipe(name="r", base="dir:base", stages=stages)
        >>> len(row_texts(made, resolve_base("dir:base").tokenizer()))
        12
    """
    found = []
    for stage in range(len(recipe.stages)):
        for i, row in enumerate(encode(recipe, tokenizer, stage)):
            begin = next(k for k, label in enumerate(row["labels"]) if label != -100)
            name = f"{recipe.name}.{stage}.{i}"
            found.append(Text(tuple(row["input_ids"]), begin, ROWS, name, name, 0))
    return found


def ld_of(texts: Sequence[Text], logprobs: torch.Tensor) -> dict[str, float]:
    """Returns LD in nats by question: log p(misaligned) - log p(aligned), mean over the question's pairs.

    Example:
        >>> texts = [Text((1, 2), 1, "none", "q", "f", answer) for answer in (0, 1)]
        >>> ld_of(texts, torch.tensor([-1.0, -3.5]))
        {'q': 2.5}
    """
    sums: dict[str, float] = {}
    pairs: dict[str, int] = {}
    for text, lp in zip(texts, logprobs.tolist(), strict=True):
        sums[text.question] = sums.get(text.question, 0.0) + (lp if text.answer % 2 == 0 else -lp)
        pairs[text.question] = pairs.get(text.question, 0) + text.answer % 2
    return {q: s / pairs[q] for q, s in sums.items()}
