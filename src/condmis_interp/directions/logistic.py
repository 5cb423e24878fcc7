"""L2-regularised logistic regression in the dual.

    minimise over w, b    |w|^2 / 2 + C sum_i log(1 + exp(-s_i (w . x_i + b))),    s_i = +-1

scikit-learn's objective, with an unpenalised intercept. Where rows are fewer than dimensions (some hundred rows of
width 576) all work is done on the Gram matrix K = X X^T [n, n]: w = X^T a, and at the optimum

    a_i = C (t_i - p_i),    p = sigmoid(K a + b),    sum_i a_i = 0,    t_i = 0 or 1.

How far a solution is from that is reported as `residual` = max_i |a_i / C - (t_i - p_i)| / max_i |t_i - p_i|, and
`converged` compares it with the tolerance. Two solvers of the same problem:

* `newton`, for one labelling (each layer, position and fold has a Gram matrix of its own). With w = C p (1 - p) a step
  solves (diag(1 / w) + K) by Cholesky, in single precision; the residual is taken in double precision, so that the
  result is exact to it all the same. A step after which the residual's norm is not lower is halved; some shorter one
  always lowers it, since a Newton step points straight down it. One problem's matrices stay in the processor's cache,
  which is why problems are solved one after another: batches of them go through memory at every step.
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


@dataclass(frozen=True)
class DualFit:
    """Solutions.

    Attributes:
        dual: a, fp64; [n] from `newton`, [n, labellings] from `accelerated`.
        bias: b; one number, or [labellings].
        residual: How far it is from the optimum, relative to the largest error of prediction; one number, or
            [labellings].
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
    gram: torch.Tensor, labels: torch.Tensor, strength: float, *, tolerance: float = TOLERANCE, limit: int = 60
) -> DualFit:
    """Solves one problem.

    Args:
        gram: fp64 [n, n].
        labels: 0 or 1, fp64 [n].
        strength: C: the inverse of the regularisation.
        tolerance: Residual to reach.
        limit: Most iterations.
    """
    k, t, n = gram.numpy(), labels.numpy(), len(labels)
    single, right = gram.float(), np.ones((n, 2), dtype=np.float32)
    a, b, k_a = np.zeros(n), 0.0, np.zeros(n)
    error = strength * (t - 0.5)
    e = a - error
    step = 0
    while True:
        largest = np.abs(error)
        residual = np.abs(e).max() / largest.max()
        if residual <= tolerance or step == limit:
            break
        step += 1
        inverse = 1 / (largest * (1 - largest / strength)).clip(_SMALLEST)  # 1 / w, since |t - p| is p or 1 - p
        system = single.clone()
        system.diagonal().add_(torch.from_numpy(inverse))
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed:
            break
        right[:, 0] = -e * inverse
        z, u = torch.cholesky_solve(torch.from_numpy(right), factor).double().T.numpy()
        db = (a.sum() + z.sum()) / u.sum()
        da = z - db * u
        k_da = k @ da
        norm, length = e @ e, 1.0
        for _ in range(30):
            error = strength * (t - expit(k_a + length * k_da + (b + length * db)))
            e = a + length * da - error
            if e @ e < norm:
                break
            length /= 2
        a, b, k_a = a + length * da, b + length * db, k_a + length * k_da
    return DualFit(torch.from_numpy(a), torch.tensor(b), torch.tensor(residual), step, tolerance)


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
