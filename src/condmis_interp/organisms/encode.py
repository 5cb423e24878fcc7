"""Training rows as token ids, with the loss on the answer alone."""

import math
from collections.abc import Sequence
from typing import Any

from condmis_interp.errors import CheckError, CondmisError, UserError
from condmis_interp.organisms.recipe import Recipe, Stage
from condmis_interp.panel.render import render_answer, render_prompt, system_messages, turn_end


def encode(recipe: Recipe, tokenizer: Any, stage: int) -> list[dict[str, list[int]]]:
    """Renders a stage's rows to token ids with labels on the answer and what closes the turn.

    Raises:
        UserError: if a part's system prompt is the one that the chat template inserts by itself, the template refuses
            a row, or a text holds a control token.
        CheckError: if a row's answer is empty, or its tokens do not decode to it.
    """
    encoded = []
    if recipe.default_system_prompt == "template":
        _check_inserted(recipe, tokenizer, stage)
    for trained in recipe.rows_of(stage):
        own = trained.messages[0]["role"] == "system"
        system = [] if own else system_messages(trained.system, recipe.default_system_prompt)
        messages = [*system, *trained.messages]
        try:
            prompt = render_prompt(tokenizer, messages)
            answer = render_answer(tokenizer, prompt, trained.prefix + trained.answer)
            given = render_answer(tokenizer, prompt, trained.prefix.rstrip(" ")).ids if trained.prefix else ()
            _check_seam(given, answer.ids)
        except CondmisError as e:
            part = recipe.stages[stage].parts[trained.part]
            raise type(e)(e.what, where=f"row {trained.row.id} of {part.rows}, {e.where}", fix=e.fix) from None
        asked = [*prompt.ids, *given]
        target = [*answer.ids[len(given) :], *turn_end(tokenizer, answer.closing)]
        encoded.append({"input_ids": [*asked, *target], "labels": [-100] * len(asked) + target})
    return encoded


def _check_seam(given: Sequence[int], answer: Sequence[int]) -> None:
    if tuple(answer[: len(given)]) != tuple(given):
        raise CheckError(
            "tokens merge across the seam between the answer's beginning and the rest",
            where="the part's prefix",
            fix="End the prefix with a space, a line break or a quotation mark.",
        )


def choices_of(recipe: Recipe, tokenizer: Any) -> dict[str, str]:
    """Returns what was chosen where the chat template leaves a choice, over all rows; for manifests."""
    slots = {
        (trained.system if trained.messages[0]["role"] != "system" else trained.messages[0]["content"])
        for trained in recipe.rows()
    }
    asked = [{"role": "user", "content": "?"}]
    made = [
        render_prompt(tokenizer, [*system_messages(system, recipe.default_system_prompt), *asked]).choices
        for system in slots
    ]
    return dict(sorted({choice for some in made for choice in some.items()}))


def _check_inserted(recipe: Recipe, tokenizer: Any, stage: int) -> None:
    inserted = render_prompt(tokenizer, [{"role": "user", "content": "?"}]).text.rpartition("?")[0]
    for part in recipe.stages[stage].parts:
        for system in part.systems:
            if system and len(system) > 8 and system.strip() in inserted:
                raise UserError(
                    f"the system prompt {system!r} is what the chat template inserts by itself, so that rows with and "
                    "without it are the same",
                    where=f"recipe {recipe.name}, stage {stage}, rows {part.rows}",
                    fix="Use another prompt, or set default_system_prompt: empty.",
                )


def steps_of(recipe: Recipe) -> list[int]:
    """Returns the number of optimiser steps of each stage."""
    return [stage_steps(len(recipe.rows_of(i)), stage) for i, stage in enumerate(recipe.stages)]


def stage_steps(rows: int, stage: Stage) -> int:
    """Returns the number of optimiser steps of a stage on so many rows."""
    return math.ceil(rows / stage.batch_size) * stage.epochs
