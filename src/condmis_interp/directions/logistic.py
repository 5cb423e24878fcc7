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
  always lowers it, since a Newton step points straight down it. The first step is taken as if every row had its own
  side's logit +-2 already, not 0, where p (1 - p) is largest: iteratively reweighted least squares need no a to start
  from, and this too points down from a = 0, where w <= C / 4. A few sites are solved side by side, and leave as they
  converge: few calls, and their matrices stay near the processor, where those of all sites would go through memory
  every step.
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
_START = 2.0
_SMALLEST = 1e-30
_HALVINGS = 30


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
    gram: torch.Tensor, labels: torch.Tensor, strength: float, *, tolerance: float = TOLERANCE, limit: int = 60
) -> DualFit:
    """Solves a few problems side by side; their matrices had better fit the processor's cache together.

    Args:
        gram: fp64 [problems, n, n]. In fp32 the residual would be wrong where one dimension dwarfs the others.
        labels: 0 or 1, fp64 [problems, n].
        strength: C: the inverse of the regularisation.
        tolerance: Residual to reach.
        limit: Most iterations.
    """
    k, t = gram.numpy(), labels.numpy()
    system, own = gram.float(), gram.diagonal(dim1=1, dim2=2).numpy()
    # two right-hand sides for each factor: the step at a fixed b, and what a unit of b adds to it (ones)
    right = np.ones((*t.shape, 2), dtype=np.float32)
    a, f, b = np.zeros_like(t), np.zeros_like(t), np.zeros(len(t))
    error = strength * (t - 0.5)  # C (t - p): with a = 0 and b = 0 every p is 1/2
    e = a - error
    dual, bias, reached = np.empty_like(t), np.empty_like(b), np.empty_like(b)
    left, step, norm = np.arange(len(t)), 0, _squares(e)
    while True:
        largest = np.abs(error)
        residual = np.abs(e).max(1) / largest.max(1)
        going = (residual > tolerance) & (step < limit)
        if not going.all():
            over = left[~going]
            dual[over], bias[over], reached[over] = a[~going], b[~going], residual[~going]
            if not going.any():
                break
            k, t, own, right, a, f, b, e, largest, norm = (
                v[going] for v in (k, t, own, right, a, f, b, e, largest, norm)
            )
            left, system = left[going], system[torch.from_numpy(going)]
        if not step:
            largest = np.full_like(t, strength * expit(-_START))
        inverse = 1 / (largest * (1 - largest / strength)).clip(_SMALLEST)  # 1 / w, since |t - p| is p or 1 - p
        np.einsum("kii->ki", system.numpy())[:] = own + inverse
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed.numpy().any():  # values that are not finite, or a strength beyond fp32; `checked` says so
            limit = step
            continue
        # the first step's is the working response f + (t - p) / (p (1 - p)) at f = +-2
        right[:, :, 0] = -e * inverse if step else (2 * t - 1) * (_START + 1 / expit(_START))
        z = torch.linalg.solve_triangular(factor, torch.from_numpy(right), upper=False)
        z, u = np.moveaxis(torch.linalg.solve_triangular(factor.mT, z, upper=True).double().numpy(), 2, 0)
        db = (a.sum(1) + z.sum(1)) / u.sum(1)  # so that the duals sum to 0, which is b's own condition
        da = z - db[:, None] * u
        df = (k @ da[:, :, None])[:, :, 0] + db[:, None]  # in numpy: four times as fast as in torch
        halvings = 0
        while True:
            error = strength * (t - expit(f + df))
            e = a + da - error
            to = _squares(e)
            worse = to >= norm
            if not worse.any() or halvings == _HALVINGS:
                break
            halvings += 1
            # each problem has its own step; halving those of the others would only slow them down
            for move in (da, df, db):
                move[worse] /= 2
        a, f, b, norm, step = a + da, f + df, b + db, to, step + 1
    return DualFit(torch.from_numpy(dual), torch.from_numpy(bias), torch.from_numpy(reached), step, tolerance)


def _squares(e: np.ndarray) -> np.ndarray:
    """Returns |e|^2 of each problem."""
    return np.einsum("ki,ki->k", e, e)


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
    # the bound depends on K and C alone: one inverse serves every labelling and every step
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
        # as in `newton`: b moves so that the new duals sum to 0
        db = (at_a.sum(0) - z.sum(0)) / (quarter * of_one.sum())
        new_a = at_a - z - quarter * of_one * db
        new_b = at_b + db
        new_f = torch.addmm(new_b.expand(n, count), gram, new_a)
        # momentum that points uphill starts again, for each labelling alone
        against = ((at_a - new_a) * (new_f - f)).sum(0, keepdim=True) > 0
        pace = torch.where(against, 1.0, pace)
        following = (1 + (1 + 4 * pace * pace).sqrt()) / 2
        momentum = (pace - 1) / following
        # f is linear in a and b, so the point ahead needs no product with K of its own
        at_a = torch.addcmul(new_a, momentum, new_a - a)
        at_b = torch.addcmul(new_b, momentum, new_b - b)
        at_f = torch.addcmul(new_f, momentum, new_f - f)
        a, b, f, pace = new_a, new_b, new_f, following
