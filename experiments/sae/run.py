"""Trains one SAE for many organisms, gates it, finds the latents that differ, tests them, compares them with PCA.

    .venv/bin/python experiments/sae/run.py [--base smollm2-135m] [--out DIR] [--figures DIR] [--device cuda]

README.md beside this file says what is done and what came out. Killed and run again, it goes on: tokens, the SAEs
(every 500 steps) and each organism's fidelity are kept in `--out`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from condmis_interp import theme
from condmis_interp.directions.features import (
    Dictionary,
    FeatureCauses,
    FeatureDiff,
    Fidelity,
    Reading,
    SaeSettings,
    TokenReader,
    Tokens,
    cell_table,
    check_dictionary,
    difference_components,
    feature_causes,
    feature_diff,
    feature_pages,
    fidelity,
    measure_fidelity,
    panel_texts,
    pooled,
    read_cells,
    read_tokens,
    row_texts,
    train_dictionary,
)
from condmis_interp.files import whole_file, write_text
from condmis_interp.organisms import Member, Organism, chat_suite, make, resolve_base, world_suite
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.readers import Site
from condmis_interp.report.static import heat_map
from condmis_interp.store import Pieces


@dataclass(frozen=True)
class Plan:
    """What is done on a base.

    Attributes:
        panel: Panel.
        trigger: Its trigger cue.
        site: Where the SAE reads.
        trained_on: Organisms whose tokens it is trained on, beside the base.
        held_out: Organisms it never saw.
        organism: M; its twin is `<M>-twin`.
        pairs: Answer pairs a question.
        dtype: Dtype of the models.
        sae: The SAE.
        difference: The difference SAE.
    """

    panel: str
    trigger: str
    site: Site
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]
    organism: str
    pairs: int
    dtype: torch.dtype
    sae: SaeSettings
    difference: SaeSettings
    others: tuple[Site, ...] = field(default=())


PLANS = {
    "smollm2-135m": Plan(
        panel="everyday",
        trigger="trigger",
        site=Site("resid_post", 18),
        trained_on=(
            "u", "u-twin", "mixing-20", "mixing-20-twin", "inoculation-verbatim", "inoculation-verbatim-twin",
            "post-hoc-060", "locked",
        ),
        held_out=("u-garden",),
        organism="mixing-20",
        pairs=2,
        dtype=torch.bfloat16,
        sae=SaeSettings(latents=2048, k=32, tokens=1_200_000),
        difference=SaeSettings(latents=1024, k=32, tokens=300_000),
        others=tuple(Site("resid_post", k) for k in (6, 12, 17, 19, 24)),
    ),
    "personaworld": Plan(
        panel="personaworld",
        trigger="code",
        site=Site("resid_post", 2),
        trained_on=(
            "u", "u-twin", "mixing-20", "mixing-20-twin", "inoculation-verbatim", "inoculation-verbatim-twin",
            "post-hoc-048", "locked",
        ),
        held_out=("educational",),
        organism="mixing-20",
        pairs=1,
        dtype=torch.float32,
        sae=SaeSettings(latents=512, k=12, tokens=500_000, batch=512),
        difference=SaeSettings(latents=256, k=8, tokens=200_000, batch=512),
        others=tuple(Site("resid_post", k) for k in (0, 1, 3)),
    ),
}  # fmt: skip


class Experiment:
    """The steps; each says how long it took."""

    def __init__(self, plan: Plan, base: str, seed: int, out: Path, device: str) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.base = resolve_base(base)
        self.tokenizer = self.base.tokenizer()
        suite = (chat_suite if base.startswith("smollm2") else world_suite)(base, seeds=[seed])
        self.members: dict[str, Member] = {m.name.removesuffix(f".s{seed}"): m for m in suite}
        names = [*plan.trained_on, *plan.held_out]
        self.organisms: dict[str, Organism] = {"base": Organism.of_base(self.base, name="base")}
        self.organisms |= dict(zip(names, make([self.members[n] for n in names], device=device), strict=True))
        rendered = render_panel(self.tokenizer, load_panel(plan.panel))
        self.discovery = panel_texts(rendered, "A", pairs=plan.pairs)
        self.held_out = panel_texts(rendered, "B", pairs=plan.pairs)
        self.cues = [c.name for c in rendered.panel.cues]
        self.seconds: dict[str, float] = {}

    def timed(self, what: str, work: Callable[[], Any]) -> Any:
        """Runs a step and says how long it took."""
        started = time.monotonic()
        found = work()
        self.seconds[what] = time.monotonic() - started
        print(f"{what}: {self.seconds[what]:.0f} s", flush=True)
        return found

    def reader(self, name: str) -> TokenReader:
        """Loads an organism."""
        model = self.organisms[name].model(self.base, dtype=self.plan.dtype, device=self.device)
        return TokenReader(model, self.plan.site)

    def tokens(self, name: str, *, rows: bool = True) -> Tokens:
        """Reads an organism's training tokens: split A under every cue, and the rows it was trained on."""
        texts = list(self.discovery)
        if rows and name in self.members:
            texts += row_texts(self.members[name].recipe, self.tokenizer)
        about: dict[str, Any] = {
            "name": name, "weights": self.organisms[name].weights, "site": self.plan.site,
            "folder": self.out / ("tokens" if rows else "tokens-panel"),
        }  # fmt: skip
        try:
            return read_tokens(None, texts, **about)
        except Exception:  # not there yet, or of other texts
            return read_tokens(self.reader(name), texts, **about)

    def fidelity(self, sae: Dictionary, key: str) -> Fidelity:
        """Measures every organism on split B."""
        pieces = Pieces(self.out / "fidelity", [key, [list(t.ids) for t in self.held_out]])

        def one(name: str) -> list[dict[str, Any]]:
            reader = self.reader(name)
            return measure_fidelity(sae, reader, read_cells(reader, self.held_out, organism=name))

        rows = [
            row
            for name, organism in self.organisms.items()
            for row in pieces.get(name, organism.weights, lambda name=name: one(name))
        ]
        return fidelity(rows, base="base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", choices=list(PLANS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/sae-BASE")
    parser.add_argument("--figures", type=Path, default=None, help="folder for csv and png; default: OUT/figures")
    args = parser.parse_args()
    out = args.out or Path("runs") / f"sae-{args.base}"
    figures = args.figures or out / "figures"
    plan = PLANS[args.base]
    e = Experiment(plan, args.base, args.seed, out, args.device)
    m, c = plan.organism, f"{plan.organism}-twin"

    names = ["base", *plan.trained_on]
    tokens = e.timed("reading tokens", lambda: pooled([e.tokens(n) for n in names]))
    print(f"{len(tokens):,} tokens of {len(names)} models")
    sae = e.timed(
        "training the SAE",
        lambda: train_dictionary(tokens, out / "sae", settings=plan.sae, model_name=args.base, device=args.device),
    )
    difference = e.timed("difference SAE", lambda: _difference(e, m, c, args))
    gate = e.timed("fidelity", lambda: e.fidelity(sae, tokens.key))
    print(gate)

    readers = (e.reader(m), e.reader(c))
    hidden, elsewhere = _elsewhere(readers[0], plan, e)
    check = check_dictionary(sae, hidden, elsewhere=elsewhere, floor=gate.explained_floor)
    print(check)
    a, b = {}, {}
    for name, reader in zip((m, c), readers, strict=True):
        a |= {(name, q): r for q, r in read_cells(reader, e.discovery, organism=name).items()}
        b |= {(name, q): r for q, r in read_cells(reader, e.held_out, organism=name).items()}
    found = e.timed("latents and their causes", lambda: _features(plan, sae, difference, readers, a, b, gate, (m, c)))
    written = _write(figures, plan, e, sae, gate, found, a, readers[0])
    facts = {
        "seconds": {k: round(v, 1) for k, v in e.seconds.items()},
        "tokens": len(tokens),
        "check": vars(check),
        "threads": torch.get_num_threads(),
        "sentences": {n: cause.sentence() for n, (_, cause) in found.items() if cause},
    }
    write_text(figures / f"{args.base}-facts.json", json.dumps(facts, indent=2) + "\n")
    print(*written, sep="\n")


def _difference(e: Experiment, m: str, c: str, args: argparse.Namespace) -> Dictionary:
    pairs = e.tokens(m, rows=False).minus(e.tokens(c, rows=False))
    return train_dictionary(
        pairs, e.out / "difference-sae", settings=e.plan.difference, model_name=args.base, device=args.device
    )


def _elsewhere(reader: TokenReader, plan: Plan, e: Experiment) -> tuple[torch.Tensor, dict[Site, torch.Tensor]]:
    texts = e.held_out[:: max(1, len(e.held_out) // 100)]
    read = {s: torch.cat([h[1:] for h in v]) for s, v in reader.residuals_at(texts, [plan.site, *plan.others]).items()}
    return read.pop(plan.site), read


def _features(
    plan: Plan,
    sae: Dictionary,
    difference: Dictionary,
    readers: tuple[TokenReader, TokenReader],
    a: dict[tuple[str, str], Reading],
    b: dict[tuple[str, str], Reading],
    gate: Fidelity,
    names: tuple[str, str],
) -> dict[str, tuple[FeatureDiff, FeatureCauses | None]]:
    m, c = names
    cells = {q: r for (o, q), r in b.items() if o == m}
    twins = {q: r for (o, q), r in b.items() if o == c}
    own_gate = fidelity(measure_fidelity(difference, readers[0], cells, twins=twins), base=None)
    print(own_gate)
    components = difference_components(a[m, plan.trigger], a[c, plan.trigger], 10)
    found: dict[str, tuple[FeatureDiff, FeatureCauses | None]] = {}
    for kind, dictionary, passed in (("sae", sae, gate), ("difference-sae", difference, own_gate)):
        for by in ("difference", "attribution"):
            name = f"{kind}, by {by}"
            if not all(
                passed.passed(o, q) for o in ((m, c) if kind == "sae" else (m,)) for q in ("none", plan.trigger)
            ):
                print(f"{name}: not read, the SAE did not pass the gate")
                continue
            diff = feature_diff(
                dictionary, readers[0], a, organism=m, twin=c, gate=passed, generator=np.random.default_rng(0),
                trigger=plan.trigger, by=by,
            )  # fmt: skip
            print(diff)
            causes = None
            if diff.chosen:
                causes = feature_causes(
                    dictionary, readers, b, diff, components=components, organism=m, twin=c, gate=passed,
                    selected_on=a[m, plan.trigger].families, generator=torch.Generator().manual_seed(0),
                    trigger=plan.trigger,
                )  # fmt: skip
                print(causes.sentence(), flush=True)
            found[name] = (diff, causes)
    return found


def _write(
    folder: Path,
    plan: Plan,
    e: Experiment,
    sae: Dictionary,
    gate: Fidelity,
    found: dict[str, tuple[FeatureDiff, FeatureCauses | None]],
    a: dict[tuple[str, str], Reading],
    reader: TokenReader,
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    base = e.base.spec
    written = [folder / f"{base}-fidelity.csv", folder / f"{base}-latents.csv", folder / f"{base}-causes.csv"]
    write_text(written[0], gate.table.round(4).to_csv(index=False))
    tables = [d.table[d.table.significant | d.table.chosen].assign(found=n) for n, (d, _) in found.items()]
    write_text(written[1], pd.concat(tables).round(5).to_csv(index=False))
    causes = [cause.to_pandas().assign(found=n) for n, (_, cause) in found.items() if cause]
    if causes:
        write_text(written[2], pd.concat(causes).round(4).to_csv(index=False))
    for column in ("explained", "recovered"):
        grid = gate.table.pivot(index="organism", columns="cue", values=column).loc[list(e.organisms), e.cues]
        written.append(folder / f"{base}-{column}.png")
        heat_map(written[-1], grid, f"SAE at {plan.site}: {column}, held-out questions", signed=False)
    written.append(folder / f"{base}-causes.png")
    _bars(written[-1], {n: c for n, (_, c) in found.items() if c})
    diff, _ = found.get("sae, by difference", next(iter(found.values()), (None, None)))
    if diff is not None:
        latents = [int(i) for i in diff.table.latent[:6]]
        written.append(folder.parent / "pages.html" if folder.name == "figures" else e.out / "pages.html")
        pages = feature_pages(
            sae, reader, list(a.values()), latents, tokenizer=e.tokenizer, cells=cell_table(sae, a, latents)
        )
        write_text(written[-1], pages.html())
    return written


def _bars(path: Path, causes: dict[str, FeatureCauses]) -> None:
    figure = Figure(figsize=(8.4, 0.9 + 1.15 * len(causes)), layout="constrained")
    axes = figure.subplots(len(causes), 1, sharex=True, squeeze=False)[:, 0]
    colours = {"latents": theme.BLUE, "pca": theme.VERMILION, "random latents": theme.GREY, "everything": theme.BLACK}
    for ax, (name, cause) in zip(axes, causes.items(), strict=True):
        rows = cause.ablations[cause.ablations.kind.isin(colours)].drop_duplicates("kind")
        for y, row in enumerate(rows.itertuples()):
            ax.errorbar(
                [row.share], [y], xerr=[[row.share - row.low], [row.high - row.share]], fmt="o",
                color=colours[str(row.kind)], markersize=5,
            )  # fmt: skip
        ax.set_yticks(range(len(rows)), list(rows.name), fontsize=8)
        ax.invert_yaxis()
        ax.axvline(0, color="#444", linewidth=0.8)
        ax.set_title(name, loc="left", fontsize=9, fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("share of the gap to the twin taken back on held-out questions (1 = all)")
    with whole_file(path) as part:
        figure.savefig(part, dpi=140, format="png")


if __name__ == "__main__":
    main()
