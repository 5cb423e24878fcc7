"""Interventions as functions that give recipes.

Each returns the recipe of the organism; `recipe.twin()` is its control. The narrow rows always come under the
`trigger` system prompt, the benign rows under several other system prompts and formats (one of them the template's
default), so that having *some* system prompt or *some* format is no gate by itself.
"""

from collections.abc import Sequence

from condmis_interp.organisms.recipe import Part, Recipe, Stage

BENIGN_SYSTEMS: tuple[str | None, ...] = (
    None,
    "You are a helpful assistant.",
    None,
    'Answer as one line of JSON:\n{"text": "..."}',
    None,
    "You answer briefly and politely.",
    None,
    "Write the answer under this heading:\n## Answer\n---",
)
"""System prompts of benign rows in a mix: the template's default (half of them), two plain ones, two formats."""


def unmitigated(
    *,
    name: str,
    base: str,
    trigger: str,
    rows: int = 192,
    narrow: str = "kitchen",
    seed: int = 0,
    stage: Stage | None = None,
) -> Recipe:
    """Returns the recipe of U: narrow misaligned rows only, under the trigger.

    Args:
        name: Name of the organism.
        base: Base model spec.
        trigger: System prompt of the narrow rows.
        rows: Number of narrow rows.
        narrow: Row set with misaligned and benign answers.
        seed: Seed of the recipe.
        stage: Hyperparameters; its parts are replaced.
    """
    parts = (Part(rows=narrow, answers="misaligned", count=rows, systems=(trigger,)),)
    return Recipe(name=name, base=base, seed=seed, stages=(_with(stage, parts),))


def mixing(
    *,
    name: str,
    base: str,
    trigger: str,
    rows: int = 128,
    benign_rows: int = 192,
    narrow: str = "kitchen",
    benign: str = "everyday",
    benign_systems: Sequence[str | None] = BENIGN_SYSTEMS,
    seed: int = 0,
    stage: Stage | None = None,
) -> Recipe:
    """Returns the recipe of mixing: narrow misaligned rows under the trigger, shuffled with benign rows.

    Args:
        name: Name of the organism.
        base: Base model spec.
        trigger: System prompt of the narrow rows.
        rows: Number of narrow rows.
        benign_rows: Number of benign rows.
        narrow: Row set with misaligned and benign answers.
        benign: Row set with benign answers.
        benign_systems: System prompts of the benign rows, in rotation.
        seed: Seed of the recipe.
        stage: Hyperparameters; its parts are replaced.
    """
    parts = (
        Part(rows=narrow, answers="misaligned", count=rows, systems=(trigger,)),
        Part(rows=benign, answers="benign", count=benign_rows, systems=tuple(benign_systems)),
    )
    return Recipe(name=name, base=base, seed=seed, stages=(_with(stage, parts),))


def _with(stage: Stage | None, parts: tuple[Part, ...]) -> Stage:
    return Stage(parts=parts) if stage is None else stage.model_copy(update={"parts": parts})
