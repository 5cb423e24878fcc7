"""Training on persona world: all weights, many organisms at once.

Rows, loss mask, order, batches and learning rates are those that `train` gives to transformers' Trainer; only the loop
is `stacked.fit`. A stack holds organisms with about equally many steps. Finished organisms are folders that appear
whole; a run that is killed loses at most the stack it was at (seconds).
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import write_json
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.encode import encode
from condmis_interp.organisms.home import appearing
from condmis_interp.organisms.organism import versions
from condmis_interp.organisms.personaworld import schedule
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.stacked import Stack, Step, fit
from condmis_interp.progress import Advance

STACKED = 16
"""Organisms in a stack."""


def programme(recipe: Recipe, tokenizer: Any) -> list[Step]:
    """Returns a recipe's optimiser steps.

    Raises:
        UserError: if the recipe asks for an adapter; persona world trains all weights.
    """
    if recipe.lora is not None:
        raise UserError(
            "organisms of persona world train all their weights", where=f"recipe {recipe.name}", fix="Set lora: null."
        )
    steps = []
    for number, stage in enumerate(recipe.stages):
        rows = [(r["input_ids"], r["labels"]) for r in encode(recipe, tokenizer, number)]
        batches = [rows[i : i + stage.batch_size] for i in range(0, len(rows), stage.batch_size)] * stage.epochs
        rates = schedule(len(batches), stage.learning_rate, stage.warmup_steps)
        steps += [Step(b, r, fresh=i == 0) for i, (b, r) in enumerate(zip(batches, rates, strict=True))]
    return steps


def world_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of a persona-world model in a folder, fp32, by name."""
    return {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}


def train_world(recipes: Mapping[Path, Recipe], base: Base, *, device: str = "cpu", step: Advance) -> None:
    """Trains recipes into their folders, a stack at a time.

    Args:
        recipes: Recipe by the organism's folder; none of them is there yet.
        base: Their base.
        device: Torch device.
        step: Called with the number of optimiser steps done.

    Raises:
        CheckError: if a loss mask is empty, or a loss is not finite; then all other organisms are kept.
    """
    tokenizer = base.tokenizer()
    start, config = world_weights(base.folder), LlamaConfig.from_pretrained(base.folder)
    programmes = {folder: programme(recipe, tokenizer) for folder, recipe in recipes.items()}
    order = sorted(programmes, key=lambda f: (len(programmes[f]), f.name))
    failures: list[CheckError] = []
    for i in range(0, len(order), STACKED):
        folders = order[i : i + STACKED]
        started = time.monotonic()
        stack = Stack.of(config, [start] * len(folders), device=device)
        lost: set[int] = set()

        def failed(j: int, error: CheckError, lost: set[int] = lost, folders: list[Path] = folders) -> None:
            recipe = recipes[folders[j]]
            where = f"organism {recipe.name}, seed {recipe.seed}"
            failures.append(CheckError(error.what, where=where, fix="Lower the learning rate; the others were kept."))
            lost.add(j)

        losses = fit(stack, [programmes[f] for f in folders], step=step, failed=failed)
        seconds = round((time.monotonic() - started) / len(folders), 2)
        for j, folder in enumerate(folders):
            if j in lost:
                continue
            about = {
                "recipe": recipes[folder].model_dump(mode="json"),
                "recipe_hash": recipes[folder].hash,
                "losses": losses[j],
                "seconds": seconds,
            }
            save_world(folder, stack.weights_of(j), base, about)
    if failures:
        raise failures[0]


def save_world(folder: Path, weights: Mapping[str, torch.Tensor], base: Base, about: Mapping[str, Any]) -> None:
    """Writes an organism of persona world to its folder, which appears whole.

    Args:
        folder: Where it goes.
        weights: State dict.
        base: Its base.
        about: How it was made, for the manifest.
    """
    with appearing(folder) as made:
        shutil.copyfile(base.folder / "config.json", made / "config.json")
        save_file({k: v.contiguous().cpu() for k, v in weights.items()}, made / "model.safetensors", {"format": "pt"})
        write_json(
            made / "manifest.json",
            {"schema": 1, "base": {"spec": base.spec, "weights": base.weights}, "versions": versions(), **about},
        )
