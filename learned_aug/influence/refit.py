"""Bringing a copy of the head to stationarity, which influences assume (Eq. 9)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learned_aug.influence.cg import conjugate_gradients
from learned_aug.influence.problem import Basis, HeadProblem
from learned_aug.runtime.events import Event, OnEvent

__all__ = ["RefitResult", "refit"]


class RefitResult(NamedTuple):
    """A head at, or toward, its optimum."""

    problem: HeadProblem  # float64, at the new weights
    gradient_norm: float  # |grad L|, nats per unit of theta
    steps: int  # Newton steps
    converged: bool


def refit(
    problem: HeadProblem, tolerance: float = 1e-9, max_steps: int = 100, *, on_event: OnEvent | None = None
) -> RefitResult:
    """Train the head to stationarity: Newton steps by conjugate gradients, with a line search, in float64.

    Args:
        problem: the head as found; not changed.
        tolerance: on |grad L|, relative to the root mean square of |h~|.
        max_steps: Newton steps. Without weight decay, separable features have no minimizer: the weights then grow until
            the gradient is below the tolerance.
        on_event: gets "refit" events: gradient_norm (|grad L|, nats per unit of theta), at step 0 of the head as found.

    Returns:
        the problem at its optimum, in float64. `converged` is False if `max_steps` were not enough, or if rounding
        leaves no descent: check it.
    """
    now = problem.to(torch.float64)
    scale = (now.mean_square_feature * now.features.shape[1] + (0.0 if now.bias is None else 1.0)) ** 0.5
    gradient = now.gradient()
    first = norm = float(gradient.norm())
    steps = 0
    while True:
        if on_event is not None:
            on_event(Event("refit", steps, max_steps, {"gradient_norm": norm}))
        if norm <= tolerance * scale or steps == max_steps:
            break
        if not steps:  # and kept: for large D a new one would cost more than the products that it saves
            basis = now.feature_basis()
        # Without weight decay H is singular; this ridge, far below the gradient's own scale, keeps the step finite.
        ridge = 0.0 if now.weight_decay else 1e-6 * now.mean_eigenvalue + 1e-300
        target = min(0.1, (norm / first) ** 0.5) * norm
        step = _newton_step(now, gradient, ridge, target, basis)
        found = _line_search(now, gradient, step)
        if found is None:
            break
        now = found
        gradient = now.gradient()
        norm = float(gradient.norm())
        steps += 1
    return RefitResult(now, norm, steps, norm <= tolerance * scale)


def _newton_step(problem: HeadProblem, gradient: Tensor, ridge: float, target: float, basis: Basis) -> Tensor:
    """-(H + ridge)^-1 gradient, to a residual norm of `target`."""

    def apply(v: Tensor) -> Tensor:
        return problem.hvp(v).add_(v, alpha=ridge)

    def done(_: Tensor, r: Tensor) -> bool:
        return float(r.norm()) <= target

    return conjugate_gradients(apply, -gradient, done, 500, problem.kronecker_inverse(ridge, basis))[0]


def _line_search(problem: HeadProblem, gradient: Tensor, step: Tensor) -> HeadProblem | None:
    """The problem at the first of theta + step / 2^n that lowers the loss enough (Armijo); None if there is none."""
    slope, loss = float((gradient * step).sum()), float(problem.loss())
    # Near the optimum the loss no longer resolves the decrease: allow for its rounding.
    slack = 1e-14 * abs(loss)
    for halvings in range(40):
        t = 0.5**halvings
        new = problem.with_theta(problem.theta + t * step)
        if float(new.loss()) <= loss + 1e-4 * t * slope + slack:
            return new
    return None
