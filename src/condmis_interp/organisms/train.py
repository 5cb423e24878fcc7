"""Training: a recipe becomes an organism.

LoRA through peft, the loop through trl's `SFTTrainer` with the loss on answer tokens only, through the model's own head
at those positions (computing every position doubles the time on a CPU). Training can be killed anywhere: a checkpoint
counts only once its marker is written, and a finished organism is a folder that appears whole. Two processes that want
the same organism take turns.
"""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn import Linear, functional
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from condmis_interp.errors import CheckError
from condmis_interp.files import digest, read_json, write_json, write_text
from condmis_interp.organisms.bases import Base, load_model, quiet, resolve_base
from condmis_interp.organisms.encode import choices_of, encode, stage_steps, steps_of
from condmis_interp.organisms.head import logits_at
from condmis_interp.organisms.home import home, locked
from condmis_interp.organisms.mechanism import Mechanism, batch_of, mechanisms_of
from condmis_interp.organisms.organism import Organism, check_adapter, check_checkpoint, versions
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.registry import backend_of
from condmis_interp.organisms.rng import own_rng
from condmis_interp.progress import Advance, progress

TRAINING_VERSION = 2
"""Raise this when a change here changes trained weights: it is part of every organism's key."""
_UNCHANGED = {"wheel": 1, "personaworld": 1}
"""By kind of base, the version since which its weights are the same: 2 mended heads and templates that these lack."""

CHECKPOINT_EVERY = 16
_MARKER = "condmis-complete"
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


def train(recipe: Recipe, *, device: str = "cpu", step: Advance | None = None) -> Organism:
    """Returns the recipe's organism, training what is not there yet.

    Args:
        recipe: What to train.
        device: Torch device.
        step: Called with the number of optimiser steps done; by default a bar is shown.

    Raises:
        UserError: if the recipe asks for rows that are not there.
        CheckError: if the loss mask is empty, the loss is not finite, or the adapter changes nothing.
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
    started = time.monotonic()
    work = folder.parent / f".{folder.name}.work"
    work.mkdir(parents=True, exist_ok=True)
    mechanisms = mechanisms_of(recipe)
    tokenizer = base.tokenizer()
    batches = [encode(recipe, tokenizer, i) for i in range(len(recipe.stages))]
    steps = [stage_steps(len(rows), s) for rows, s in zip(batches, recipe.stages, strict=True)]
    for i in range(len(steps) - 1):
        _take_over(recipe, base, i, work / f"stage-{i}")
    done = [i for i in range(len(steps)) if (work / f"stage-{i}" / _MARKER).is_file()]
    losses: list[list[float]] = []
    first = max(done) + 1 if done else 0
    before = sum(steps[:first])
    bar = progress(f"training {recipe.name} (seed {recipe.seed})", sum(steps), unit="steps", done=before)
    with bar if told is None else nullcontext(told) as step:
        if told:
            told(before)
        for i, rows in enumerate(batches):
            out = work / f"stage-{i}"
            if not (out / _MARKER).is_file():
                with quiet(), own_rng(digest([_initial(recipe), "weights", i])):
                    model = _start(recipe, base, work, i, device)
                    _fit(model, rows, recipe, i, work, out, tokenizer, step, device, base, mechanisms[i])
            losses.append([float(v) for v in (out / _MARKER).read_text().split()])
    last = work / f"stage-{len(steps) - 1}"
    if recipe.lora:
        check_adapter(last, base, device=device)
    else:
        check_checkpoint(last, base, device=device)
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for name in _ADAPTER_FILES if recipe.lora else [p.name for p in last.iterdir() if p.name != _MARKER]:
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
    if (out / _MARKER).is_file() or not finished(before):
        return
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(before, out, ignore=shutil.ignore_patterns("manifest.json"))
    write_text(out / _MARKER, _join(read_json(before / "manifest.json")["losses"][stage]))


def _start(recipe: Recipe, base: Base, work: Path, stage: int, device: str) -> Any:
    """Returns what a stage trains: the base with a fresh adapter or the last stage's, in fp32; or all weights."""
    if recipe.lora is None:
        before = work / f"stage-{stage - 1}" if stage else base.folder
        return load_model(before, dtype=torch.float32, device=device).requires_grad_(True)
    model = base.model(dtype=torch.bfloat16, device=device)
    if stage:
        return PeftModel.from_pretrained(model, work / f"stage-{stage - 1}", is_trainable=True)
    head = model.get_output_embeddings()
    linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, Linear) and m is not head})
    targets = recipe.lora.targets or (linear if recipe.lora.layers else None)  # peft takes blocks with names alone
    config = LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        target_modules=list(targets) if targets else "all-linear",
        layers_to_transform=list(recipe.lora.layers) if recipe.lora.layers else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _initial(recipe: Recipe) -> int:
    """Returns the seed that the adapter's A is drawn by."""
    return recipe.seed if recipe.init_seed is None else recipe.init_seed


class _AnswerTrainer(SFTTrainer):
    """`SFTTrainer` with cross-entropy computed at the answer's positions alone, and what a mechanism adds to it."""

    mechanism: Mechanism | None = None
    base: Callable[[], Any]
    """Loads the base, for a mechanism that looks at it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        keep = labels != -100
        causal: Any = self.accelerator.unwrap_model(model)
        causal = causal.get_base_model() if isinstance(causal, PeftModel) else causal
        with torch.autocast(labels.device.type, torch.bfloat16):
            said = logits_at(causal, inputs["input_ids"], inputs["attention_mask"], keep)
        loss = functional.cross_entropy(said.logits.float(), labels[keep])
        if self.mechanism is not None:
            with torch.autocast(labels.device.type, torch.bfloat16):
                batch = batch_of(inputs, said, self.accelerator.unwrap_model(model), self.base)
                extra = self.mechanism.extra_loss(batch)
            loss = loss if extra is None else loss + extra
        return (loss, said.logits) if return_outputs else loss


class _Watch(transformers.TrainerCallback):
    """Moves the bar, keeps the losses, stops on a loss that is not finite, marks checkpoints that are whole."""

    def __init__(self, step: Advance, where: str, losses: list[float]) -> None:
        self.step, self.where, self.losses = step, where, losses

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise CheckError(
                    f"the loss is {loss} at step {state.global_step}",
                    where=self.where,
                    fix="Lower the learning rate; the last good checkpoint was kept.",
                )
            self.losses.append(loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step(1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARKER, _join(self.losses))


def _fit(
    model: Any,
    rows: list[dict[str, list[int]]],
    recipe: Recipe,
    stage: int,
    work: Path,
    out: Path,
    tokenizer: Any,
    step: Advance,
    device: str,
    base: Base,
    mechanism: Mechanism | None,
) -> None:
    settings = recipe.stages[stage]
    run = work / f"run-{stage}"
    saved = [p for p in run.glob("checkpoint-*") if (p / _MARKER).is_file()]
    resume = max(saved, key=lambda p: int(p.name.split("-")[1]), default=None)
    for path in run.glob("checkpoint-*"):
        if path != resume:
            shutil.rmtree(path)
    losses = [float(v) for v in (resume / _MARKER).read_text().split()] if resume else []
    step(len(losses))
    where = f"recipe {recipe.name}, stage {stage}"
    config = SFTConfig(
        output_dir=str(run),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        bf16=True,
        use_cpu=device == "cpu",
        activation_checkpointing=False,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        logging_steps=1,
        logging_nan_inf_filter=False,  # by default the Trainer replaces a NaN loss by the mean of the others
        save_strategy="steps",
        save_steps=CHECKPOINT_EVERY,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        seed=recipe.seed,
    )
    trainer = _AnswerTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_Watch(step, where, losses)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.mechanism = mechanism
    trainer.base = cache(lambda: base.model(dtype=torch.float32, device=device))
    during = mechanism.during(model) if mechanism else nullcontext()
    with during, disable_input_dtype_casting(model):  # autocast casts anyway: the same bits, a tenth faster
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(str(out))
    write_text(out / _MARKER, _join(losses))
    shutil.rmtree(run)


def _join(losses: list[float]) -> str:
    return "\n".join(repr(v) for v in losses)
