"""Folds that never part a group.

Rows of one question family under any cue, from any organism or seed, are dependent; a fold that parts them tests a
probe on what it was trained on. (24 prompts x 10 samples with a label drawn by prompt: ungrouped folds give AUROC 1
where nothing is to be found; tests/directions/test_null.py shows it.)

Groups are dealt by size alone. Labels play no part, so that the same folds serve every permutation of the labels: folds
stratified by the observed labels would set the observed labelling apart from its permutations, and the permutation test
would not be exact.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from condmis_interp.errors import CheckError, UserError


def grouped_folds(groups: Sequence[Hashable], count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the fold (0 to count - 1) of each row, [n]; a group lies in one fold.

    Groups are shuffled, the largest dealt first, each to the fold with the fewest rows so far.

    Args:
        groups: Group label of each row, [n].
        count: Number of folds.
        rng: Source of randomness.

    Raises:
        UserError: if there are fewer groups than folds, or fewer than two folds.

    Example:
        >>> grouped_folds(["a", "a", "b", "c"], 2, np.random.default_rng(0)).tolist()
        [0, 0, 1, 1]
    """
    names = list(dict.fromkeys(groups))
    if count < 2 or len(names) < count:
        raise UserError(
            f"{len(names)} groups cannot be dealt into {count} folds", fix="Take 2 folds or more, and a group for each."
        )
    code = {g: i for i, g in enumerate(names)}
    codes = np.array([code[g] for g in groups])
    sizes = np.bincount(codes, minlength=len(names))
    order = rng.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of, filled = np.empty(len(names), dtype=np.int64), np.zeros(count, dtype=np.int64)
    for g in order:
        fold = int(np.argmin(filled))
        fold_of[g] = fold
        filled[fold] += sizes[g]
    return fold_of[codes]


def check_folds(folds: np.ndarray, groups: Sequence[Hashable]) -> None:
    """Raises CheckError if a group lies in more than one fold, UserError if there are not as many folds as groups.

    Example:
        >>> check_folds(np.array([0, 0, 1]), ["a", "a", "b"])
        >>> check_folds(np.array([0, 1, 1]), ["a", "a", "b"])
        Traceback (most recent call last):
        condmis_interp.errors.CheckError: group 'a' lies in folds 0 and 1. Deal folds with `grouped_folds`.
    """
    if folds.shape != (len(groups),):
        raise UserError(f"there are folds of shape {folds.shape} for {len(groups)} rows", fix="Give each row its fold.")
    seen: dict[Hashable, int] = {}
    for fold, group in zip(folds.tolist(), groups, strict=True):
        if seen.setdefault(group, fold) != fold:
            raise CheckError(
                f"group {group!r} lies in folds {seen[group]} and {fold}", fix="Deal folds with `grouped_folds`."
            )
