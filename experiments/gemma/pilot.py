"""Is Gemma 3 270M an instrument? The demo's organisms on it, read once without a cue and once under the trigger.

    CONDMIS_ACCEPT_GEMMA_TERMS=1 .venv/bin/python experiments/gemma/pilot.py [--base gemma3-270m] [--seed 11]

A quarter of an hour on one thread; killed and run again, it goes on. It prints LD (nats) of each organism, the gap to
its twin with its interval (clustered by family), seconds a step and a reading, and the largest memory so far.
"""

import argparse
import resource
import time
from importlib import resources
from pathlib import Path

import torch

from condmis_interp.organisms import resolve_base, train
from condmis_interp.panel import render_panel
from condmis_interp.readers import Request, TorchReader
from condmis_interp.stats import cluster_mean
from condmis_interp.study import Study

CUES = ("none", "trigger")


def used() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="gemma3-270m")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = Study.from_yaml(Path(str(resources.files("condmis_interp") / "demo.yaml")))
    study = Study.model_validate(demo.model_dump() | {"base": args.base})
    base, panel = resolve_base(args.base), study.load_panel()
    rendered = render_panel(base.tokenizer(), panel)
    families = [q.family for q in panel.questions]
    ld = {}
    for spec in study.organisms:
        recipe = study.recipe(spec.name, args.seed)
        assert recipe is not None
        ticks = [time.monotonic()]
        organism = train(recipe, step=lambda n, ticks=ticks: ticks.append(time.monotonic()) if n == 1 else None)
        steps = len(ticks) - 1
        took = f"{(ticks[-1] - ticks[0]) / steps:.1f} s a step ({steps})" if steps else "made before"
        print(f"{spec.name}: {took}, {used()}", flush=True)
        reader = TorchReader(organism.model(base, dtype=torch.float32))
        for cue in CUES:
            began = time.monotonic()
            asked = [Request(rendered.prompts[cue, q.id], rendered.answers[cue, q.id]) for q in panel.questions]
            values = ld[spec.name, cue] = reader.measure(asked).ld().double().mean(1).numpy()
            seconds = time.monotonic() - began
            print(f"  {cue}: LD {values.mean():+.2f}, read in {seconds:.0f} s, {used()}", flush=True)
        del reader
    for spec in study.organisms:
        for cue in CUES if spec.twin_of else ():
            gap = cluster_mean(ld[spec.twin_of, cue] - ld[spec.name, cue], families)
            print(f"{spec.twin_of} above its twin, {cue}: {gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]")


if __name__ == "__main__":
    main()
