"""Rows with no effect, in grouped designs: the same families of questions, read in two organisms or of two kinds."""

import numpy as np
import torch

from condmis_interp.directions import Rows, probe_test
from condmis_interp.stats import grouped_folds


def null_rows(rng, *, families, each=3, width=24, layers=3, design="within", effect=0.0):
    """Rows whose classes differ by chance alone: by a shift of each family's own, the same at all its questions.

    `within`: every question is read twice, and the two readings differ by its family's shift. `between`: a family is of
    one class, and families differ.
    """
    questions = families * each
    family = np.repeat(np.arange(families), each)
    copies = 2 if design == "within" else 1
    labels = np.repeat([1, 0], questions) if design == "within" else rng.permutation(families)[family] % 2
    x = np.empty((layers, 1, copies * questions, width), dtype=np.float32)
    way = rng.normal(size=width)
    for layer in range(layers):
        base = rng.normal(size=(families, width))[family] + rng.normal(size=(questions, width))
        shift = 0.75 * rng.normal(size=(families, width))[family]
        h = np.concatenate([base + shift, base - shift]) if design == "within" else base
        x[layer, 0] = h + 0.5 * rng.normal(size=h.shape) + effect * np.outer(labels - 0.5, way)
    names = tuple(f"f{f}" for f in family) * copies
    return Rows(
        x=torch.from_numpy(x),
        labels=labels.astype(np.int64),
        families=names,
        questions=tuple(f"q{i}" for i in range(questions)) * copies,
        cells=tuple(("U", "none") if y else ("C", "none") for y in labels),
        layers=tuple(range(layers)),
        positions=("answer_mean",),
        kind="resid_post",
        data=f"null, {design}",
    )


def p_of(rng, *, families, design="within", method="means", grouped=True, permutations=99, folds=4):
    """The pipeline's p-values (reported and randomised) on one null."""
    rows = null_rows(rng, families=families, design=design)
    units = rows.families
    if not grouped:  # rows of a family part company in folds and in permutations
        units = tuple(f"{f} {q}" for f, q in zip(rows.families, rows.questions, strict=True))
        rows = Rows(**(vars(rows) | {"families": units}))
    test = probe_test(
        rows,
        grouped_folds(units, folds, rng),
        rng=rng,
        method=method,
        strengths=(0.01,),
        permutations=permutations,
        units=units,
    )
    return test.p.p, test.p.randomised
