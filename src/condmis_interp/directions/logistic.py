"""L2-regularised logistic regression in the dual.

    minimise over w, b    |w|^2 / 2 + C sum_i log(1 + exp(-s_i (w . x_i + b))),    s_i = +-1

scikit-learn's objective, with an unpenalised intercept. Where rows are fewer than dimensions (some hundred rows of
width 576) all work is done on the Gram matrix K = X X^T [n, n]: w = X^T a, and at the optimum

    a_i = C (t_i - p_i),    p = sigmoid(K a + b),    sum_i a_i = 0,    t_i = 0 or 1.

How far a solution is from that is reported as `residual` = max_i |a_i / C - (t_i - p_i)| / max_i |t_i - p_i|, and
`converged` compares it with the tolerance. Two solvers of the same problem:

* `newton`, for one labelling of each Gram matrix (every layer, position and fold has its own). With w = C p (1 - p) a
  step solves (diag(1 / w) + K) by Cholesky, in single precision; the residual is taken in double precision, so that the
  result is exact to it all the same. A step after which the residual's norm is not lower is halved; some shorter one
  always lowers it, since a Newton step points straight down it. A few sites' folds are solved side by side, and leave
  as they converge: few calls, and their matrices stay near the processor, where those of all sites would go through
  memory every step.
* `accelerated`, for one Gram matrix with many labellings (permutations). p (1 - p) <= 1/4 bounds the Hessian by I + C K
  / 4 (Boehning & Lindsay 1988), which is factorised once for all labellings; each iteration is then two products [n, n]
  x [n, labellings], with Nesterov's momentum and its restart (O'Donoghue & Candes 2015).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit

from condmis_interp.errors import CheckError

TOLERANCE = 1e-4
_SMALLEST = 1e-30
_SHORTEST = 2.0**-30


@dataclass(frozen=True)
class DualFit:
    """Solutions.

    Attributes:
        dual: a, fp64; [problems, n] from `newton`, [n, labellings] from `accelerated`.
        bias: b, [problems] or [labellings].
        residual: How far it is from the optimum, relative to the largest error of prediction; as the bias.
        iterations: Iterations that the slowest problem took.
        tolerance: What the residual was to fall below.
    """

    dual: torch.Tensor
    bias: torch.Tensor
    residual: torch.Tensor
    iterations: int
    tolerance: float

    @property
    def converged(self) -> bool:
        """Whether every problem's residual is below the tolerance."""
        return bool((self.residual <= self.tolerance).all())

    def checked(self, where: str) -> "DualFit":
        """Returns itself.

        Raises:
            CheckError: if a problem has not converged.
        """
        if not self.converged:
            raise CheckError(
                f"logistic regression stopped after {self.iterations} iterations with a residual of "
                f"{float(self.residual.max()):.1g}, not {self.tolerance:.1g}",
                where=where,
                fix="Regularise more (a smaller strength), or look for values that are not finite.",
            )
        return self


def newton(
    gram: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    *,
    used: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    limit: int = 60,
) -> DualFit:
    """Solves a few problems side by side; their matrices had better fit the processor's cache together.

    Args:
        gram: fp64 [problems, n, n]. In fp32 the residual would be wrong where one dimension dwarfs the others.
        labels: 0 or 1, fp64 [problems, n].
        strength: C: the inverse of the regularisation.
        used: Which rows belong to a problem, bool [problems, n]; all, if not given. The others get an a of 0.
        tolerance: Residual to reach.
        limit: Most iterations.
    """
    k, t = gram.numpy(), labels.numpy()
    mask = np.ones(t.shape) if used is None else used.numpy().astype(float)
    weight, right = strength * mask, np.stack([mask, mask], 2).astype(np.float32)
    system, own = gram.float(), gram.diagonal(dim1=1, dim2=2)
    a, k_a, b = np.zeros_like(t), np.zeros_like(t), np.zeros((len(t), 1))
    error = weight * (t - 0.5)
    e = a - error
    dual, bias, reached = np.empty_like(t), np.empty(len(t)), np.empty(len(t))
    left, step = np.arange(len(t)), 0
    while True:
        largest = np.abs(error)
        residual = np.abs(e).max(1) / largest.max(1)
        going = (residual > tolerance) & (step < limit)
        if not going.all():
            over = left[~going]
            dual[over], bias[over], reached[over] = a[~going], b[~going, 0], residual[~going]
            if not going.any():
                break
            left = left[going]
            k, t, weight, right, a, k_a, b, error, e, largest = (
                v[going] for v in (k, t, weight, right, a, k_a, b, error, e, largest)
            )
            system, own = system[torch.from_numpy(going)], own[torch.from_numpy(going)]
        inverse = 1 / (largest * (1 - largest / strength)).clip(_SMALLEST)  # 1 / w, since |t - p| is p or 1 - p
        system.diagonal(dim1=1, dim2=2).copy_(own + torch.from_numpy(inverse))
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed.any():
            limit = step
            continue
        step += 1
        right[:, :, 0] = -e * inverse
        z = torch.linalg.solve_triangular(factor, torch.from_numpy(right), upper=False)
        z, u = np.moveaxis(torch.linalg.solve_triangular(factor.mT, z, upper=True).double().numpy(), 2, 0)
        db = (a.sum(1) + z.sum(1))[:, None] / u.sum(1)[:, None]
        da = z - db * u
        k_da = (k @ da[:, :, None])[:, :, 0]  # in numpy: four times as fast as in torch
        norm, length = np.square(e).sum(1), np.ones_like(b)
        while True:
            to, to_b, k_to = a + length * da, b + length * db, k_a + length * k_da
            error = weight * (t - expit(k_to + to_b))
            e = to - error
            worse = np.square(e).sum(1) >= norm
            if not worse.any() or length.min() < _SHORTEST:
                break
            length[worse] /= 2
        a, b, k_a = to, to_b, k_to
    return DualFit(torch.from_numpy(dual), torch.from_numpy(bias), torch.from_numpy(reached), step, tolerance)


def accelerated(
    gram: torch.Tensor, labels: torch.Tensor, strength: float, *, tolerance: float = TOLERANCE, limit: int = 2000
) -> DualFit:
    """Solves one problem for each labelling of the rows of one Gram matrix.

    Args:
        gram: fp64 [n, n].
        labels: 0 or 1, fp64 [n, labellings].
        strength: C: the inverse of the regularisation.
        tolerance: Residual to reach.
        limit: Most iterations.
    """
    quarter = strength / 4
    bound = gram * quarter
    bound.diagonal().add_(1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(bound))
    of_one = inverse.sum(1, keepdim=True)
    n, count = labels.shape
    a, b, f = torch.zeros_like(labels), labels.new_zeros(1, count), torch.zeros_like(labels)
    at_a, at_b, at_f, pace = a, b, f, labels.new_ones(1, count)
    step = 0
    while True:
        error = torch.sub(labels, at_f.sigmoid()).mul_(strength)
        e = at_a - error
        residual = e.abs().amax(0) / error.abs().amax(0)
        if step == limit or bool((residual <= tolerance).all()):
            return DualFit(at_a, at_b[0], residual, step, tolerance)
        step += 1
        z = inverse @ e
        db = (at_a.sum(0) - z.sum(0)) / (quarter * of_one.sum())
        new_a = at_a - z - quarter * of_one * db
        new_b = at_b + db
        new_f = torch.addmm(new_b.expand(n, count), gram, new_a)
        against = ((at_a - new_a) * (new_f - f)).sum(0, keepdim=True) > 0
        pace = torch.where(against, 1.0, pace)
        following = (1 + (1 + 4 * pace * pace).sqrt()) / 2
        momentum = (pace - 1) / following
        at_a = torch.addcmul(new_a, momentum, new_a - a)
        at_b = torch.addcmul(new_b, momentum, new_b - b)
        at_f = torch.addcmul(new_f, momentum, new_f - f)
        a, b, f, pace = new_a, new_b, new_f, following
