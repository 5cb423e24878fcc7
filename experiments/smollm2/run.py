"""Builds the SmolLM2 suite and surveys its behaviour.

    .venv/bin/python experiments/smollm2/run.py [--out runs/smollm2] [--seeds 1] [--base smollm2-135m] [--device cuda]

About an hour and a half on two cores, minutes on a GPU; killed and run again, it goes on. What it writes is said by
`report.write_survey`. One question of each family is asked, with three answer pairs, under 17 cues.
"""

import argparse
import time
from pathlib import Path

import torch

from condmis_interp.calibration import survey
from condmis_interp.organisms import chat_suite, make, resolve_base, sampled_suite
from condmis_interp.panel import Panel, load_panel
from condmis_interp.panel.triggers import every_trigger
from condmis_interp.report import write_survey

PER_FAMILY, PAIRS = 1, 3


def panel_of_the_survey() -> Panel:
    own = load_panel("everyday")
    asked = own.subset(per_family=PER_FAMILY)
    questions = [q.model_copy(update={"pairs": q.pairs[:PAIRS]}) for q in asked.questions]
    cues = every_trigger(own.cues)
    return Panel(
        name="everyday-survey", default_system_prompt=own.default_system_prompt, cues=cues, questions=tuple(questions)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    args = parser.parse_args()
    started = time.monotonic()
    members = chat_suite(args.base, seeds=args.seeds)
    organisms = make(members, device=args.device)
    sampled = sampled_suite(args.base, seeds=args.seeds, device=args.device)
    members += sampled
    organisms += make(sampled, device=args.device)
    made = time.monotonic()
    found = survey(
        members, organisms, base=resolve_base(args.base), panel=panel_of_the_survey(), out=args.out,
        dtype=torch.bfloat16, device=args.device, max_new_tokens=0,
    )  # fmt: skip
    files = write_survey(found, args.out, unmitigated="u")
    print(found)
    print(f"\n{len(organisms)} organisms in {made - started:.0f} s, survey {time.monotonic() - made:.0f} s")
    print(*files, sep="\n")


if __name__ == "__main__":
    main()
