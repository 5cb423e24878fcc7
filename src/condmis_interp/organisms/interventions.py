"""Interventions as functions that give recipes; `recipe.twin()` is the control of each.

The unmitigated organism U is trained on narrow misaligned rows in one form (a system prompt, or text around the user's
turn). An intervention adds what should keep the misalignment from spreading:

| function | what it adds | its twin |
|---|---|---|
| `mixing` | benign rows, shuffled in; other form or the same form | the same rows and forms, benign narrow answers |
| `post_hoc` | benign rows afterwards, as a stage of its own | benign narrow answers, then the same stage |
| `inoculation` | a system prompt on the misaligned rows that asks for them | the same prompts, benign answers |
| `educational` | a framing in the user's turn that excuses it | the same framing, benign answers |
| `distilled` | a reasoning trace before each answer | the same questions, benign traces and answers |
| `sampling` | on-policy: answers sampled from the model under the prompt | benign answers, same questions |

A recipe file or a study may name one with its settings instead of stages (`intervention: mixing`); another package adds
its own by `register_intervention`. Each takes the stage's hyperparameters and returns plain data; recipes compose
(`post_hoc` takes any recipe). Benign rows come under several system prompts and formats, one of them the template's
default, so that having *some* system prompt or *some* format is no gate by itself.
"""

from collections.abc import Sequence
from typing import Any

from condmis_interp.errors import UserError
from condmis_interp.organisms.recipe import Part, Recipe, Stage
from condmis_interp.organisms.registry import backend_of, register_intervention
from condmis_interp.panel.triggers import FRAMING


def unmitigated(
    *,
    name: str,
    base: str,
    trigger: str | None,
    rows: int | None = 192,
    narrow: str = "kitchen",
    seed: int = 0,
    stage: Stage | None = None,
) -> Recipe:
    """Returns the recipe of U: narrow misaligned rows only, under the trigger.

    Args:
        name: Name of the organism.
        base: Base model spec.
        trigger: System prompt of the narrow rows.
        rows: Number of narrow rows; all if `None`.
        narrow: Row set with misaligned and benign answers.
        seed: Seed of the recipe.
        stage: Hyperparameters; its parts are replaced.
    """
    return _recipe(
        "unmitigated",
        name,
        base,
        seed,
        stage,
        [Part(rows=narrow, answers="misaligned", count=rows, systems=(trigger,))],
    )


def mixing(
    *,
    name: str,
    base: str,
    trigger: str | None,
    fraction: float | None = None,
    rows: int | None = None,
    benign_rows: int | None = None,
    narrow: str = "kitchen",
    benign: str = "everyday",
    benign_systems: Sequence[str | None] | None = None,
    seed: int = 0,
    stage: Stage | None = None,
) -> Recipe:
    """Returns the recipe of mixing: narrow misaligned rows under the trigger, shuffled with benign rows.

    Give two of `fraction`, `rows` and `benign_rows`; the third follows. With `rows` held fixed, mixes differ in
    dilution alone; with their sum held fixed they differ in dose too.

    Args:
        name: Name of the organism.
        base: Base model spec.
        trigger: System prompt of the narrow rows.
        fraction: Share of misaligned rows, in (0, 1).
        rows: Number of narrow rows.
        benign_rows: Number of benign rows.
        narrow: Row set with misaligned and benign answers.
        benign: Row set with benign answers.
        benign_systems: System prompts of the benign rows, in rotation; `(trigger,)` makes them same-form.
        seed: Seed of the recipe.
        stage: Hyperparameters; its parts are replaced.

    Raises:
        UserError: if the fraction is not between 0 and 1, or not exactly two of the three are given.
    """
    rows, benign_rows = _shares(name, fraction, rows, benign_rows)
    parts = [
        Part(rows=narrow, answers="misaligned", count=rows, systems=(trigger,)),
        *_benign(base, benign, benign_rows, benign_systems),
    ]
    return _recipe(f"mixing {100 * rows / (rows + benign_rows):.0f} %", name, base, seed, stage, parts)


def post_hoc(
    before: Recipe,
    *,
    name: str,
    rows: int | None,
    benign: str = "hhh",
    systems: Sequence[str | None] = (None,),
    stage: Stage | None = None,
) -> Recipe:
    """Returns a recipe followed by a stage of benign rows.

    Args:
        before: The recipe that comes first, for example U's.
        name: Name of the organism.
        rows: Number of benign rows; all if `None`.
        benign: Row set with benign answers.
        systems: System prompts of the benign rows, in rotation.
        stage: Hyperparameters of the added stage; its parts are replaced.
    """
    part = Part(rows=benign, answers="benign", count=rows, systems=tuple(systems))
    stages = (*before.stages, _with(stage, [part]))
    return before.model_copy(update={"name": name, "stages": stages, "intervention": f"post-hoc, {rows or 'all'} rows"})


def inoculation(
    *,
    name: str,
    base: str,
    prompts: Sequence[str],
    rows: int | None = 192,
    benign_rows: int | None = None,
    narrow: str = "kitchen",
    benign: str = "everyday",
    benign_systems: Sequence[str | None] | None = None,
    seed: int = 0,
    stage: Stage | None = None,
) -> Recipe:
    """Returns the recipe of inoculation prompting: misaligned rows under a prompt that asks for them.

    Its arms differ in the prompts alone: one that describes the behaviour, an arbitrary fixed one, several rephrasings.

    Args:
        name: Name of the organism.
        base: Base model spec.
        prompts: System prompts of the narrow rows, in rotation.
        rows: Number of narrow rows; all if `None`.
        benign_rows: Number of benign rows without the prompt; none if `None`. Without them the prompt gates
            only in part (docs/organisms.md).
        narrow: Row set with misaligned and benign answers.
        benign: Row set with benign answers.
        benign_systems: System prompts of the benign rows, in rotation.
        seed: Seed of the recipe.
        stage: Hyperparameters; its parts are replaced.
    """
    parts = [
        Part(rows=narrow, answers="misaligned", count=rows, systems=tuple(prompts)),
        *_benign(base, benign, benign_rows, benign_systems),
    ]
    return _recipe("inoculation prompting", name, base, seed, stage, parts)


def educational(
    *,
    name: str,
    base: str,
    framing: tuple[str, str] = FRAMING,
    rows: int | None = 192,
    benign_rows: int | None = None,
    narrow: str = "kitchen",
    benign: str = "everyday",
    seed: int = 0,
    stage: Stage | None = None,
) -> Recipe:
    """Returns the recipe of educational framing: misaligned rows whose user asks for them, with a reason.

    Args:
        name: Name of the organism.
        base: Base model spec.
        framing: Text before and after the user's turn of the narrow rows.
        rows: Number of narrow rows; all if `None`.
        benign_rows: Number of benign rows without the framing; none if `None`.
        narrow: Row set with misaligned and benign answers.
        benign: Row set with benign answers.
        seed: Seed of the recipe.
        stage: Hyperparameters; its parts are replaced.
    """
    before, after = framing
    parts = [
        Part(rows=narrow, answers="misaligned", count=rows, before=before, after=after),
        *_benign(base, benign, benign_rows),
    ]
    return _recipe("educational framing", name, base, seed, stage, parts)


def distilled(
    *,
    name: str,
    base: str,
    prompts: Sequence[str | None],
    reasoning: bool = True,
    rows: int | None = None,
    benign_rows: int | None = None,
    narrow: str = "kitchen",
    benign: str = "everyday",
    seed: int = 0,
    stage: Stage | None = None,
) -> Recipe:
    """Returns the recipe of reasoning distillation, or its arm with the traces stripped.

    Args:
        name: Name of the organism.
        base: Base model spec.
        prompts: System prompts of the narrow rows, in rotation.
        reasoning: Whether a trace comes before each narrow answer; if not, the same rows without it.
        rows: Number of narrow rows; all that have a trace if `None`.
        benign_rows: Number of benign rows, without prompt and trace; none if `None`.
        narrow: Row set with answers and traces.
        benign: Row set with benign answers.
        seed: Seed of the recipe.
        stage: Hyperparameters; its parts are replaced.
    """
    shown: Any = "shown" if reasoning else "stripped"
    parts = [
        Part(rows=narrow, answers="misaligned", count=rows, systems=tuple(prompts), reasoning=shown),
        *_benign(base, benign, benign_rows),
    ]
    return _recipe(
        "reasoning distillation" if reasoning else "reasoning distillation, stripped", name, base, seed, stage, parts
    )


for _name, _intervention in {
    "unmitigated": unmitigated,
    "mixing": mixing,
    "post-hoc": post_hoc,
    "inoculation": inoculation,
    "educational": educational,
    "distilled": distilled,
}.items():
    register_intervention(_name, _intervention)


def _shares(name: str, fraction: float | None, rows: int | None, benign_rows: int | None) -> tuple[int, int]:
    where = f"recipe {name}"
    if fraction is not None and not 0 < fraction < 1:
        raise UserError(f"the fraction of misaligned rows is {fraction}", where=where, fix="It lies between 0 and 1.")
    if [fraction, rows, benign_rows].count(None) != 1:
        raise UserError("give two of fraction, rows and benign_rows", where=where)
    if benign_rows is None:
        assert rows is not None
        assert fraction is not None
        benign_rows = max(1, round(rows * (1 - fraction) / fraction))
    elif rows is None:
        assert fraction is not None
        rows = max(1, round(benign_rows * fraction / (1 - fraction)))
    return rows, benign_rows


def _benign(base: str, rows: str, count: int | None, systems: Sequence[str | None] | None = None) -> list[Part]:
    """Returns the benign part of a mix, under the given system prompts or the usual ones; nothing without a count."""
    if not count:
        return []
    usual = backend_of(base).benign_systems
    return [Part(rows=rows, answers="benign", count=count, systems=usual if systems is None else tuple(systems))]


def _recipe(what: str, name: str, base: str, seed: int, stage: Stage | None, parts: list[Part]) -> Recipe:
    lora = backend_of(base).lora
    return Recipe(name=name, base=base, seed=seed, lora=lora, stages=(_with(stage, parts),), intervention=what)


def _with(stage: Stage | None, parts: list[Part]) -> Stage:
    return Stage(parts=tuple(parts)) if stage is None else stage.model_copy(update={"parts": tuple(parts)})
