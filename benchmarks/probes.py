"""Logistic probes at 30 layers x 3 positions x 5 folds: the batched solver against a loop over scikit-learn.

python -m benchmarks.probes [--json] [--questions 100] [--strength 0.1] [--repeats 3] [--permutations 200]

Both sides get the same synthetic activations (width 576, two rows a question, a decaying spectrum as in residual
streams), the same folds by family, the same objective (L2, unpenalised intercept, training rows centred and divided by
the root mean square of their entries, no scaling or dropping of dimensions) and the same threads, and take turns within
one run. A side's work is: scaling, fits, directions, held-out scores, one AUROC a site. scikit-learn runs its default
solver (lbfgs) twice: with its default tolerance 1e-4, and with 1e-6, which comes as close to the optimum as the batched
solver does. The objective each side reaches, relative to the lower of the two, is reported.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from condmis_interp.directions import Rows, fit_probes, probe_test
from condmis_interp.stats import grouped_folds

LAYERS, POSITIONS, FOLDS, WIDTH = 30, 3, 5, 576


def synthetic(questions, rng):
    """U and C over the same questions: a shared part, a planted shift that grows with depth, a k^-1 spectrum."""
    families = np.arange(questions) // 4
    spectrum = np.arange(1, WIDTH + 1) ** -0.5
    x = np.empty((LAYERS, POSITIONS, 2 * questions, WIDTH), dtype=np.float32)
    for layer in range(LAYERS):
        for position in range(POSITIONS):
            shared = rng.normal(size=(questions, WIDTH))
            h = (np.concatenate([shared, shared]) + 0.7 * rng.normal(size=(2 * questions, WIDTH))) * spectrum
            h[:questions] += rng.normal(size=WIDTH) / WIDTH**0.5 * 0.25 * layer / LAYERS
            x[layer, position] = h
    return Rows(
        x=torch.from_numpy(x),
        labels=np.repeat([1, 0], questions),
        families=tuple(f"f{f}" for f in families) * 2,
        questions=tuple(f"q{i}" for i in range(questions)) * 2,
        cells=(("U", "none"),) * questions + (("C", "none"),) * questions,
        layers=tuple(range(LAYERS)),
        positions=tuple(f"p{i}" for i in range(POSITIONS)),
        kind="resid_post",
        data="synthetic U - C",
    )


def with_scikit_learn(rows, folds, strength, tolerance):
    flat = rows.flat.numpy()
    w, areas = np.empty((len(flat), FOLDS, WIDTH)), np.empty(len(flat))
    for i, site in enumerate(flat):
        scores = np.empty(rows.n)
        for k in range(FOLDS):
            train = folds != k
            own = site[train].astype(np.float64)
            mean = own.mean(0)
            own -= mean
            scale = np.sqrt(np.square(own).mean())
            probe = LogisticRegression(C=strength, tol=tolerance, max_iter=10_000)
            probe.fit(own / scale, rows.labels[train])
            own_scores = probe.decision_function(own / scale)
            high, low = own_scores[rows.labels[train] == 1].mean(), own_scores[rows.labels[train] == 0].mean()
            held = probe.decision_function((site[~train] - mean) / scale)
            scores[~train] = (held - (high + low) / 2) / (high - low)
            w[i, k] = probe.coef_[0] / scale
        areas[i] = roc_auc_score(rows.labels, scores)
    return w, areas


def objective(rows, folds, w, strength):
    """The objective at each site's first fold, the intercept at its optimum."""
    values = []
    for site, of_site in zip(rows.flat.double().numpy(), w, strict=True):
        own = site[folds != 0] - site[folds != 0].mean(0)
        scale = np.sqrt(np.square(own).mean())
        f, y = own @ of_site[0], rows.labels[folds != 0]
        b = 0.0
        for _ in range(50):
            p = 1 / (1 + np.exp(-(f + b)))
            b += (y - p).sum() / (p * (1 - p)).sum()
        loss = np.logaddexp(0, f + b) - y * (f + b)
        values.append(0.5 * scale**2 * of_site[0] @ of_site[0] + strength * loss.sum())
    return np.array(values)


def timed(f):
    start, cpu = time.perf_counter(), time.process_time()
    return f(), time.perf_counter() - start, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--strength", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--permutations", type=int, default=200)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = synthetic(args.questions, rng)
    folds = grouped_folds(rows.families, FOLDS, rng)
    sides = {
        "batched": lambda: fit_probes(rows, folds, strength=args.strength, massive="keep"),
        "scikit-learn, tol 1e-4": lambda: with_scikit_learn(rows, folds, args.strength, 1e-4),
        "scikit-learn, tol 1e-6": lambda: with_scikit_learn(rows, folds, args.strength, 1e-6),
    }
    fit_probes(rows, folds, strength=args.strength, massive="keep")
    wall, cpu, found = {s: [] for s in sides}, {s: [] for s in sides}, {}
    for _ in range(args.repeats):
        for side, f in sides.items():
            found[side], seconds, cpu_seconds = timed(f)
            wall[side].append(seconds)
            cpu[side].append(cpu_seconds)
    ours = found["batched"]
    w, areas = found["scikit-learn, tol 1e-6"]
    cosines = (ours.vectors.numpy() * w).sum(-1) / ours.vectors.norm(dim=-1).numpy() / np.linalg.norm(w, axis=-1)
    reached = {s: objective(rows, folds, found[s][0], args.strength) for s in list(sides)[1:]}
    reached["batched"] = objective(rows, folds, ours.vectors.numpy(), args.strength)
    lowest = np.minimum.reduce(list(reached.values()))
    median = {s: statistics.median(t) for s, t in wall.items()}
    result = {
        "rows": rows.n,
        "sites": len(rows.sites),
        "folds": FOLDS,
        "strength": args.strength,
        "threads": torch.get_num_threads(),
        "seconds": median,
        "cpu_seconds": {s: statistics.median(t) for s, t in cpu.items()},
        "speedup_vs_sklearn": median["scikit-learn, tol 1e-6"] / median["batched"],
        "speedup_vs_sklearn_default_tolerance": median["scikit-learn, tol 1e-4"] / median["batched"],
        "max_auroc_gap": float(np.abs(ours.auroc - areas).max()),
        "min_cosine": float(cosines.min()),
        "objective_above_lowest": {s: float((v / lowest - 1).max()) for s, v in reached.items()},
        "residual": ours.residual,
    }
    if args.permutations:
        test, seconds, cpu_seconds = timed(lambda: probe_test(rows, folds, rng=rng, permutations=args.permutations))
        fits = (args.permutations + 1) * (len(rows.sites) * FOLDS * (FOLDS - 1) // 2 * 3 + FOLDS)
        result["pipeline"] = {
            "permutations": args.permutations,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "fits": fits,
            "ms_per_fit": 1e3 * seconds / fits,
            "auroc": test.auroc,
            "p": test.p.p,
        }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{rows.n} rows x {WIDTH}, {LAYERS} layers x {POSITIONS} positions x {FOLDS} folds, C = {args.strength}")
    for side, seconds in median.items():
        print(f"  {side:24s} {seconds:7.2f} s  ({seconds / median['batched']:.1f} x)")
    print(f"  largest AUROC gap {result['max_auroc_gap']:.2g}, smallest cosine {result['min_cosine']:.6f}")
    if args.permutations:
        p = result["pipeline"]
        print(f"  {args.permutations} permutations, whole pipeline: {p['seconds']:.1f} s for {p['fits']} fits")


if __name__ == "__main__":
    main()
