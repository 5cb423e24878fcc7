"""Directions from labelled rows at one site: one function for each method, all on the same rows.

With d = mean(h+) - mean(h-) and Sigma the within-class covariance, shrunk as Ledoit & Wolf (2004) have it:

| method | raw direction | source |
|---|---|---|
| `means` | d | difference of means |
| `mass-mean` | Sigma^-1 d | Marks & Tegmark (2023), in-distribution form; Fisher's discriminant (LDA) |
| `logistic` | w of L2-regularised logistic regression | |
| `pca` | first right singular vector of the paired differences h+(q) - h-(q), signed like d | Zou et al. (2023) |

The scale of each is the distance of the class means along it, so that a dose of 1 moves one class mean to the other
*along that direction*. For `means` this is |d|, for all others less. The differences of `pca` are not centred: a shift
that all questions share is what is looked for, and centring would remove it.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf

from condmis_interp.calls import checked
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.logistic import newton
from condmis_interp.directions.rows import Massive, Rows, massive_dimensions
from condmis_interp.errors import CheckError, UserError

Estimator = Literal["means", "mass-mean", "logistic", "pca"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


def _means(x: torch.Tensor, labels: np.ndarray, rows: Rows) -> torch.Tensor:
    y = torch.from_numpy(labels == 1)
    return x[y].mean(0) - x[~y].mean(0)


def _mass_mean(x: torch.Tensor, labels: np.ndarray, rows: Rows) -> torch.Tensor:
    y = torch.from_numpy(labels == 1)
    within = torch.cat([x[y] - x[y].mean(0), x[~y] - x[~y].mean(0)]).numpy()
    sigma = torch.from_numpy(ledoit_wolf(within, assume_centered=True)[0])
    try:
        return torch.linalg.solve(sigma, _means(x, labels, rows))
    except torch.linalg.LinAlgError:
        raise CheckError(
            "the rows of a class do not differ, so their covariance has no inverse",
            where=f"mass-mean, {rows.data}",
            fix="Take more questions, another position, or the difference of means.",
        ) from None


def _logistic(x: torch.Tensor, labels: np.ndarray, rows: Rows) -> torch.Tensor:
    centred = x - x.mean(0)
    centred = centred / centred.square().mean().sqrt()
    fit = newton((centred @ centred.mT)[None], torch.from_numpy(labels).double()[None], 0.01).checked(rows.data)
    return fit.dual[0] @ centred


def _pca(x: torch.Tensor, labels: np.ndarray, rows: Rows) -> torch.Tensor:
    return _singular(_paired(x, labels, rows), 1)[0][0]


def _paired(x: torch.Tensor, labels: np.ndarray, rows: Rows) -> torch.Tensor:
    """Returns h+ - h- for each question [questions, width], cells of a class averaged."""
    keys = list(zip(rows.families, rows.questions, strict=True))
    code = {k: i for i, k in enumerate(dict.fromkeys(keys))}
    index = torch.tensor([code[k] for k in keys])
    sides = []
    for label in (1, 0):
        own = torch.from_numpy(labels == label)
        counts = torch.bincount(index[own], minlength=len(code))
        if not bool((counts > 0).all()):
            raise UserError("a question has no row in one class, so its difference is not defined", where=rows.data)
        sums = x.new_zeros(len(code), x.shape[1]).index_add_(0, index[own], x[own])
        sides.append(sums / counts[:, None])
    return sides[0] - sides[1]


def _singular(differences: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    _, s, v = torch.linalg.svd(differences, full_matrices=False)
    v = v[:count]
    signs = torch.where(v @ differences.mean(0) < 0, -1.0, 1.0).double()
    return v * signs[:, None], (s.square() / s.square().sum())[:count]


_METHODS: dict[Estimator, Callable[[torch.Tensor, np.ndarray, Rows], torch.Tensor]] = {
    "means": _means,
    "mass-mean": _mass_mean,
    "logistic": _logistic,
    "pca": _pca,
}


@checked
def estimate(
    rows: Rows,
    method: Estimator,
    *,
    layer: int,
    position: str,
    massive: Massive = "keep",
    labels: np.ndarray | None = None,
) -> Direction:
    """Returns a direction at one site.

    Args:
        rows: Labelled rows.
        method: Which estimator.
        layer: 0-based layer.
        position: Position.
        massive: `drop` sets the direction to 0 on massive dimensions (found on these rows); report both.
        labels: Other labels than the rows' own, [n]: for nulls.

    Raises:
        UserError: if the method or site is not there, or a class is empty.
        CheckError: if the direction is zero or not finite, or the rows of a class do not differ (mass-mean).

    Example:
        Eight questions, each in two cells that differ by 4 in the first dimension:

        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
        >>> x[:8, 0] += 4
        >>> cells, at = (("U", "none"),) * 8 + (("C", "none"),) * 8, {"layer": 3, "position": "answer_mean"}
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> estimate(rows, "means", **at)
        Direction(means, U - C, resid_post[3], answer_mean, |raw|=4, n=8)
        >>> estimate(rows, "mass-mean", **at).cosine(estimate(rows, "pca", **at)) > 0.8
        True
    """
    if method not in _METHODS:
        raise UserError(f"there is no method {method!r}", fix=f"Methods: {', '.join(ESTIMATORS)}.")
    if (layer, position) not in rows.sites:
        raise UserError(f"layer {layer}, {position} is not among the rows", where=rows.data)
    y = rows.labels if labels is None else labels
    if set(y.tolist()) != {0, 1}:
        raise UserError("a direction needs rows of both classes", where=rows.data)
    i = rows.sites.index((layer, position))
    x = rows.flat[i].double()
    dropped = massive_dimensions(x) if massive == "drop" else torch.empty(0, dtype=torch.long)
    if len(dropped):
        x = x.clone()
        x[:, dropped] = 0
    w = _METHODS[method](x, y, rows)
    gap = float(w @ _means(x, y, rows))
    name = f"{method}, {len(dropped)} massive dimensions dropped" if massive == "drop" else method
    return Direction.of(
        w * (abs(gap) / float(w.square().sum())) if gap != 0 else w * 0,
        site=rows.site(i),
        method=name,
        data=rows.data,
        position=position,
        splits=rows.splits,
        n=len({*zip(rows.families, rows.questions, strict=True)}),
    )


@checked
def principal_differences(
    rows: Rows, *, layer: int, position: str, count: int = 4
) -> tuple[tuple[Direction, ...], np.ndarray]:
    """Returns the first principal directions of the paired differences, and the share of their squares along each.

    Use it to see whether one direction is enough: if the first share is not near 1, it is not.

    Args:
        rows: Labelled rows; every question needs a row in both classes.
        layer: 0-based layer.
        position: Position.
        count: How many.

    Example:
        Where all questions move nearly alike, one direction is enough:

        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) / 100
        >>> x[:8, 0] += 4
        >>> cells = (("U", "none"),) * 8 + (("C", "none"),) * 8
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> found, shares = principal_differences(rows, layer=3, position="answer_mean", count=2)
        >>> found[0].vector.round(decimals=1), shares.round(2)
        (tensor([1., ...0., ...0.]), array([1., 0.]))
    """
    i = rows.sites.index((layer, position))
    differences = _paired(rows.flat[i].double(), rows.labels, rows)
    found, shares = _singular(differences, count)
    facts = {
        "site": rows.site(i),
        "data": rows.data,
        "position": position,
        "splits": rows.splits,
        "n": len(differences),
    }
    directions = tuple(
        Direction.of(v * max(float((differences @ v).abs().mean()), 1e-300), method=f"pca {k + 1}", **facts)
        for k, v in enumerate(found)
    )
    return directions, shares.numpy()
