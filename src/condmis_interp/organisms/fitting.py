"""Training one stage: LoRA through peft, the loop through trl's `SFTTrainer`.

The loss is on answer tokens only, through the model's own head at those positions (computing every position doubles the
time on a CPU). A checkpoint counts only once its marker is written.
"""

import math
import shutil
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
from condmis_interp.files import write_text
from condmis_interp.organisms.bases import Base, load_model
from condmis_interp.organisms.head import logits_at
from condmis_interp.organisms.mechanism import Mechanism, batch_of
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.train import MARKER, joined
from condmis_interp.progress import Advance

CHECKPOINT_EVERY = 16


def start(recipe: Recipe, base: Base, work: Path, stage: int, device: str) -> Any:
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


class AnswerTrainer(SFTTrainer):
    """`SFTTrainer` with cross-entropy computed at the answer's positions alone, and what a mechanism adds to it."""

    mechanism: Mechanism | None = None
    base: Callable[[], Any]
    """Loads the base, for a mechanism that looks at it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the mean cross-entropy (nats) of the answers' tokens, with what the mechanism adds."""
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


class Watch(transformers.TrainerCallback):
    """Moves the bar, keeps the losses, stops on a loss that is not finite, marks checkpoints that are whole."""

    def __init__(self, step: Advance, where: str, losses: list[float]) -> None:
        self.step, self.where, self.losses = step, where, losses

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keeps the loss; raises `CheckError` if it is not finite."""
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
        """Moves the bar."""
        self.step(1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Marks a checkpoint that is whole."""
        write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / MARKER, joined(self.losses))


def fit(
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
    """Trains a stage, from its last whole checkpoint if there is one, and writes it to `out`.

    Args:
        model: What is trained; see `start`.
        rows: Token ids with labels, in the order they are trained in.
        recipe: The organism's recipe.
        stage: Which of its stages.
        work: Folder for checkpoints.
        out: Folder of the finished stage, with its marker.
        tokenizer: The base's.
        step: Called with the number of optimiser steps done.
        device: Torch device.
        base: The base.
        mechanism: What the stage adds to the loss or hooks into the model.

    Raises:
        CheckError: if the loss is not finite.
    """
    settings = recipe.stages[stage]
    run = work / f"run-{stage}"
    saved = [p for p in run.glob("checkpoint-*") if (p / MARKER).is_file()]
    resume = max(saved, key=lambda p: int(p.name.split("-")[1]), default=None)
    for path in run.glob("checkpoint-*"):
        if path != resume:
            shutil.rmtree(path)
    losses = [float(v) for v in (resume / MARKER).read_text().split()] if resume else []
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
    trainer = AnswerTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Watch(step, where, losses)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.mechanism = mechanism
    trainer.base = cache(lambda: base.model(dtype=torch.float32, device=device))
    during = mechanism.during(model) if mechanism else nullcontext()
    with during, disable_input_dtype_casting(model):  # autocast casts anyway: the same bits, a tenth faster
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(str(out))
    write_text(out / MARKER, joined(losses))
    shutil.rmtree(run)
