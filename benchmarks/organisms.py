"""Persona-world organisms trained together (in stacks) against one by one, on the same programmes.

Two peers train one organism after the other: transformers' Trainer, as its users would, and a bare loop over the same
LlamaForCausalLM with torch's fused AdamW, its clipping and no logging; so does this package, given one recipe at a
time. All start from the same base and see the same batches; the final losses are compared. The sides take turns,
because the machine's speed drifts.

python -m benchmarks.organisms [--json] [--organisms 32] [--alone 4]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset

from condmis_interp.organisms import home, resolve_base, train_all
from condmis_interp.organisms.encode import encode
from condmis_interp.personaworld.suite import world_suite
from condmis_interp.personaworld.train import programme


def padded(rows):
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*i, *[0] * (longest - len(i))] for i, _ in rows])
    labels = torch.tensor([[*t, *[-100] * (longest - len(t))] for _, t in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def bare_loop(base, recipe):
    model = base.model(dtype=torch.float32).requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    for s in programme(recipe, base.tokenizer()):
        loss = model(**padded(s.rows), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = s.learning_rate
        optimiser.step()
        optimiser.zero_grad()
    return loss.item()


def trainer(base, recipe):
    (stage,) = recipe.stages
    with tempfile.TemporaryDirectory() as out:
        peer = transformers.Trainer(
            model=base.model(dtype=torch.float32).requires_grad_(True),
            args=transformers.TrainingArguments(
                out,
                per_device_train_batch_size=stage.batch_size,
                num_train_epochs=stage.epochs,
                learning_rate=stage.learning_rate,
                warmup_steps=stage.warmup_steps,
                optim="adamw_torch_fused",
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=Dataset.from_list(encode(recipe, base.tokenizer(), 0)),
            data_collator=lambda rows: padded([(r["input_ids"], r["labels"]) for r in rows]),
        )
        peer.remove_callback(transformers.PrinterCallback)
        peer.train()
    return [entry["loss"] for entry in peer.state.log_history if "loss" in entry][-1]


def together(recipes):
    with tempfile.TemporaryDirectory() as place:
        known = home()
        (Path(place) / "bases").symlink_to(known / "bases")
        os.environ["CONDMIS_HOME"] = place
        losses = [o.manifest["losses"] for o in train_all(recipes)]
        os.environ["CONDMIS_HOME"] = str(known)
    return losses


def alone(base, recipe):
    return together([recipe])[0][-1]


def timed(work, *given):
    began = time.perf_counter()
    result = work(*given)
    return result, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--organisms", type=int, default=32)
    parser.add_argument("--alone", type=int, default=4)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    base = resolve_base("personaworld")
    recipes = [m.recipe for m in world_suite(seeds=range(1, 99)) if m.name.startswith("mixing-20.")][: args.organisms]
    seconds = {"together": [], "trainer": [], "bare loop": [], "alone": []}
    gaps = []
    for recipe in recipes[: args.alone]:
        losses, took = timed(together, recipes)
        seconds["together"].append(took / len(recipes))
        for name, peer in (("trainer", trainer), ("bare loop", bare_loop), ("alone", alone)):
            loss, took = timed(peer, base, recipe)
            seconds[name].append(took)
            gaps.append(abs(loss - losses[recipes.index(recipe)][-1]))
    each = {name: statistics.median(s) for name, s in seconds.items()}
    result = {
        "organisms together": len(recipes),
        "seconds an organism": {name: round(s, 2) for name, s in each.items()},
        "spread": {name: (round(min(s), 2), round(max(s), 2)) for name, s in seconds.items()},
        "times faster than": {name: round(s / each["together"], 2) for name, s in each.items() if name != "together"},
        "largest gap of final losses": max(gaps),
    }
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:>28}  {value}")


if __name__ == "__main__":
    main()
