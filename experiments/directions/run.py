"""Which method finds a known direction, on persona world: one that was planted, and one that other seeds agree on.

    .venv/bin/python experiments/directions/run.py [--out runs/directions] [--figures figures/directions]

README.md beside this file says what is compared with what.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.covariance import ledoit_wolf

from condmis_interp import directions
from condmis_interp.directions import Planted, Rows
from condmis_interp.files import write_text
from condmis_interp.panel.panel import Split
from condmis_interp.personaworld.suite import world_suite
from condmis_interp.stats import grouped_folds
from condmis_interp.store import Activations
from condmis_interp.study import OrganismSpec, Study

SEEDS = (1, 2, 3)
TRIGGER = "code"


def study() -> Study:
    """U and the mix that hides it, each with its twin, in three seeds."""
    recipes = {m.name: m.recipe for m in world_suite(seeds=SEEDS[:1])}
    organisms: list[OrganismSpec] = [OrganismSpec(name="base", role="base")]
    for name, role in (("u", "U"), ("mixing-20", "M")):
        recipe = {"stages": recipes[f"{name}.s1"].stages, "lora": None}
        organisms.append(OrganismSpec.model_validate({"name": name, "role": role, "recipe": recipe, "seeds": SEEDS}))
        organisms.append(OrganismSpec(name=f"{name}-twin", role="C", twin_of=name, seeds=SEEDS))
    return Study(
        name="directions",
        base="personaworld",
        panel="personaworld",
        organisms=tuple(organisms),
        controls="none",
        dtype="float32",
        store_dtype="float32",
    )


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def difference(acts: Activations, seed: int, layer: int, position: str, *, split: Split = "B") -> torch.Tensor:
    """U - C without a cue; on split B, which no method is fitted on."""
    where = {"layer": layer, "position": position, "seed": seed}
    return (acts.at("u", "none", split, **where) - acts.at("u-twin", "none", split, **where)).double().mean(0)


def filtered(rows: Rows, v: torch.Tensor, *, of_total: bool) -> torch.Tensor:
    """Returns Sigma^-1 v: what a probe that whitens would find if the class means differed by v exactly.

    Sigma is the within-class covariance, shrunk as Ledoit and Wolf have it for itself (mass-mean), or for the total
    covariance, which is how `gram.fit_dual` shrinks (LDA).
    """
    x = rows.flat[0].double()
    y = torch.from_numpy(rows.labels == 1)
    total, within = x - x.mean(0), torch.where(y[:, None], x - x[y].mean(0), x - x[~y].mean(0))
    s = float(ledoit_wolf((total if of_total else within).numpy(), assume_centered=True)[1])
    mu = float((total if of_total else within).square().sum()) / x.numel()
    sigma = within.T @ within / len(x) + s / (1 - s) * mu * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(sigma, v)


def cosines(
    acts: Activations, v: torch.Tensor, *, u: str, c: str, m: str, twin: str, persona: tuple[str, str, str],
    layer: int, position: str, seed: int | None = None,
) -> Iterator[tuple[str, float]]:  # fmt: skip
    """Fits every method on split A; yields its cosine with v, and of those that whiten the one with Sigma^-1 v."""
    at = {"layer": layer, "position": position}
    rows = directions.rows_of(
        acts, plus=[(u, "none")], minus=[(c, "none")], layers=[layer], positions=[position], seed=seed
    )
    for method in ("means", "pca", "logistic", "mass-mean"):
        found = directions.estimate(rows, method, **at).vector
        yield method, cosine(found, v)
        if method == "mass-mean":
            yield "mass-mean, with Sigma^-1 v", cosine(found, filtered(rows, v, of_total=False))
    folds = grouped_folds(rows.families, 5, np.random.default_rng(0))
    found = directions.fit_probes(rows, folds, method="lda").direction(layer, position, 0).vector
    yield "LDA", cosine(found, v)
    yield "LDA, with Sigma^-1 v", cosine(found, filtered(rows.where(folds != 0), v, of_total=True))
    own = acts if seed is None else Planted(acts.shards, {n: (n, seed) for n in (m, twin)})
    did = directions.difference_in_differences(own, organism=m, twin=twin, trigger=TRIGGER, **at)
    yield "difference-in-differences", cosine(did.vector, v)
    organism, plus, minus = persona
    vector = directions.persona_vector(acts, organism=organism, plus=plus, minus=minus, **at).vector
    yield "persona vector", cosine(vector, v)


def planted(acts: Activations, layer: int, position: str) -> Iterator[tuple[str, str, float]]:
    """Adds one seed's U - C to another seed's twin and looks for it; three ways round."""
    for a, b, source in ((1, 2, 3), (2, 3, 1), (3, 1, 2)):
        v = difference(acts, source, layer, position)
        named = {
            "U": ("u-twin", a), "C": ("u-twin", b), "M": ("mixing-20-twin", a), "M's twin": ("mixing-20-twin", b),
        }  # fmt: skip
        cells = frozenset({("U", "none"), ("M", TRIGGER), ("base", "framed")})
        own = Planted(acts.shards, named, v.float(), layer, cells)
        found = cosines(
            own, v, u="U", c="C", m="M", twin="M's twin", persona=("base", "framed", "cold"), layer=layer,
            position=position,
        )  # fmt: skip
        yield from (("planted", method, value) for method, value in found)


def natural(acts: Activations, layer: int, position: str) -> Iterator[tuple[str, str, float]]:
    """Compares each seed's directions with what the other seeds' U - C is on other questions."""
    known = {s: difference(acts, s, layer, position) for s in SEEDS}
    for seed, other in itertools.permutations(SEEDS, 2):
        found = cosines(
            acts, known[other], u="u", c="u-twin", m="mixing-20", twin="mixing-20-twin",
            persona=("base", "cruel", "kind"), layer=layer, position=position, seed=seed,
        )  # fmt: skip
        yield from (("other seeds", method, value) for method, value in found)
        yield "other seeds", "ceiling: the same questions", cosine(known[seed], known[other])
        own = difference(acts, seed, layer, position, split="A")
        yield "other seeds", "ceiling: the same seed", cosine(own, known[seed])


def recovery(acts: Activations) -> pd.DataFrame:
    """Returns the cosines with the known direction: target, layer, position, method, cosine (mean), lowest, highest."""
    rows = [
        {"target": target, "layer": layer, "position": position, "method": method, "cosine": value}
        for layer in acts.layers
        for position in ("last_template", "answer_mean")
        for ask in (planted, natural)
        for target, method, value in ask(acts, layer, position)
    ]
    keys = ["target", "layer", "position", "method"]
    found = pd.DataFrame(rows).groupby(keys, sort=False).cosine.agg(cosine="mean", lowest="min", highest="max")
    return found.reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/directions"))
    parser.add_argument("--figures", type=Path, default=None, help="folder for the table; default: OUT/figures")
    args = parser.parse_args()
    table = recovery(study().open(args.out).capture())
    write_text((args.figures or args.out / "figures") / "recovery.csv", table.round(3).to_csv(index=False))
    shown = table[table.position == "answer_mean"].pivot(index=["target", "method"], columns="layer", values="cosine")
    print(shown.round(2).to_string())


if __name__ == "__main__":
    main()
