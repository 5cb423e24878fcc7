"""Capture of every layer at two positions of mixed-length prompts, against a bare forward pass and two libraries.

`bare` runs the same passes as the reader without hooks or unembedding. `naive padded` is a bare forward pass, without
unembedding, over the prompts in the order given, padded in batches of 16; TransformerLens (`run_with_cache`, stopped
before the unembedding) and nnsight (a trace, stopped there too) read the same padded batches and pick the same two
positions.

python -m benchmarks.capture [--json] [--questions 8] [--repeats 5] [--dtype bfloat16] [--device cpu]
"""

import argparse

import torch
from transformers import DynamicCache

from benchmarks.turns import show, take_turns
from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel, pad, render_panel
from condmis_interp.readers import Capture, Request, TorchReader
from condmis_interp.readers.batching import plan
from condmis_interp.readers.lens import LensReader
from condmis_interp.readers.nnsight import NNsightReader
from condmis_interp.readers.whole import selected

BATCH = 16
POSITIONS = ("last_template", "question_mean")


def bare(reader, batches):
    """The reader's own passes, without its hooks."""
    for batch in batches:
        cache = DynamicCache(config=reader.model.config)
        for p in batch.prompt:
            continued = cache if p.continues is None else selected(cache, p.continues)
            reader._body(
                input_ids=p.ids,
                attention_mask=p.mask,
                position_ids=p.positions,
                past_key_values=continued,
                use_cache=True,
            )
            cache = continued


def padded(prompts, device):
    """Batches in the order given: ids, mask, last position, weights of the question's mean."""
    for i in range(0, len(prompts), BATCH):
        chunk = prompts[i : i + BATCH]
        ids, mask = (t.to(device) for t in pad([p.ids for p in chunk], right=True))
        weights = torch.zeros(ids.shape, device=device)
        for row, p in enumerate(chunk):
            begin, end = p.spans["question"]
            weights[row, begin:end] = 1 / (end - begin)
        yield ids, mask, torch.tensor([len(p.ids) - 1 for p in chunk], device=device), weights


def picked(hidden, last, weights):
    rows = torch.arange(len(last), device=last.device)
    return torch.stack([hidden[rows, last].float(), torch.einsum("bpd,bp->bd", hidden.float(), weights)], 1)


def with_lens(bridge, batches, layers):
    names = {f"blocks.{layer}.hook_resid_post" for layer in range(layers)}
    out = []
    for ids, mask, last, weights in batches:
        _, cache = bridge.run_with_cache(
            ids, attention_mask=mask, names_filter=lambda n: n in names, stop_at_layer=layers, return_type=None
        )
        out.append(torch.stack([picked(cache[f"blocks.{k}.hook_resid_post"], last, weights) for k in range(layers)], 1))
    return torch.cat(out)


def with_nnsight(model, batches, layers):
    out = []
    for ids, mask, last, weights in batches:
        with model.trace(input_ids=ids, attention_mask=mask, use_cache=False) as tracer:
            kept = [].save()
            for layer in range(layers):
                kept.append(picked(model.model.layers[layer].output, last, weights))
            tracer.stop()
        out.append(torch.stack(kept, 1))
    return torch.cat(out)


def gap(a, b):
    """Largest difference, as a share of the layer's largest value."""
    a, b = a.cpu(), b.cpu()
    return ((a - b).abs() / b.abs().amax((0, 2, 3), keepdim=True)).max().item()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    base = resolve_base("smollm2-135m")
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    panel = load_panel("everyday")
    panel = panel.subset(questions=[q.id for q in panel.questions[:: max(1, len(panel.questions) // args.questions)]])
    rendered = render_panel(base.tokenizer(), panel)
    prompts = [rendered.prompts[c.name, q.id] for q in panel.questions for c in panel.cues]
    reader = TorchReader(base.model(dtype=dtype, device=device))
    lens = LensReader.over(
        base.model(dtype=dtype, device=device), folder=str(base.folder), tokenizer=base.tokenizer()
    ).bridge
    traced = NNsightReader.over(base.model(dtype=dtype, device=device), tokenizer=base.tokenizer()).envoy
    layers = reader.n_layers
    capture = Capture(layers=tuple(range(layers)), positions=POSITIONS)
    batches = list(plan([Request(p) for p in prompts], batch_tokens=reader.batch_tokens, device=device))
    naive = list(padded(prompts, device))

    def synced(run):
        def timed():
            result = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return timed

    body = reader.model.base_model
    sides = {
        "condmis_interp": lambda: reader.capture(prompts, capture=capture).activations,
        "bare forward, the same passes": lambda: bare(reader, batches),
        "bare forward, naive padded batches": lambda: [
            body(input_ids=i, attention_mask=m, use_cache=False) for i, m, _, _ in naive
        ],
        "TransformerLens, naive padded batches": lambda: with_lens(lens, naive, layers),
        "nnsight, naive padded batches": lambda: with_nnsight(traced, naive, layers),
    }
    results, seconds = take_turns({n: synced(run) for n, run in sides.items()}, repeats=args.repeats)
    ours, same, bare_naive, tl, nns = (s["median"] for s in seconds.values())
    got = torch.stack([results["condmis_interp"][p] for p in POSITIONS], 2)
    result = {
        "prompts": len(prompts),
        "tokens": sum(len(p.ids) for p in prompts),
        "padded_tokens_naive": sum(i.numel() for i, *_ in naive),
        "tokens_run": sum(p.ids.numel() for b in batches for p in b.prompt),
        "layers": layers,
        "dtype": args.dtype,
        "device": str(device),
        "seconds": seconds,
        "ratio_to_bare": ours / same,
        "speedup_vs_naive_padded": bare_naive / ours,
        "speedup_vs_transformer_lens": tl / ours,
        "speedup_vs_nnsight": nns / ours,
        "transformer_lens_to_bare_same_batches": tl / bare_naive,
        "nnsight_to_bare_same_batches": nns / bare_naive,
        "max_relative_gap_to_nnsight": gap(got, results["nnsight, naive padded batches"]),
        "max_relative_gap_to_transformer_lens": gap(got, results["TransformerLens, naive padded batches"]),
    }
    shortest, longest = min(len(p.ids) for p in prompts), max(len(p.ids) for p in prompts)
    title = (
        f"{len(prompts)} prompts of {shortest} to {longest} tokens, {layers} layers x 2 positions, {args.dtype} on "
        f"{device}, median of {args.repeats}"
    )
    show(result, as_json=args.json, title=title)


if __name__ == "__main__":
    main()
