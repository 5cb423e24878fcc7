"""LD of a panel: the reader against plain padded forward passes over prompt + answer, on the same token ids.

python -m benchmarks.reading [--json] [--questions 24] [--repeats 5]
"""

import argparse
import json
import statistics
import time

import torch

from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.readers import Capture, Request, TorchReader


def naive(model, requests, batch=8):
    """Every prompt + answer as a row of its own, padded to the longest of its batch, in the order given."""
    rows = [(r.prompt.ids, a.ids) for r in requests for a in r.answers]
    out = []
    for i in range(0, len(rows), batch):
        chunk = rows[i : i + batch]
        longest = max(len(p) + len(a) for p, a in chunk)
        ids = torch.zeros(len(chunk), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for j, (p, a) in enumerate(chunk):
            ids[j, : len(p) + len(a)] = torch.tensor([*p, *a])
            mask[j, : len(p) + len(a)] = 1
        logprobs = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        for j, (p, a) in enumerate(chunk):
            at = torch.arange(len(p) - 1, len(p) + len(a) - 1)
            out.append(logprobs[j, at, torch.tensor(a)].double().sum().item())
    return out


def timed(f, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = f()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times), (min(times), max(times))


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    args = parser.parse_args()
    base = resolve_base("smollm2-135m")
    model = base.model(dtype=getattr(torch, args.dtype))
    panel = load_panel("everyday")
    panel = panel.subset(questions=[q.id for q in panel.questions[:: max(1, len(panel.questions) // args.questions)]])
    rendered = render_panel(base.tokenizer(), panel)
    requests = [Request(rendered.prompts["none", q.id], rendered.answers["none", q.id]) for q in panel.questions]
    reader = TorchReader(model)
    everything = Capture(layers=tuple(range(reader.n_layers)))
    reader.measure(requests[:2])
    ours, t_ours, s_ours = timed(lambda: reader.measure(requests), args.repeats)
    _, t_capture, s_capture = timed(lambda: reader.measure(requests, capture=everything), args.repeats)
    plain, t_plain, s_plain = timed(lambda: naive(model, requests), args.repeats)
    gap = (torch.cat(ours.logprobs) - torch.tensor(plain, dtype=torch.float64)).abs().max().item()
    result = {
        "questions": len(requests),
        "answers": len(plain),
        "dtype": args.dtype,
        "seconds": t_ours,
        "seconds_with_capture": t_capture,
        "seconds_naive_padded": t_plain,
        "spread": {"ours": s_ours, "capture": s_capture, "naive": s_plain},
        "speedup_vs_naive_padded": t_plain / t_ours,
        "capture_overhead": t_capture / t_ours,
        "max_logprob_gap": gap,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{len(plain)} answers to {len(requests)} questions, {args.dtype}, median of {args.repeats}")
    print(f"  reader                     {t_ours:6.2f} s")
    print(f"  reader, all layers kept    {t_capture:6.2f} s  ({t_capture / t_ours:.2f} x)")
    print(f"  naive padded forwards      {t_plain:6.2f} s  ({t_plain / t_ours:.2f} x)")
    print(f"  largest log-prob gap       {gap:.2g} nats")


if __name__ == "__main__":
    main()
