"""Training on persona world: all weights, many organisms at once.

Rows, loss mask, order, batches and learning rates are those that `train` gives to transformers' Trainer; only the loop
is `stacked.fit`. A stack holds organisms with about equally many steps. Finished organisms are folders that appear
whole; a run that is killed loses at most the stacks it was at (seconds). On a CPU every core has a stack of its own.
"""

import math
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
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
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.step import Step
from condmis_interp.personaworld.base import schedule
from condmis_interp.personaworld.stacked import Stack, fit
from condmis_interp.progress import Advance
from condmis_interp.threads import side_by_side

STACKED = 16
"""Most organisms in a stack."""


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
    """Trains recipes into their folders, in stacks.

    Args:
        recipes: Recipe by the organism's folder; none of them is there yet.
        base: Their base.
        device: Torch device.
        step: Called with the number of optimiser steps done, from several threads.

    Raises:
        CheckError: if a loss mask is empty, or a loss is not finite; then all other organisms are kept.
    """
    tokenizer = base.tokenizer()
    start, config = world_weights(base.folder), LlamaConfig.from_pretrained(base.folder)
    programmes = {folder: programme(recipe, tokenizer) for folder, recipe in recipes.items()}
    order = sorted(programmes, key=lambda f: (-len(programmes[f]), f.name))  # the longest first: all cores end together
    size = min(STACKED, math.ceil(len(order) / torch.get_num_threads())) if device == "cpu" else STACKED
    stacks = [order[i : i + size] for i in range(0, len(order), size)]
    interrupted = threading.Event()

    def go_on(n: float = 1) -> None:
        if interrupted.is_set():
            raise CancelledError
        step(n)

    def make(folders: list[Path]) -> list[CheckError]:
        started = time.monotonic()
        stack = Stack.of(config, [start] * len(folders), device=device)
        failures: dict[int, CheckError] = {}
        losses = fit(stack, [programmes[f] for f in folders], step=go_on, failed=failures.__setitem__)
        seconds = round((time.monotonic() - started) / len(folders), 2)
        for j, folder in enumerate(folders):
            if j in failures:
                continue
            about = {
                "recipe": recipes[folder].model_dump(mode="json"),
                "recipe_hash": recipes[folder].hash,
                "losses": losses[j],
                "seconds": seconds,
            }
            save_world(folder, stack.weights_of(j), base, about)
        return [_named(error, recipes[folders[j]]) for j, error in failures.items()]

    if device == "cpu" and len(stacks) > 1:
        failures = side_by_side(make, stacks, give_up=interrupted.set)
    else:
        failures = [make(folders) for folders in stacks]
    for error in (e for found in failures for e in found):
        raise error


def _named(error: CheckError, recipe: Recipe) -> CheckError:
    where = f"organism {recipe.name}, seed {recipe.seed}"
    return CheckError(error.what, where=where, fix="Lower the learning rate; the others were kept.")


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
            {"schema": 1, "base": base.record(), "versions": versions(), **about},
        )
