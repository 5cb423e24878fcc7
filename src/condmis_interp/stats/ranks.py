"""AUROC by ranks: the chance that a row of class 1 scores above one of class 0, ties counting half (Mann & Whitney)."""

import numpy as np
from scipy.stats import rankdata


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns AUROC over the last axis.

    Args:
        scores: [..., n].
        labels: 0 or 1, [..., n]; the two are broadcast against each other.

    Returns:
        [...]; NaN where one class is empty.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])).item()
        0.75
    """
    ranks = rankdata(scores, axis=-1)
    ranks, y = np.broadcast_arrays(ranks, np.asarray(labels, dtype=np.float64))
    ones = y.sum(-1)
    pairs = ones * (y.shape[-1] - ones)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * y).sum(-1) - ones * (ones + 1) / 2) / pairs
