"""Peak memory of a capture against the number of prompts: a random tiny model, and SmolLM2.

Each figure is the peak resident set of a process of its own that does nothing but `Run.capture`: libraries, model,
rendered prompts, measurements and the writer, all in. U, M and C are three copies of one checkpoint that differs from
the base in a scale, because a study wants three organisms; the questions are the panel's, numbered to tell them apart.

The peak of one run hangs on when the allocator gives memory back, so each size is run several times.

python -m benchmarks.memory [--json] [--models tiny smollm2-135m] [--times 10] [--runs 3]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from condmis_interp.organisms import resolve_base
from condmis_interp.panel import Panel, load_panel
from condmis_interp.study import Study

SMALL = {"tiny": 100, "smollm2-135m": 16}
"""Questions of the smaller capture; each is asked under two cues, of three organisms."""


def tiny(folder, tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def panel_of(count):
    """The built-in panel over and over, numbered, with one answer pair a question."""
    panel = load_panel("everyday").model_dump(mode="json")
    cues = [c for c in panel["cues"] if c["role"] in ("none", "trigger")]
    asked = panel["questions"]
    questions = [
        q | {"id": f"{q['id']}-{i}", "question": f"{i}. {q['question']}", "pairs": q["pairs"][:1], "rewrites": {}}
        for i, q in ((i, asked[i % len(asked)]) for i in range(count))
    ]
    return Panel.model_validate(panel | {"cues": cues, "questions": questions})


def capture(base, checkpoint, panel, out, dtype):
    """In a process of its own: captures, and says how much memory it took at most and at the end, in MiB (Linux)."""
    study = Study.model_validate(
        {
            "name": "memory",
            "base": base,
            "panel": panel,
            "organisms": [
                {"name": "u", "role": "U", "checkpoint": checkpoint},
                {"name": "m", "role": "M", "checkpoint": checkpoint},
                {"name": "c", "role": "C", "twin_of": "m", "checkpoint": checkpoint},
            ],
            "dtype": dtype,
            "store_shard": 16,
            "device": "cpu",
        }
    )
    acts = study.open(out).capture()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    end = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    print(json.dumps({"prompts": len(acts.select()), "mib": most, "mib_at_end": end}))


def peak(base, checkpoint, count, place, dtype):
    place.mkdir(exist_ok=True)
    panel = place / f"panel-{count}.yaml"
    panel.write_text(panel_of(count).model_dump_json())
    command = [sys.executable, "-m", "benchmarks.memory", "--child", base, str(checkpoint), str(panel)]
    command += [str(place / f"run-{count}"), dtype]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def grown(name, times, runs):
    base = resolve_base("smollm2-135m")
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        spec, dtype = name, "bfloat16"
        if name == "tiny":
            tiny(place / "base", base.tokenizer())
            spec, dtype = f"dir:{place / 'base'}", "float32"
        model = resolve_base(spec).model(dtype=torch.float32)
        model.get_parameter("model.norm.weight").mul_(1.1)
        model.to(torch.bfloat16).save_pretrained(place / "checkpoint")
        del model
        sizes = {"few": SMALL[name], "many": SMALL[name] * times}
        taken = {
            how: [peak(spec, place / "checkpoint", n, place / str(k), dtype) for k in range(runs)]
            for how, n in sizes.items()
        }
    middle = {how: statistics.median(t["mib"] for t in of) for how, of in taken.items()}
    return taken | {"growth": middle["many"] / middle["few"] - 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="+", default=list(SMALL), choices=list(SMALL))
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        base, checkpoint, panel, out, dtype = args.child
        capture(base, checkpoint, panel, Path(out), dtype)
        return
    transformers.utils.logging.disable_progress_bar()
    result = {}
    for name in args.models:
        r = result[name] = grown(name, args.times, args.runs)
        if not args.json:
            for c in (*r["few"], *r["many"]):
                print(f"{name:>14}: {c['prompts']:6} prompts: {c['mib']:.0f} MiB, {c['mib_at_end']:.0f} at the end")
            print(f"{'':>14}  growth of the median peak: {r['growth']:+.1%}", flush=True)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
