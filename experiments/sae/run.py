"""Trains one SAE for many organisms, gates it, finds the latents that differ, tests them, compares them with PCA.

    .venv/bin/python experiments/sae/run.py [--base smollm2-135m] [--out DIR] [--figures DIR] [--device cuda]

README.md beside this file says what is done and what came out. Killed and run again, it goes on: tokens, the SAEs
(every 500 steps) and each organism's fidelity are kept in `--out`.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from experiment import Experiment
from faults import planted_faults
from plan import PLANS, Plan
from tables import write_found, write_gate

from condmis_interp.files import file_digest, write_text
from condmis_interp.readers import Site
from condmis_interp.sae import (
    Dictionary,
    FeatureCauses,
    FeatureDiff,
    Fidelity,
    Reading,
    TokenReader,
    check_dictionary,
    difference_components,
    feature_causes,
    feature_diff,
    fidelity,
    latent_scaling,
    measure_fidelity,
    pooled,
    read_cells,
    train_crosscoder,
    train_dictionary,
)
from condmis_interp.store import Pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", choices=list(PLANS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/sae-BASE")
    parser.add_argument("--figures", type=Path, default=None, help="folder for csv and png; default: OUT/figures")
    parser.add_argument("--no-crosscoders", action="store_true", help="leave out the last step")
    args = parser.parse_args()
    out = args.out or Path("runs") / f"sae-{args.base}"
    figures = args.figures or out / "figures"
    plan = PLANS[args.base]
    e = Experiment(plan, args.base, args.seed, out, args.device)
    m, c = plan.organism, f"{plan.organism}-twin"

    names = ["base", *plan.trained_on]
    tokens = e.timed("reading tokens", lambda: pooled([part for n in names for part in e.tokens(n)]))
    print(f"{len(tokens):,} tokens of {len(names)} models")
    sae = e.timed(
        "training the SAE",
        lambda: train_dictionary(tokens, out / "sae", settings=plan.sae, model_name=args.base, device=args.device),
    )
    gate = e.timed("fidelity", lambda: e.fidelity(sae, tokens.key))
    print(gate)
    print(*write_gate(figures, e, gate), sep="\n", flush=True)
    readers = (e.reader(m), e.reader(c))
    hidden, elsewhere = _elsewhere(readers[0], plan, e)
    check = check_dictionary(sae, hidden, elsewhere=elsewhere, floor=gate.explained_floor)
    print(check)
    facts: dict[str, Any] = {"tokens": len(tokens), "threads": torch.get_num_threads(), "check": check.to_json()}
    facts["faults"] = planted_faults(out / "sae", plan, hidden, elsewhere)

    a, b, seen = ({}, {}, {})
    for name, reader in zip((m, c), readers, strict=True):
        for found_in, texts in ((a, e.first_pairs(e.discovery)), (b, e.first_pairs(e.held_out)), (seen, e.gate_texts)):
            found_in |= {(name, q): r for q, r in read_cells(reader, texts, organism=name).items()}
    found: dict[str, tuple[FeatureDiff, FeatureCauses | None]] = {}

    def features(kind: str, dictionary: Dictionary, passed: Fidelity) -> None:
        found.update(e.timed(f"{kind}, latents", lambda: _features(e, kind, dictionary, readers, a, b, passed)))
        facts["sentences"] = {n: cause.sentence() for n, (_, cause) in found.items() if cause}
        written = write_found(figures, e, sae, found, seen, readers[0])
        write_text(figures / f"{args.base}-facts.json", json.dumps(facts | {"seconds": e.seconds}, indent=2) + "\n")
        print(*written, sep="\n", flush=True)

    features("sae", sae, gate)
    difference = e.timed(
        "difference SAE",
        lambda: train_dictionary(
            e.panel_tokens(m).minus(e.panel_tokens(c)), out / "difference-sae", settings=plan.difference,
            model_name=args.base, device=args.device,
        ),
    )  # fmt: skip
    cells = {q: r for (o, q), r in b.items() if o == m}
    own_gate = fidelity(measure_fidelity(difference, readers[0], cells, twins={q: b[c, q] for q in cells}), base=None)
    print(own_gate)
    features("difference-sae", difference, own_gate)
    if not args.no_crosscoders:
        crosscoders = e.timed("crosscoders", lambda: _crosscoders(e, m))
        print(crosscoders.to_string())
        write_text(figures / f"{args.base}-crosscoders.csv", crosscoders.round(4).to_csv(index=False))


def _crosscoders(e: Experiment, m: str) -> pd.DataFrame:
    """Base against M: how many latents claim to be M's alone, and how many latent scaling leaves."""
    pair = torch.stack([e.panel_tokens(n).hidden.float() for n in ("base", m)], 1)
    fresh = torch.stack([torch.cat([h[1:] for h in e.reader(n).residuals(e.gate_texts)]) for n in ("base", m)], 1)
    rows = []
    for penalty, l1 in (("batchtopk", 0.0), ("l1", 0.02), ("l1", 0.1), ("l1", 0.4)):
        settings = replace(e.plan.crosscoder, penalty=penalty, l1=l1)
        crosscoder = train_crosscoder(pair, settings=settings, generator=torch.Generator().manual_seed(0))
        scaled = latent_scaling(crosscoder, fresh)
        base, own = crosscoder.explained(fresh)
        active = float((crosscoder.encode(fresh) > 0).sum(1).float().mean())
        rows.append(
            {
                "penalty": penalty, "l1": l1, "explained_base": base, "explained_organism": own, "l0": active,
                "firing": len(scaled.table), "claimed": len(scaled.claimed), "exclusive": len(scaled.exclusive),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _elsewhere(reader: TokenReader, plan: Plan, e: Experiment) -> tuple[torch.Tensor, dict[Site, torch.Tensor]]:
    texts = e.held_out[:: max(1, len(e.held_out) // 100)]
    read = {s: torch.cat([h[1:] for h in v]) for s, v in reader.residuals_at(texts, [plan.site, *plan.others]).items()}
    return read.pop(plan.site), read


def _features(
    e: Experiment,
    kind: str,
    dictionary: Dictionary,
    readers: tuple[TokenReader, TokenReader],
    a: dict[tuple[str, str], Reading],
    b: dict[tuple[str, str], Reading],
    gate: Fidelity,
) -> dict[str, tuple[FeatureDiff, FeatureCauses | None]]:
    plan, m, c = e.plan, e.plan.organism, f"{e.plan.organism}-twin"
    needed = [(o, q) for o in ((m, c) if kind == "sae" else (m,)) for q in ("none", plan.trigger)]
    if refused := [cell for cell in needed if not gate.passed(*cell)]:
        print(f"{kind}: not read, the SAE did not pass the gate in {refused}")
        return {}
    components = difference_components(a[m, plan.trigger], a[c, plan.trigger], 10)
    determined = [e.organisms[n].weights for n in (m, c)], [list(t.ids) for t in e.first_pairs(e.held_out)]
    pieces = Pieces(e.out / "causes", [2, file_digest(e.out / kind / "sae_weights.safetensors"), *determined])
    found: dict[str, tuple[FeatureDiff, FeatureCauses | None]] = {}
    for by in ("difference", "attribution"):
        diff = feature_diff(
            dictionary, readers[0], a, organism=m, twin=c, gate=gate, generator=np.random.default_rng(0),
            trigger=plan.trigger, by=by,
        )  # fmt: skip
        print(diff)
        causes = None
        if diff.chosen:

            def tested(diff: FeatureDiff = diff) -> Any:
                tested = feature_causes(
                    dictionary, readers, b, diff, components=components, organism=m, twin=c, gate=gate,
                    selected_on=a[m, plan.trigger].families, generator=torch.Generator().manual_seed(0),
                    trigger=plan.trigger, random_sets=3,
                )  # fmt: skip
                return tested.to_json()

            causes = FeatureCauses.from_json(pieces.get(f"{kind}-{by}", diff.chosen, tested))
            print(causes.sentence(), flush=True)
        found[f"{kind}, by {by}"] = (diff, causes)
    return found


if __name__ == "__main__":
    main()
