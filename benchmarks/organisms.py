"""Persona-world organisms trained in one stack against one by one, on the same programmes.

The peer is a plain loop: transformers' LlamaForCausalLM, torch's AdamW (foreach) and gradient clipping, batches padded
alike. Both sides start from the same base; the final losses are compared.

python -m benchmarks.organisms [--json] [--organisms 16] [--alone 5]
"""

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig

from condmis_interp.organisms import resolve_base, world_suite
from condmis_interp.organisms.stacked import Stack, fit
from condmis_interp.organisms.train_world import programme, world_weights


def plainly(base, steps):
    model = base.model(dtype=torch.float32).requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    losses = []
    for s in steps:
        longest = max(len(ids) for ids, _ in s.rows)
        ids = torch.tensor([[*i, *[0] * (longest - len(i))] for i, _ in s.rows])
        labels = torch.tensor([[*t, *[-100] * (longest - len(t))] for _, t in s.rows])
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = s.learning_rate
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--organisms", type=int, default=16)
    parser.add_argument("--alone", type=int, default=5)
    args = parser.parse_args()
    base = resolve_base("personaworld")
    tokenizer = base.tokenizer()
    suite = [m for m in world_suite(seeds=range(1, 99)) if m.name.startswith("mixing-20.")][: args.organisms]
    programmes = [programme(m.recipe, tokenizer) for m in suite]
    start, config = world_weights(base.folder), LlamaConfig.from_pretrained(base.folder)
    began = time.perf_counter()
    losses = fit(Stack.of(config, [start] * len(programmes)), programmes)
    together = (time.perf_counter() - began) / len(programmes)
    alone, gaps = [], []
    for p, theirs in list(zip(programmes, losses, strict=True))[: args.alone]:
        began = time.perf_counter()
        mine = plainly(base, p)
        alone.append(time.perf_counter() - began)
        gaps.append(abs(mine[-1] - theirs[-1]))
    result = {
        "organisms": len(programmes),
        "steps": len(programmes[0]),
        "seconds_each_together": together,
        "seconds_each_alone": statistics.median(alone),
        "spread_alone": (min(alone), max(alone)),
        "speedup": statistics.median(alone) / together,
        "max_final_loss_gap": max(gaps),
    }
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:>24}  {value}")


if __name__ == "__main__":
    main()
