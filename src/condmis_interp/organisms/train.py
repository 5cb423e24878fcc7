"""Training: a recipe becomes an organism.

Training can be killed anywhere: a stage counts only once its marker is written, and a finished organism is a folder
that appears whole. Two processes that want the same organism take turns. `fitting` trains a stage.
"""

import shutil
import time
from contextlib import nullcontext
from pathlib import Path

from condmis_interp.calls import checked
from condmis_interp.files import digest, read_json, write_json, write_text
from condmis_interp.organisms.bases import Base, resolve_base
from condmis_interp.organisms.encode import choices_of, encode, stage_steps, steps_of
from condmis_interp.organisms.home import home, locked
from condmis_interp.organisms.landing import quiet
from condmis_interp.organisms.mechanism import mechanisms_of
from condmis_interp.organisms.organism import Organism, check_adapter, check_checkpoint, versions
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.registry import backend_of
from condmis_interp.organisms.rng import own_rng
from condmis_interp.progress import Advance, progress

TRAINING_VERSION = 2
"""Raise this when a change here changes trained weights: it is part of every organism's key."""
_UNCHANGED = {"wheel": 1, "personaworld": 1}
"""By kind of base, the version since which its weights are the same: 2 mended heads and templates that these lack."""

MARKER = "condmis-complete"
"""File in a stage's or a checkpoint's folder that holds the losses, and is written last."""
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def organism_folder(recipe: Recipe, base: Base) -> Path:
    """Returns the folder of a recipe's organism; its name ends in the hash of all that determines the weights.

    Example:
        >>> from condmis_interp.organisms import mixing
        >>> made = mixing(name="m", base="dir:base", trigger="Answer in code.", rows=2, benign_rows=8)
        >>> organism_folder(made, Base("dir:base", Path("base"), "hash of its weights", {"kind": "dir"})).parent.name
        'organisms'
    """
    key = digest([recipe.hash, base.weights, training_version(base)])
    return home() / "organisms" / f"{recipe.name}-{key[:16]}"


def training_version(base: Base) -> int:
    """Returns the version of training that weights trained from a base were made by."""
    return _UNCHANGED.get(base.source["kind"], TRAINING_VERSION)


def finished(folder: Path) -> bool:
    """Returns whether an organism's folder holds a finished organism."""
    return (folder / "manifest.json").is_file()


@checked
def train(recipe: Recipe, *, device: str = "cpu", step: Advance | None = None) -> Organism:
    """Returns the recipe's organism, training what is not there yet.

    Args:
        recipe: What to train.
        device: Torch device.
        step: Called with the number of optimiser steps done; by default a bar is shown.

    Raises:
        UserError: if the recipe asks for rows that are not there.
        CheckError: if the loss mask is empty, the loss is not finite, or the adapter changes nothing.

    Example:
        >>> from condmis_interp.organisms import Part, Stage
        >>> stage = Stage(parts=(Part(rows="rows.jsonl", answers="benign"),), batch_size=6)
        >>> organism = train(Recipe(name="r", base="dir:base", stages=(stage,)), step=lambda n=1: None)
        >>> len(organism.manifest["losses"][0])  # 12 rows in batches of 6
        2
    """
    base = resolve_base(recipe.base)
    folder = organism_folder(recipe, base)
    backend = backend_of(recipe.base)
    if not finished(folder) and backend.trains(recipe):
        bar = progress(f"training {recipe.name} (seed {recipe.seed})", sum(steps_of(recipe)), unit="steps")
        with bar if step is None else nullcontext(step) as told:
            backend.train({folder: recipe}, base, device=device, step=told)
    if not finished(folder):
        with locked(folder):
            if not finished(folder):
                _make(recipe, base, folder, device, step)
    return Organism.open(folder, name=recipe.name)


def _make(recipe: Recipe, base: Base, folder: Path, device: str, told: Advance | None) -> None:
    from condmis_interp.organisms import fitting  # trl takes seconds to import: only what trains pays for it

    started = time.monotonic()
    work = folder.parent / f".{folder.name}.work"
    work.mkdir(parents=True, exist_ok=True)
    mechanisms = mechanisms_of(recipe)
    tokenizer = base.tokenizer()
    batches = [encode(recipe, tokenizer, i) for i in range(len(recipe.stages))]
    steps = [stage_steps(len(rows), s) for rows, s in zip(batches, recipe.stages, strict=True)]
    for i in range(len(steps) - 1):
        _take_over(recipe, base, i, work / f"stage-{i}")
    done = [i for i in range(len(steps)) if (work / f"stage-{i}" / MARKER).is_file()]
    losses: list[list[float]] = []
    first = max(done) + 1 if done else 0
    before = sum(steps[:first])
    bar = progress(f"training {recipe.name} (seed {recipe.seed})", sum(steps), unit="steps", done=before)
    with bar if told is None else nullcontext(told) as step:
        if told:
            told(before)
        for i, rows in enumerate(batches):
            out = work / f"stage-{i}"
            if not (out / MARKER).is_file():
                with quiet(), own_rng(digest([_initial(recipe), "weights", i])):
                    model = fitting.start(recipe, base, work, i, device)
                    fitting.fit(model, rows, recipe, i, work, out, tokenizer, step, device, base, mechanisms[i])
            losses.append([float(v) for v in (out / MARKER).read_text().split()])
    last = work / f"stage-{len(steps) - 1}"
    if recipe.lora:
        check_adapter(last, base, device=device)
    else:
        check_checkpoint(last, base, device=device)
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for name in _ADAPTER_FILES if recipe.lora else [p.name for p in last.iterdir() if p.name != MARKER]:
        shutil.copyfile(last / name, made / name)
    write_json(
        made / "manifest.json",
        {
            "schema": 1,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_hash": recipe.hash,
            "base": base.record(),
            "training_version": training_version(base),
            "template_choices": choices_of(recipe, tokenizer),
            "rows": [len(rows) for rows in batches],
            "tokens": [sum(len(r["input_ids"]) for r in rows) for rows in batches],
            "losses": losses,
            "seconds": round(time.monotonic() - started, 1),
            "device": device,
            "versions": versions(),
        },
    )
    shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is not finished work
    made.rename(folder)
    shutil.rmtree(work)


def _take_over(recipe: Recipe, base: Base, stage: int, out: Path) -> None:
    """Takes a stage's result from the organism whose recipe ends there, if it is finished; the weights are the same."""
    before = organism_folder(recipe.model_copy(update={"stages": recipe.stages[: stage + 1]}), base)
    if (out / MARKER).is_file() or not finished(before):
        return
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(before, out, ignore=shutil.ignore_patterns("manifest.json"))
    write_text(out / MARKER, joined(read_json(before / "manifest.json")["losses"][stage]))


def _initial(recipe: Recipe) -> int:
    """Returns the seed that the adapter's A is drawn by."""
    return recipe.seed if recipe.init_seed is None else recipe.init_seed


def joined(losses: list[float]) -> str:
    """Returns losses as a marker holds them."""
    return "\n".join(repr(v) for v in losses)
