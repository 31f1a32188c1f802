"""Run preconditioned conjugate gradients on matrices, or on a stack of them that shares each product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradients", "norms"]


def norms(v: Tensor) -> Tensor:
    """Return the norm of a matrix (K, D), a scalar, or of each in a stack (R, K, D), (R,)."""
    return v.square().sum((-2, -1)).sqrt()


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    done: Callable[[Tensor, Tensor], bool],
    max_steps: int,
    precondition: Callable[[Tensor], Tensor] = lambda r: r,
) -> tuple[Tensor, Tensor, int]:
    """Run preconditioned conjugate gradients on `apply(x) = rhs` from x = 0, for a matrix or a stack of them.

    Stops when `done(x, r)` for the recurrence's residual r, after `max_steps`, or when rounding leaves no direction of
    positive curvature: what was reached is for the caller to judge.

    Returns:
        x, r and the number of steps, that is of calls to `apply`.
    """
    x, r = torch.zeros_like(rhs), rhs
    z = precondition(r)
    d = z
    rho = (r * z).sum((-2, -1), keepdim=True)
    for step in range(max_steps):
        if done(x, r):
            return x, r, step
        q = apply(d)
        curvature = (d * q).sum((-2, -1), keepdim=True)
        alpha = torch.where((curvature > 0) & (rho > 0), rho / curvature, 0.0)  # 0 for members solved exactly
        if not bool(alpha.any()):
            return x, r, step + 1
        x = x + alpha * d
        r = r - alpha * q
        z = precondition(r)
        rho, last = (r * z).sum((-2, -1), keepdim=True), rho
        d = z + torch.where(last > 0, rho / last, 0.0) * d
    return x, r, max_steps
