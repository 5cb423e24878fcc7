"""L2-regularised logistic regression in the dual, many problems at once.

    minimise over w, b    |w|^2 / 2 + C sum_i log(1 + exp(-s_i (w . x_i + b))),    s_i = +-1

scikit-learn's objective, with an unpenalised intercept. Where rows are fewer than dimensions (some hundred rows of
width 576) all work is done on the Gram matrix K = X X^T [n, n]: w = X^T a, and at the optimum

    a_i = C (t_i - p_i),    p = sigmoid(K a + b),    sum_i a_i = 0,    t_i = 0 or 1.

How far a solution is from that is reported as `residual` = max_i |a_i / C - (t_i - p_i)| / max_i |t_i - p_i|, and
`converged` compares it with the tolerance. Two solvers of the same problem:

* `newton`, for many Gram matrices with one labelling each (layers x positions x folds). With S = diag(sqrt(C p (1 -
  p))) a step solves (I + S K S) by Cholesky, in single precision; the residual is taken in double precision, so that
  the result is exact to it all the same. A step that would not lower the objective is halved.
* `accelerated`, for one Gram matrix with many labellings (permutations). p (1 - p) <= 1/4 bounds the Hessian by I + C K
  / 4 (Boehning & Lindsay 1988), which is factorised once for all labellings; each iteration is then two products [n, n]
  x [n, labellings], with Nesterov's momentum and its restart (O'Donoghue & Candes 2015).
"""

from dataclasses import dataclass

import torch

from condmis_interp.errors import CheckError

TOLERANCE = 1e-4
_SMALLEST = 1e-12


@dataclass(frozen=True)
class DualFit:
    """Solutions.

    Attributes:
        dual: a, fp64; [problems, n] from `newton`, [n, labellings] from `accelerated`.
        bias: b for each problem.
        residual: How far each is from the optimum, relative to the largest error of prediction.
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


def _objective(
    a: torch.Tensor, b: torch.Tensor, k_a: torch.Tensor, labels: torch.Tensor, part: torch.Tensor, strength: float
) -> torch.Tensor:
    f = k_a + b
    loss = (torch.nn.functional.softplus(f) - labels * f) * part
    return (a * k_a).sum(1) / 2 + strength * loss.sum(1)


def newton(
    gram: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    *,
    mask: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    limit: int = 60,
) -> DualFit:
    """Solves one problem for each Gram matrix.

    Args:
        gram: fp64 [problems, n, n]; rows that are masked out must be 0.
        labels: 0 or 1, fp64 [problems, n].
        strength: C: the inverse of the regularisation.
        mask: 1 for rows that take part, fp64 [problems, n]; all, if it is not given.
        tolerance: Residual to reach.
        limit: Most iterations.
    """
    part = torch.ones_like(labels) if mask is None else mask
    a, b, k_a = torch.zeros_like(labels), labels.new_zeros(len(labels), 1), torch.zeros_like(labels)
    single, step = gram.float(), 0
    kept_s, factor = torch.zeros_like(labels), torch.zeros_like(single)
    last = torch.zeros_like(labels[:, 0])
    value = _objective(a, b, k_a, labels, part, strength)
    while True:
        p = (k_a + b).sigmoid()
        error = strength * (labels - p) * part
        e = a - error
        residual = e.abs().amax(1) / error.abs().amax(1)
        active = residual > tolerance
        if step == limit or not bool(active.any()):
            return DualFit(a, b[:, 0], residual, step, tolerance)
        step += 1
        due = active & (residual > last / 20)  # elsewhere the factor of the step before is still good enough
        if bool(due.any()):
            s = (strength * p * (1 - p) * part).sqrt().clamp_min(_SMALLEST)[due]
            one = s.float()[:, :, None]
            system = single[due].mul_(one).mul_(one.mT)
            system.diagonal(dim1=1, dim2=2).add_(1)
            kept_s[due], factor[due] = s, torch.linalg.cholesky_ex(system).L
        last = residual
        one = kept_s.float()[:, :, None]
        right = torch.cat([(-e / kept_s).float()[:, :, None], one * part.float()[:, :, None]], 2)
        solved = (torch.cholesky_solve(right, factor) * one).double()
        z, u = solved[:, :, 0], solved[:, :, 1]
        moves = active.double()  # a problem that is solved stays as it is, so that none depends on its neighbours
        db = (a.sum(1) + z.sum(1)) / u.sum(1).clamp_min(_SMALLEST) * moves
        da = z * moves[:, None] - db[:, None] * u
        k_da = torch.bmm(gram, da[:, :, None])[:, :, 0]
        length = torch.ones_like(db)[:, None]
        for _ in range(30):
            trial = a + length * da, b + length * db[:, None], k_a + length * k_da
            worse = _objective(*trial, labels, part, strength) > value * (1 + 1e-9) + 1e-12
            if not bool(worse.any()):
                break
            length = torch.where(worse[:, None], length / 2, length)
        a, b, k_a = a + length * da, b + length * db[:, None], k_a + length * k_da
        value = _objective(a, b, k_a, labels, part, strength)


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
