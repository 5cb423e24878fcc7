"""LD scoring: the reader against lm-evaluation-harness' `loglikelihood` on the same model and token ids.

lm-evaluation-harness gets the encoded requests, so that neither side tokenises. It sorts them by length and batches
them; its best batch size of 8, 16 and 32 is taken. Needs the `bench` extra.

python -m benchmarks.scoring [--json] [--questions 8] [--repeats 5] [--dtype float32]
"""

import argparse

import torch

from benchmarks.turns import show, take_turns
from condmis_interp.organisms import resolve_base
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.readers import Capture, Request, TorchReader

CUES = ("none", "trigger")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    base = resolve_base("smollm2-135m")
    model = base.model(dtype=getattr(torch, args.dtype), device=args.device)
    panel = load_panel("everyday")
    panel = panel.subset(questions=[q.id for q in panel.questions[:: max(1, len(panel.questions) // args.questions)]])
    rendered = render_panel(base.tokenizer(), panel)
    requests = [Request(rendered.prompts[c, q.id], rendered.answers[c, q.id]) for c in CUES for q in panel.questions]
    reader = TorchReader(model)
    everything = Capture(layers=tuple(range(reader.n_layers)))
    encoded = [(("", ""), list(r.prompt.ids), list(a.ids)) for r in requests for a in r.answers]

    def harness(batch):
        peer = HFLM(pretrained=model, tokenizer=base.tokenizer(), batch_size=batch, device=args.device)
        return lambda: peer._loglikelihood_tokens(encoded, disable_tqdm=True)

    sides = {
        "condmis_interp": lambda: reader.measure(requests),
        "condmis_interp, every layer kept at 2 positions": lambda: reader.measure(requests, capture=everything),
        "condmis_interp, first tokens alone": lambda: reader.measure(requests, first_token=True),
    } | {f"lm-evaluation-harness, batches of {b}": harness(b) for b in (8, 16, 32)}
    results, seconds = take_turns(sides, repeats=args.repeats)
    best = min((n for n in seconds if n.startswith("lm-eval")), key=lambda n: seconds[n]["median"])
    ours = torch.cat(results["condmis_interp"].logprobs)
    theirs = torch.tensor([lp for lp, _ in results[best]], dtype=torch.float64)
    lengths = torch.tensor([len(a) for _, _, a in encoded])
    result = {
        "requests": len(requests),
        "answers": len(encoded),
        "dtype": args.dtype,
        "device": args.device,
        "seconds": seconds,
        "speedup_vs_lm_eval": seconds[best]["median"] / seconds["condmis_interp"]["median"],
        "capture_overhead": seconds["condmis_interp, every layer kept at 2 positions"]["median"]
        / seconds["condmis_interp"]["median"],
        "max_logprob_gap": ((ours - theirs).abs() / lengths).max().item(),
    }
    title = (
        f"{len(encoded)} answers to {len(requests)} prompts, {args.dtype} on {args.device}, median of {args.repeats}"
    )
    show(result, as_json=args.json, title=title + "; gap in nats a token")


if __name__ == "__main__":
    main()
