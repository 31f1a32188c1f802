"""The inverse-Hessian-vector product s_val = (H + damping)^-1 val_grad of the head."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .head import HeadProblem, conjugate_gradients

__all__ = ["CG", "ConvergenceError", "Solution", "relative_damping", "solve"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """An inverse-Hessian-vector product and how good it is."""

    value: Tensor  # (K, D + 1) or (K, D), as the right-hand side
    converged: bool  # whether the solver's tolerance holds
    residual: float  # |rhs - (H + damping) value| / |rhs|
    steps: int
    seconds: float


class ConvergenceError(RuntimeError):
    """A solver missed its tolerance; `solution` is where it stopped."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


@dataclass(frozen=True, kw_only=True)
class CG:
    """Conjugate gradients."""

    tolerance: float = 1e-3
    max_steps: int = 1000

    def solve(self, problem: HeadProblem, rhs: Tensor, damping: float) -> Solution:
        """Solve (H + damping) value = rhs."""
        start = time.perf_counter()
        b = rhs.to(problem.weight.dtype)
        limit = self.tolerance * float(b.norm())
        x, r, steps = conjugate_gradients(
            lambda v: problem.hvp(v).add_(v, alpha=damping),
            torch.zeros_like(b),
            b,
            lambda _, r: float(r.norm()) <= limit,
            self.max_steps,
        )
        residual = float(r.norm() / b.norm())
        done = residual <= self.tolerance
        solution = Solution(
            value=x, converged=done, residual=residual, steps=steps, seconds=time.perf_counter() - start
        )
        if not done:
            raise ConvergenceError(
                f"CG reached residual {residual:.1e} in {steps} steps, expected {self.tolerance:.1e}; "
                "raise the damping or max_steps",
                solution,
            )
        return solution


def relative_damping(problem: HeadProblem, factor: float) -> float:
    """`factor` times the mean eigenvalue of the Hessian's data term."""
    return factor * problem.mean_eigenvalue


def solve(problem: HeadProblem, rhs: Tensor, damping: float, solver: CG | Literal["auto"] = "auto") -> Solution:
    """(H + damping)^-1 rhs."""
    return (CG() if solver == "auto" else solver).solve(problem, rhs, damping)
