"""The linear system (H + damping) x = rhs of a head, and the figures that every solver reports of its solution."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from learned_aug.influence.cg import norms
from learned_aug.influence.problem import HeadProblem

__all__ = ["Check", "ConvergenceError", "Solution", "System", "relative_damping"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """An inverse-Hessian-vector product and how good it is. Of a stack of right-hand sides, figures are the worst."""

    value: Tensor  # as the right-hand side, in the dtype of the problem's weight
    converged: bool  # whether what the solver states holds; the two approximations state no tolerance
    residual: float  # |rhs - (H + damping) value| / |rhs|, computed in float64
    error_bound: float  # on |value - exact| / |exact|; inf if damping and weight decay are 0, or if it would exceed 1
    steps: int  # products with H, or with a batch's H
    seconds: float  # wall clock


class ConvergenceError(RuntimeError):
    """A solver missed its tolerance; the message names cause and remedy, `solution` is the best it reached."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


def relative_damping(problem: HeadProblem, factor: float) -> float:
    """Return the absolute damping from a factor of the mean eigenvalue of the Hessian's data term.

    Damping bounds the solution where H is near zero, that is where training probabilities are near one-hot and no
    weight decay holds the head. Against refitting to convergence it only costs: at a head refitted with weight decay,
    Pearson was .9999 without damping, .99 at a factor of 1 and .94 at 10 (benchmarks/influence/validity.py).

    Raises:
        ValueError: if `factor` is negative or not finite.
    """
    if not 0 <= factor < math.inf:
        raise ValueError(f"factor must be >= 0 and finite, got {factor}; 0 is the default of a fit")
    return factor * problem.mean_eigenvalue


class Check(NamedTuple):
    """The float64 residual at some x, and what it proves."""

    r: Tensor
    residual: float
    error_bound: float


class System:
    """(H + damping) x = rhs: the products that the solvers need, and the figures that they report."""

    def __init__(self, problem: HeadProblem, rhs: Tensor, damping: float) -> None:
        if not 0 <= damping < math.inf:
            raise ValueError(f"damping must be >= 0 and finite, got {damping}; try relative_damping(problem, 10)")
        if rhs.shape[-2:] != problem.theta.shape or rhs.ndim > 3:
            raise ValueError(
                f"rhs must be {tuple(problem.theta.shape)} or a stack of such, got {tuple(rhs.shape)}; use "
                "validation_gradient with features of the same head"
            )
        if not bool(rhs.isfinite().all()):
            worst = float(rhs[~rhs.isfinite()][0])
            raise ValueError(f"rhs must be finite, got {worst}; check the logits of the samples whose gradient it is")
        self.start = time.perf_counter()
        self.problem = problem
        self.exact = problem.to(torch.float64)
        self.damping = damping
        self.mu = damping + problem.weight_decay
        self.rhs = rhs.detach().double()
        if self.mu == 0:
            self._check_undamped()

    def _check_undamped(self) -> None:
        n, dim = self.problem.n_train, self.problem.theta.shape[1]
        if n < dim or self.problem.mean_eigenvalue == 0:
            why = f"{n} samples do not span {dim} dimensions" if n < dim else "all training probabilities are one-hot"
            raise ValueError(
                f"damping must be > 0 where H is singular ({why}), got 0; try relative_damping(problem, 1)"
            )
        shift = float(self.rhs.sum(-2).norm())
        if shift > 1e-3 * float(self.rhs.norm()):
            raise ValueError(
                f"damping must be > 0 for a rhs whose rows do not sum to zero (|sum| = {shift:.1e}): H is zero along "
                "equal changes of all classes; gradients of the loss have no such part"
            )
        self.rhs = self.rhs - self.rhs.mean(-2, keepdim=True)

    def apply(self, v: Tensor) -> Tensor:
        """(H + damping) V, in the dtype of V."""
        problem = self.exact if v.dtype == torch.float64 else self.problem
        return problem.hvp(v).add_(v, alpha=self.damping)

    def check(self, x: Tensor) -> Check:
        """What the float64 residual at x proves; the worst of a stack."""
        r = self.rhs - self.apply(x)
        size = norms(r)
        if not bool(size.isfinite().all()):
            return Check(r, math.inf, math.inf)
        # 0 / 0 where rhs and x are 0, which is exact.
        residual = float((size / norms(self.rhs)).nan_to_num(0.0).max())
        eps = float((size / (self.mu * norms(x))).nan_to_num(0.0).max())
        # |x*| >= |x| - |x - x*|
        return Check(r, residual, eps / (1 - eps) if eps < 1 else math.inf)

    def within(self, check: Check, tolerance: float) -> bool:
        """Whether the tolerance is proved to hold."""
        return (check.error_bound if self.mu > 0 else check.residual) <= tolerance

    def goal(self, x: Tensor, tolerance: float) -> Tensor:
        """The residual norm at x from which the tolerance is proved, less a little for the rounding of the residual."""
        bound = self.mu * norms(x) if self.mu > 0 else norms(self.rhs).to(x.dtype)
        return 0.95 * tolerance / (1 + tolerance) * bound

    def solution(self, x: Tensor, check: Check, converged: bool, steps: int) -> Solution:
        """Return the result that all solvers have in common."""
        if self.mu == 0:
            x = x - x.mean(-2, keepdim=True)
        return Solution(
            value=x.to(self.problem.weight.dtype),
            converged=converged,
            residual=check.residual,
            error_bound=check.error_bound,
            steps=steps,
            seconds=time.perf_counter() - self.start,
        )

    def failure(
        self, solver: str, tolerance: float, x: Tensor, check: Check, steps: int, cause: str
    ) -> ConvergenceError:
        """Return what to raise when the tolerance was missed."""
        bound = f"error bound {check.error_bound:.1e}, " if self.mu > 0 else ""
        relative = self.damping / self.problem.mean_eigenvalue if self.problem.mean_eigenvalue > 0 else math.inf
        return ConvergenceError(
            f"{solver} missed its tolerance {tolerance:.1e} after {steps} steps ({bound}residual "
            f"{check.residual:.1e}, damping {self.damping:.1e}, that is {relative:.1e} mean eigenvalues): {cause}",
            self.solution(x, check, False, steps),
        )
