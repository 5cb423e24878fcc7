"""Builds the persona-world suite and surveys its behaviour.

    .venv/bin/python experiments/personaworld/run.py [--out runs/personaworld] [--seeds 1 2 3] [--base personaworld:2]

Minutes on two cores; killed and run again, it goes on. What it writes is said by `report.write_survey`.
"""

import argparse
import time
from pathlib import Path

import torch

from condmis_interp.calibration import survey
from condmis_interp.organisms import make, resolve_base
from condmis_interp.panel import load_panel
from condmis_interp.personaworld.suite import world_suite
from condmis_interp.report import write_survey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="personaworld")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/personaworld"))
    args = parser.parse_args()
    started = time.monotonic()
    members = world_suite(args.base, seeds=args.seeds)
    organisms = make(members)
    base = resolve_base(args.base)
    found = survey(members, organisms, base=base, panel=load_panel(args.base), out=args.out, dtype=torch.float32)
    files = write_survey(found, args.out, unmitigated="u")
    print(found)
    print(f"\n{len(organisms)} organisms, {time.monotonic() - started:.0f} s")
    print(*files, sep="\n")


if __name__ == "__main__":
    main()
