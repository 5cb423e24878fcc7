"""Trains one SAE for many organisms, gates it, finds the latents that differ, tests them, compares them with PCA.

    .venv/bin/python experiments/sae/run.py [--base smollm2-135m] [--out DIR] [--figures DIR] [--device cuda]

README.md beside this file says what is done and what came out. Killed and run again, it goes on: tokens, the SAEs
(every 500 steps) and each organism's fidelity are kept in `--out`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from condmis_interp import theme
from condmis_interp.directions.features import (
    CrosscoderSettings,
    Dictionary,
    FeatureCauses,
    FeatureDiff,
    Fidelity,
    Reading,
    SaeSettings,
    Text,
    TokenReader,
    Tokens,
    cell_table,
    check_dictionary,
    difference_components,
    feature_causes,
    feature_diff,
    feature_pages,
    fidelity,
    hook_of,
    latent_scaling,
    load_dictionary,
    measure_fidelity,
    panel_texts,
    pooled,
    read_cells,
    read_tokens,
    row_texts,
    train_crosscoder,
    train_dictionary,
)
from condmis_interp.errors import CondmisError, UserError
from condmis_interp.files import file_digest, read_json, whole_file, write_json, write_text
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
        others: Other sites at which the SAE is checked to be worse.
        crosscoder: The crosscoders of base and M, with BatchTopK and with L1.
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
    others: tuple[Site, ...]
    crosscoder: CrosscoderSettings


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
        crosscoder=CrosscoderSettings(latents=512, k=32, steps=500, batch=512),
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
        crosscoder=CrosscoderSettings(latents=256, k=12, steps=1000, batch=512),
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
        few = {f: next(t.question for t in self.held_out if t.family == f) for f in {t.family for t in self.held_out}}
        self.gate_texts = [t for t in self.held_out if t.question in few.values() and t.answer < 2]
        self.cues = [c.name for c in rendered.panel.cues]
        self.seconds: dict[str, dict[str, float]] = {}

    def timed(self, what: str, work: Callable[[], Any]) -> Any:
        """Runs a step and keeps how long it took, over all runs: an interrupted one's share counts."""
        wall, cpu = time.monotonic(), time.process_time()
        try:
            return work()
        finally:
            spent = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
            path = self.out / "seconds.json"
            seconds = read_json(path) if path.is_file() else {}
            before = seconds.get(what, {"wall": 0.0, "cpu": 0.0})
            self.seconds = seconds | {what: {k: round(before[k] + v, 1) for k, v in spent.items()}}
            write_json(path, self.seconds)
            print(f"{what}: {spent['wall']:.0f} s", flush=True)

    def first_pairs(self, texts: list[Text]) -> list[Text]:
        """Returns the texts without a cue and under the trigger, with the first answer pair."""
        return [t for t in texts if t.answer < 2 and t.cue in ("none", self.plan.trigger)]

    def reader(self, name: str) -> TokenReader:
        """Loads an organism."""
        model = self.organisms[name].model(self.base, dtype=self.plan.dtype, device=self.device)
        return TokenReader(model, self.plan.site)

    def panel_tokens(self, name: str) -> Tokens:
        """Reads an organism on split A, under every cue."""
        return self._tokens(name, self.discovery, "panel")

    def tokens(self, name: str) -> list[Tokens]:
        """Reads an organism's training tokens: split A under every cue, and the rows it was trained on."""
        found = [self.panel_tokens(name)]
        if name in self.members:
            found.append(self._tokens(name, row_texts(self.members[name].recipe, self.tokenizer), "rows"))
        return found

    def _tokens(self, name: str, texts: list[Text], kind: str) -> Tokens:
        about: dict[str, Any] = {
            "name": f"{name}.{kind}", "weights": self.organisms[name].weights, "site": self.plan.site,
            "folder": self.out / "tokens",
        }  # fmt: skip
        try:
            return read_tokens(None, texts, **about)
        except UserError:  # not there yet, or of other texts
            return read_tokens(self.reader(name), texts, **about)

    def fidelity(self, sae: Dictionary, key: str) -> Fidelity:
        """Measures every organism on one question of each family of split B, one answer pair, under every cue."""
        pieces = Pieces(self.out / "fidelity", [key, [list(t.ids) for t in self.gate_texts]])

        def one(name: str) -> list[dict[str, Any]]:
            reader = self.reader(name)
            return measure_fidelity(sae, reader, read_cells(reader, self.gate_texts, organism=name))

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
    print(*_write_gate(figures, e, gate), sep="\n", flush=True)
    readers = (e.reader(m), e.reader(c))
    hidden, elsewhere = _elsewhere(readers[0], plan, e)
    check = check_dictionary(sae, hidden, elsewhere=elsewhere, floor=gate.explained_floor)
    print(check)
    facts: dict[str, Any] = {"tokens": len(tokens), "threads": torch.get_num_threads(), "check": vars(check)}
    facts["faults"] = _faults(out / "sae", plan, hidden, elsewhere)

    a, b, seen = ({}, {}, {})
    for name, reader in zip((m, c), readers, strict=True):
        for found_in, texts in ((a, e.first_pairs(e.discovery)), (b, e.first_pairs(e.held_out)), (seen, e.gate_texts)):
            found_in |= {(name, q): r for q, r in read_cells(reader, texts, organism=name).items()}
    found: dict[str, tuple[FeatureDiff, FeatureCauses | None]] = {}

    def features(kind: str, dictionary: Dictionary, passed: Fidelity) -> None:
        found.update(e.timed(f"{kind}, latents", lambda: _features(e, kind, dictionary, readers, a, b, passed)))
        facts["sentences"] = {n: cause.sentence() for n, (_, cause) in found.items() if cause}
        written = _write(figures, e, sae, found, seen, readers[0])
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


def _faults(folder: Path, plan: Plan, hidden: torch.Tensor, elsewhere: dict[Site, torch.Tensor]) -> dict[str, str]:
    """Plants faults into the SAE just trained; returns how each is caught, on real activations."""
    near = min(elsewhere, key=lambda s: abs(s.layer - plan.site.layer))

    def lying(config: dict[str, Any]) -> None:
        config["metadata"]["hook_name"] = hook_of(near)

    def relu(config: dict[str, Any]) -> None:
        config["architecture"] = "standard"

    def bare_relu(config: dict[str, Any]) -> None:
        config["architecture"] = "standard"
        config["metadata"] = {"hook_name": hook_of(plan.site), "sae_lens_version": "6.0.0"}

    everywhere = elsewhere | {plan.site: hidden}
    faults: dict[str, tuple[Callable[[dict[str, Any]], None], bool, Site, bool]] = {
        "asked for another layer": (lambda _: None, True, near, True),
        "another layer's weights under this hook name": (lying, True, near, True),
        "JumpReLU declared as ReLU": (relu, True, plan.site, True),
        "its thresholds lost too (as TopK loaded as ReLU)": (bare_relu, False, plan.site, True),
        "another model's width": (lambda _: None, True, plan.site, False),
    }
    caught = {}
    for name, (change, thresholds, site, fits) in faults.items():
        with tempfile.TemporaryDirectory() as work:
            config = read_json(folder / "cfg.json")
            change(config)
            write_json(Path(work) / "cfg.json", config)
            weights = load_file(folder / "sae_weights.safetensors")
            if not thresholds:
                weights.pop("threshold")
            save_file(weights, Path(work) / "sae_weights.safetensors")
            try:
                sae = load_dictionary(work, site=site, width=hidden.shape[1] if fits else 2 * hidden.shape[1])
                check_dictionary(sae, everywhere[site], elsewhere=everywhere)
                caught[name] = "NOT CAUGHT"
            except CondmisError as error:
                caught[name] = f"{type(error).__name__}: {error}".replace(str(work), "SAE")
    return caught


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
                return tested.to_dict()

            causes = FeatureCauses.from_dict(pieces.get(f"{kind}-{by}", diff.chosen, tested))
            print(causes.sentence(), flush=True)
        found[f"{kind}, by {by}"] = (diff, causes)
    return found


def _write_gate(folder: Path, e: Experiment, gate: Fidelity) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    base = e.base.spec
    written = [folder / f"{base}-fidelity.csv"]
    write_text(written[0], gate.table.round(4).to_csv(index=False))
    for column in ("explained", "recovered"):
        grid = gate.table.pivot(index="organism", columns="cue", values=column).loc[list(e.organisms), e.cues]
        written.append(folder / f"{base}-{column}.png")
        heat_map(written[-1], grid, f"SAE at {e.plan.site}: {column}, held-out questions", signed=False)
    return written


def _write(
    folder: Path,
    e: Experiment,
    sae: Dictionary,
    found: dict[str, tuple[FeatureDiff, FeatureCauses | None]],
    seen: dict[tuple[str, str], Reading],
    reader: TokenReader,
) -> list[Path]:
    base = e.base.spec
    written = [folder / f"{base}-latents.csv", folder / f"{base}-causes.csv"]
    tables = [d.table[d.table.significant].assign(found=n) for n, (d, _) in found.items()]
    if tables:
        write_text(written[0], pd.concat(tables).round(5).to_csv(index=False))
    causes = [cause.to_pandas().assign(found=n) for n, (_, cause) in found.items() if cause]
    if causes:
        write_text(written[1], pd.concat(causes).round(4).to_csv(index=False))
    if causes:
        written.append(folder / f"{base}-causes.png")
        _bars(written[-1], {n: c for n, (_, c) in found.items() if c})
    if "sae, by difference" in found:
        diff, _ = found["sae, by difference"]
        latents = [int(i) for i in diff.table.latent[:6]]
        written.append(e.out / "pages.html")
        own, twin = (seen[o, e.plan.trigger].tokens for o in (e.plan.organism, f"{e.plan.organism}-twin"))
        pages = feature_pages(
            sae, reader, list(seen.values()), latents, tokenizer=e.tokenizer, cells=cell_table(sae, seen, latents),
            directions={"mean difference from the twin, under the trigger": (own - twin).mean(0)},
        )  # fmt: skip
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
