"""A sweep of 14 doses x 64 directions at a layer 0.6 of the way up, against one full forward pass for each point.

`naive` runs every prompt + answer as a padded row with a hook that adds the vector, on a sample of the points; the
reader runs all of them, eight at once. `reading` is one `measure` of the same reader for each point.

python -m benchmarks.sweep [--json] [--questions 4] [--repeats 5] [--dtype float32] [--device cpu]
"""

import argparse
import time

import torch

from benchmarks.turns import show, take_turns
from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel, pad, render_panel
from condmis_interp.readers import Request, Site, Steer, TorchReader

DOSES = tuple(d for d in (-1.0, -0.75, -0.5, -0.25, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0))
DIRECTIONS = 64
PAIRS = 2
SAMPLE = 8


def naive(model, rows, layer, vector):
    """LD of every prompt + answer in one padded forward pass under a plain hook."""
    ids, mask, spans = rows
    handle = model.base_model.layers[layer].register_forward_hook(lambda _m, _a, out: out + vector)
    logprobs = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    handle.remove()
    out = []
    for j, (begin, answer) in enumerate(spans):
        at = torch.arange(begin - 1, begin - 1 + len(answer))
        out.append(logprobs[j, at, torch.tensor(answer)].double().sum())
    return torch.stack(out)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    base = resolve_base("smollm2-135m")
    device = torch.device(args.device)
    model = base.model(dtype=getattr(torch, args.dtype), device=device)
    panel = load_panel("everyday")
    panel = panel.subset(questions=[q.id for q in panel.questions[:: max(1, len(panel.questions) // args.questions)]])
    rendered = render_panel(base.tokenizer(), panel)
    requests = [
        Request(rendered.prompts["none", q.id], rendered.answers["none", q.id][: 2 * PAIRS]) for q in panel.questions
    ]
    flat = [(r.prompt.ids, a.ids) for r in requests for a in r.answers]
    ids, mask = (t.to(device) for t in pad([(*p, *a) for p, a in flat], right=True))
    rows = (ids, mask, [(len(p), a) for p, a in flat])
    reader = TorchReader(model)
    layer = int(0.6 * reader.n_layers)
    site = Site("resid_post", layer)
    directions = torch.randn(DIRECTIONS, reader.width, generator=torch.Generator().manual_seed(0)).to(device)
    norm = reader.record(requests, sites=[site]).norms()["median"].iloc[0]
    directions *= 0.4 * norm / directions.norm(dim=1, keepdim=True)
    vectors = [dose * v for v in directions for dose in DOSES]
    points = [[Steer(site, v)] for v in vectors]
    sample = range(0, len(points), len(points) // SAMPLE)
    start = time.perf_counter()
    everything = reader.sweep(requests, points)
    whole = time.perf_counter() - start
    dtype = model.dtype
    sides = {
        "condmis_interp, 64 points": lambda: reader.sweep(requests, points[:64]),
        "one full forward each, 8 points": lambda: [naive(model, rows, layer, vectors[i].to(dtype)) for i in sample],
        "one reading each, 8 points": lambda: [reader.measure(requests, edits=points[i]) for i in sample],
    }
    results, seconds = take_turns(sides, repeats=args.repeats)
    ours = seconds["condmis_interp, 64 points"]["median"] / 64
    plain = seconds["one full forward each, 8 points"]["median"] / len(sample)
    reading = seconds["one reading each, 8 points"]["median"] / len(sample)
    gap = max(
        (torch.cat(everything[i].logprobs) - theirs.cpu()).abs().max().item()
        for i, theirs in zip(sample, results["one full forward each, 8 points"], strict=True)
    )
    result = {
        "points": len(points),
        "answers": len(flat),
        "layer": layer,
        "dtype": args.dtype,
        "device": str(device),
        "seconds": seconds,
        "seconds_whole_sweep": whole,
        "fraction_of_naive": ours / plain,
        "fraction_of_a_reading": ours / reading,
        "max_logprob_gap": gap,
    }
    title = f"{len(points)} points at layer {layer} of {reader.n_layers}, {len(flat)} answers, {args.dtype} on {device}"
    show(result, as_json=args.json, title=title)


if __name__ == "__main__":
    main()
