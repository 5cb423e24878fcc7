"""What the experiment writes."""

from pathlib import Path

import pandas as pd
from experiment import Experiment
from matplotlib.figure import Figure

from condmis_interp import theme
from condmis_interp.files import whole_file, write_text
from condmis_interp.report.static import heat_map
from condmis_interp.sae import (
    Dictionary,
    FeatureCauses,
    FeatureDiff,
    Fidelity,
    Reading,
    TokenReader,
    cell_table,
    feature_pages,
)


def write_gate(folder: Path, e: Experiment, gate: Fidelity) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    base = e.base.spec
    written = [folder / f"{base}-fidelity.csv"]
    write_text(written[0], gate.table.round(4).to_csv(index=False))
    for column in ("explained", "recovered"):
        grid = gate.table.pivot(index="organism", columns="cue", values=column).loc[list(e.organisms), e.cues]
        written.append(folder / f"{base}-{column}.png")
        heat_map(written[-1], grid, f"SAE at {e.plan.site}: {column}, held-out questions", signed=False)
    return written


def write_found(
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
