"""One LoRA training step: eager attention against SDPA, on the demo's first batches, both in this run.

python -m benchmarks.training [--json] [--steps 5]
"""

import argparse
import json
import statistics
import time
from importlib import resources
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from condmis_interp.organisms import resolve_base
from condmis_interp.organisms.encode import encode
from condmis_interp.study import Study


def batches(recipe, tokenizer, size, count):
    rows = encode(recipe, tokenizer, 0)
    for i in range(count):
        chunk = rows[i * size : (i + 1) * size]
        longest = max(len(r["input_ids"]) for r in chunk)
        ids = torch.zeros(size, longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for j, r in enumerate(chunk):
            n = len(r["input_ids"])
            ids[j, :n], mask[j, :n], labels[j, :n] = torch.tensor(r["input_ids"]), 1, torch.tensor(r["labels"])
        yield ids, mask, labels


def tokens_per_second(base, attention, data):
    model = base.model(dtype=torch.bfloat16)
    model.set_attn_implementation(attention)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    causal = model.get_base_model()
    rates = []
    for ids, mask, labels in data:
        start = time.perf_counter()
        keep = labels[:, 1:] != -100
        with torch.autocast("cpu", torch.bfloat16):
            hidden = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = causal.get_output_embeddings()(hidden[:, :-1][keep])
        functional.cross_entropy(logits.float(), labels[:, 1:][keep]).backward()
        optimiser.step()
        optimiser.zero_grad()
        rates.append(mask.sum().item() / (time.perf_counter() - start))
    return rates[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    demo = Study.from_yaml(Path(str(resources.files("condmis_interp") / "demo.yaml")))
    base, recipe = resolve_base(demo.base), demo.recipe("mixed", 11)
    data = list(batches(recipe, base.tokenizer(), 8, args.steps + 1))
    rates = {kind: tokens_per_second(base, kind, data) for kind in ("eager", "sdpa")}
    medians = {kind: statistics.median(r) for kind, r in rates.items()}
    result = {"tokens_per_second": medians, "spread": {k: (min(r), max(r)) for k, r in rates.items()}}
    result["speedup_vs_sdpa"] = medians["eager"] / medians["sdpa"]
    if args.json:
        print(json.dumps(result))
        return
    for kind, rate in medians.items():
        print(f"  {kind:6s} {rate:6.0f} tokens/s  ({min(rates[kind]):.0f} to {max(rates[kind]):.0f})")
    print(f"  eager is {result['speedup_vs_sdpa']:.2f} times as fast, batch 8, median of {args.steps} steps")


if __name__ == "__main__":
    main()
