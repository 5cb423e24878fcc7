"""Permutations of labels that respect the design, and p-values that respect their number.

The unit of a permutation is what is exchangeable under the null: a question family, not a row. Two designs:

* **within** - every unit holds as many rows of one class as of the other (the same questions, read in U and in C). The
  null says that the two readings of a unit could trade places: each unit's labels are swapped as a whole with
  probability 1/2.
* **between** - every unit has one label (harmful families against harmless ones). The null says that labels were dealt
  to units at random: they are permuted over units.

Anything else has no permutation that keeps the class sizes and the dependence within units, and is refused.

With few units the p-values are few. A statistic that does not change when the two classes trade names (AUROC of a probe
that is refitted on every labelling) has 2^(K-1) values in the within design and, with half of the units in each class,
C(K, K/2) / 2 in the between design: 128 and 35 for K = 8. So with 8 units in two halves no p-value lies below 1/35, and
a test at 5 % rejects at most 1 / 35 = 2.9 % of true nulls. If all labellings are no more than the number asked for, all
are taken and the p-value is exact; else labellings are drawn with replacement and p = (1 + exceeding) / (1 + drawn)
(Phipson & Smyth 2010), which is valid at any number. `randomised` breaks ties by a coin and is uniform under the null
(Lehmann & Romano 2005, section 5.8): for checking levels, not for reporting.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from condmis_interp.errors import UserError

Design = Literal["within", "between"]
_TIE = 1e-12


@dataclass(frozen=True)
class Labellings:
    """The observed labels and their permutations.

    Attributes:
        labels: [m, n], 0 or 1; the first row is the observed labelling.
        design: Which exchangeability the permutations use.
        units: Number of exchangeable units.
        exhaustive: Whether these are all labellings (up to trading the two names), each once.

    Example:
        >>> every = Labellings(np.array([[0, 1], [1, 0]]), design="between", units=2, exhaustive=True)
        >>> every.labels.shape
        (2, 2)
    """

    labels: np.ndarray
    design: Design
    units: int
    exhaustive: bool


@dataclass(frozen=True)
class PermutationP:
    """A p-value by permutation, one-sided: large statistics speak against the null.

    Attributes:
        p: Share of labellings with a statistic at least as large as the observed one, the observed one included.
        least: The smallest value `p` could take.
        randomised: As `p`, with ties broken at random: uniform under the null.
        labellings: Number of labellings, the observed one included.
        exhaustive: Whether they were all there are.

    Example:
        >>> p = PermutationP(p=0.0625, least=0.0625, randomised=0.03, labellings=16, exhaustive=True)
        >>> p.attainable(0.05), p.attainable(0.1)
        (0.0, 0.0625)
    """

    p: float
    least: float
    randomised: float
    labellings: int
    exhaustive: bool

    def attainable(self, level: float) -> float:
        """Returns the largest share of true nulls that a test at `level` can reject: the multiple of `least` below."""
        return math.floor(level / self.least + _TIE) * self.least


def design_of(labels: np.ndarray, units: Sequence[Hashable]) -> Design:
    """Returns the design that labels [n] of 0 and 1 have over units [n].

    Raises:
        UserError: if it is neither of the two, a class is empty, or a label is neither 0 nor 1.
    """
    y = np.asarray(labels)
    if set(np.unique(y).tolist()) != {0, 1}:
        raise UserError("labels must be 0 and 1, and both must occur")
    shares = {u: y[[i for i, v in enumerate(units) if v == u]].mean() for u in dict.fromkeys(units)}
    if all(s == 0.5 for s in shares.values()):
        return "within"
    if all(s in (0, 1) for s in shares.values()):
        return "between"
    mixed = [u for u, s in shares.items() if s not in (0, 0.5, 1)]
    odd = mixed[0] if mixed else next(u for u, s in shares.items() if s == 0.5)
    raise UserError(
        f"unit {odd!r} mixes the classes in another way than the rest, so no permutation keeps the design",
        fix="Give every unit one label, or as many rows of one class as of the other.",
    )


def labellings(
    labels: np.ndarray, units: Sequence[Hashable], *, count: int, rng: np.random.Generator, mirrored: bool = True
) -> Labellings:
    """Returns the observed labels with `count` permutations, or with all there are if those are fewer.

    Args:
        labels: 0 or 1 for each row, [n].
        units: Exchangeable unit of each row, [n].
        count: How many permutations.
        rng: Source of randomness.
        mirrored: Whether the statistic stays the same when the classes trade names; halves the number of labellings.

    Raises:
        UserError: as in `design_of`.

    Example:
        >>> made = labellings(np.array([0, 1, 0, 1]), ["a", "a", "b", "b"], count=9, rng=np.random.default_rng(0))
        >>> made.design, made.labels.tolist()
        ('within', [[0, 1, 0, 1], [0, 1, 1, 0]])
    """
    y = np.asarray(labels).astype(np.int8)
    design = design_of(y, units)
    code = {u: i for i, u in enumerate(dict.fromkeys(units))}
    codes, k = np.array([code[u] for u in units]), len(code)
    unit_labels = np.zeros(k, dtype=np.int8)
    unit_labels[codes] = y  # the label of each unit in the between design
    ones = int(unit_labels.sum())
    halves = mirrored and (design == "within" or 2 * ones == k)
    total = (2**k if design == "within" else math.comb(k, ones)) // (2 if halves else 1)
    if total - 1 <= count:
        # Flips (within) or labels (between) of units, told apart from their mirror images by the first unit.
        if design == "within":
            chosen = [(0, *rest) for rest in itertools.product((0, 1), repeat=k - 1)]
            chosen = chosen if halves else [*chosen, *((1, *c[1:]) for c in chosen)]
            every = np.array([y ^ np.array(c, dtype=np.int8)[codes] for c in chosen])
        else:
            sets = (set(c) for c in itertools.combinations(range(k), ones))
            every = np.array([[int(u in s) for u in codes] for s in sets if not halves or (0 in s) == unit_labels[0]])
        rest = every[(every != y).any(1)]
        return Labellings(np.concatenate([y[None], rest]).astype(np.int8), design, k, exhaustive=True)
    drawn = [y]
    for _ in range(count):
        if design == "within":
            drawn.append(y ^ rng.integers(0, 2, k, dtype=np.int8)[codes])
        else:
            drawn.append(rng.permutation(unit_labels)[codes])
    return Labellings(np.array(drawn, dtype=np.int8), design, k, exhaustive=False)


def permutation_p(statistics: np.ndarray, *, exhaustive: bool, rng: np.random.Generator) -> PermutationP:
    """Returns the p-value of the first statistic among all, [m] (as `labellings` orders them).

    Args:
        statistics: The statistic under each labelling; the first is the observed one.
        exhaustive: Whether the labellings are all there are.
        rng: Breaks the ties of `randomised`.

    Raises:
        UserError: if a statistic is not a finite number, or there is only one.

    Example:
        >>> permutation_p(np.array([3.0, 1.0, 2.0, 0.0]), exhaustive=True, rng=np.random.default_rng(0)).p
        0.25
    """
    t = np.asarray(statistics, dtype=np.float64)
    if t.size < 2 or not np.isfinite(t).all():
        raise UserError("a permutation test needs the finite statistics of two labellings or more")
    above = int(np.sum(t > t[0] + _TIE))
    equal = int(np.sum(np.abs(t - t[0]) <= _TIE))  # the observed one is among them
    return PermutationP(
        p=(above + equal) / t.size,
        least=1 / t.size,
        randomised=float((above + rng.uniform() * equal) / t.size),
        labellings=t.size,
        exhaustive=exhaustive,
    )
