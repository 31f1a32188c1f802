"""The inverse-Hessian-vector product S = (H + damping)^-1 rhs of a classifier's head; of val_grad it is s_val.

| solver | what it solves | memory beyond the problem | states |
|---|---|---|---|
| `Direct` | exactly, by Cholesky | (K (D+1))^2 | a residual at rounding |
| `CG` | to its tolerance, by conjugate gradients | a few K (D+1) | a bound on the relative error |
| `LiSSA` | to its tolerance, by stochastic estimation | a few K (D+1) | a bound on the relative error |
| `BlockDiagonal` | H without the blocks between classes | (D+1)^2 | the residual that this leaves |
| `PlainGradient` | H as its mean eigenvalue: the limit of large damping | none | the residual that this leaves |

**Damping** is absolute here, in the units of H; `relative_damping` gives it in units of H's mean eigenvalue. Weight
decay is part of H and adds to it.

**Tolerance.** The smallest eigenvalue of H + damping is at least mu = damping + weight_decay, so that a residual r at x
proves |x - x*| <= |r| / mu. `CG` and `LiSSA` have converged when this bound is within `tolerance` of |x*|: the relative
error, hence also the relative residual, is then at most `tolerance`. The residual that decides is recomputed in
float64. Without damping and weight decay no such bound exists, and the tolerance is on the relative residual.

**Failure** is a `ConvergenceError` that carries the best `Solution`: nothing returns an unconverged one silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learned_aug.influence.cg import conjugate_gradients, norms
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.system import Check, Solution, System

__all__ = ["CG", "BlockDiagonal", "Direct", "LiSSA", "PlainGradient", "Solver", "solve"]

# "auto" solves directly up to this K (D + 1). Beyond, CG takes fewer operations than forming H, even at small damping.
_DIRECT_SIZE = 512


@dataclass(frozen=True, kw_only=True)
class Direct:
    """Cholesky factorization of the dense Hessian, in float64.

    The only solver that forms a K (D+1) square matrix: N (K (D+1))^2 operations and twice 8 (K (D+1))^2 bytes.
    """

    max_size: int = 16_384  # largest K (D+1): 2 GiB for the matrix

    def solve(self, problem: HeadProblem, rhs: Tensor, damping: float) -> Solution:
        """Solve (H + damping) value = rhs.

        Raises:
            ValueError: if H + damping is singular to float64, or larger than `max_size`.
        """
        system = System(problem, rhs, damping)
        size = problem.theta.numel()
        if size > self.max_size:
            raise ValueError(
                f"Direct forms a matrix of size K (D+1) = {size}, at most max_size = {self.max_size}; use CG(), "
                f"or Direct(max_size={size}) where 2 x {8 * size**2 / 2**30:.0f} GiB fit"
            )
        h = _dense(system.exact)
        h.diagonal().add_(system.mu)
        if system.mu == 0:
            # H is zero along equal changes of all classes, and rhs has no such part: any curvature will do there.
            k, dim = problem.theta.shape
            h.view(k, dim, k, dim).diagonal(dim1=1, dim2=3).add_(problem.mean_eigenvalue)
        factor = _cholesky(h, damping)

        def back(r: Tensor) -> Tensor:
            return torch.cholesky_solve(r.reshape(-1, size).T, factor).T.reshape(r.shape)

        x = back(system.rhs)
        x = x + back(system.check(x).r)  # one step of refinement
        check = system.check(x)
        if check.residual > 1e-6:
            raise ValueError(_singular(damping))
        return system.solution(x, check, True, 0)


def _dense(problem: HeadProblem) -> Tensor:
    """The Hessian's data term, (K (D+1), K (D+1)), theta flattened by rows."""
    k, dim = problem.theta.shape
    out = problem.weight.new_empty(k, dim, k, dim)
    for i in range(k):
        for j in range(i + 1):
            out[i, :, j] = problem.hessian_block(i, j)
            out[j, :, i] = out[i, :, j]
    return out.view(k * dim, k * dim)


def _cholesky(matrix: Tensor, damping: float) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal()
    if int(info) != 0 or float(pivots.min() / pivots.max()) ** 2 < 1e-14:
        raise ValueError(_singular(damping))
    return factor


def _singular(damping: float) -> str:
    return (
        f"damping must be > 0 where H is singular, and H + {damping:.1e} is, to float64: features are duplicated "
        "or constant, or probabilities one-hot; try relative_damping(problem, 1)"
    )


@dataclass(frozen=True, kw_only=True)
class CG:
    """Preconditioned conjugate gradients.

    Runs in the problem's dtype, again on the residual recomputed in float64 while that gains, then in float64
    throughout.
    """

    tolerance: float = 1e-3  # on the relative error, see the module's docstring
    max_steps: int = 2000  # products with H
    # "kronecker" costs two eigenproblems, of sizes K and D+1, and saves steps at every damping up to 100 mean
    # eigenvalues: a third of them at 10, most of them at 0.1 (measured in benchmarks/influence/speed.py).
    preconditioner: Literal["kronecker", "none"] = "kronecker"

    def __post_init__(self) -> None:
        _check_options(self.tolerance, self.max_steps)
        if self.preconditioner not in ("kronecker", "none"):
            raise ValueError(
                f'preconditioner must be "kronecker" or "none", got {self.preconditioner!r}; leave it out for the first'
            )

    def solve(self, problem: HeadProblem, rhs: Tensor, damping: float) -> Solution:
        """Solve (H + damping) value = rhs, to `tolerance`.

        Raises:
            ConvergenceError: if the tolerance is not reached, with cause and remedy.
        """
        system = System(problem, rhs, damping)
        x = torch.zeros_like(system.rhs)
        check = Check(system.rhs, 1.0, math.inf)
        steps = 0
        dtype = problem.weight.dtype
        inverse = self._inverse(problem, system.mu)
        while steps < self.max_steps:
            d, n = self._run(system, x, check.r.to(dtype), inverse, self.max_steps - steps)
            steps += n
            last, new = check.residual, system.check(x + d)
            if new.residual < last:
                x, check = x + d, new
            if system.within(check, self.tolerance):
                return system.solution(x, check, True, steps)
            if check.residual > 0.5 * last and steps < self.max_steps:
                if dtype == torch.float64:
                    cause = "float64 rounding allows no better at this condition number; raise the damping or tolerance"
                    raise system.failure(type(self).__name__, self.tolerance, x, check, steps, cause)
                dtype = torch.float64
                inverse = self._inverse(system.exact, system.mu)
        cause = "max_steps reached, H + damping is ill-conditioned; raise the damping or max_steps"
        raise system.failure(type(self).__name__, self.tolerance, x, check, steps, cause)

    def _inverse(self, problem: HeadProblem, mu: float) -> Callable[[Tensor], Tensor]:
        if self.preconditioner == "none":
            return lambda r: r
        # The floor is for mu = 0, where it would divide rounding errors by zero.
        return problem.kronecker_inverse(mu - problem.weight_decay if mu > 0 else 1e-6 * problem.mean_eigenvalue)

    def _run(
        self, system: System, x: Tensor, r: Tensor, inverse: Callable[[Tensor], Tensor], max_steps: int
    ) -> tuple[Tensor, int]:
        """One run in the dtype of r, the residual at x: the correction in float64, and its steps."""
        # Of float32 the first digits can be trusted; the next run starts from the true residual.
        floor = (0.0 if r.dtype == torch.float64 else 1e-3) * norms(r)
        from_x = x.to(r.dtype)

        def done(d: Tensor, r: Tensor) -> bool:
            return bool((norms(r) <= system.goal(from_x + d, self.tolerance).maximum(floor)).all())

        d, _, steps = conjugate_gradients(system.apply, r, done, max_steps, inverse)
        return d.double(), steps


@dataclass(frozen=True, kw_only=True)
class LiSSA:
    """Stochastic estimation: x <- x + (r - (H_batch + damping) x) / scale, with H of small batches.

    The paper's estimator, made to end at a known accuracy. Each cycle runs the recursion on the residual r recomputed
    over all samples and averages its second half, so that the batches' noise shrinks with the residual. The scale is
    1.5 times the largest eigenvalue found by power iteration on a few batches; a cycle that does not halve the residual
    is dropped and repeated at twice the scale. Costs about scale / (damping + weight_decay) batches per digit: for
    small damping use CG.
    """

    tolerance: float = 1e-2  # on the relative error, see the module's docstring
    batch_size: int = 256  # samples, drawn with replacement
    max_steps: int = 100_000  # products with a batch's H
    seed: int = 0

    def __post_init__(self) -> None:
        _check_options(self.tolerance, self.max_steps)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}; 256 is the default")

    def solve(self, problem: HeadProblem, rhs: Tensor, damping: float) -> Solution:
        """Solve (H + damping) value = rhs, to `tolerance`.

        Raises:
            ConvergenceError: if the tolerance is not reached, or the recursion diverges, with cause and remedy.
            ValueError: without damping and weight decay.
        """
        system = System(problem, rhs, damping)
        if system.mu == 0:
            raise ValueError("damping must be > 0 for LiSSA, which needs scale / damping steps, got 0; use CG()")
        generator = torch.Generator().manual_seed(self.seed)
        scale = self._scale(system, generator)
        x = torch.zeros_like(system.rhs)
        check = Check(system.rhs, 1.0, math.inf)
        steps = failures = 0
        while not system.within(check, self.tolerance):
            depth = math.ceil(4 * scale / system.mu)
            if steps + depth > self.max_steps:
                cause = (
                    f"at scale {scale:.1e} a cycle takes {depth} steps, beyond max_steps = {self.max_steps}; "
                    "raise the damping or max_steps, or use CG()"
                )
                raise system.failure(type(self).__name__, self.tolerance, x, check, steps, cause)
            d = self._cycle(system, check.r.to(problem.weight.dtype), scale, depth, generator)
            steps += depth
            new = system.check(x + d)
            if new.residual < 0.5 * check.residual:
                x, check = x + d, new
            else:
                failures += 1
                scale *= 2
            if failures > 6:
                cause = (
                    "the recursion diverges or its noise exceeds what it gains: batches differ too much; "
                    "raise batch_size or the damping, or use CG()"
                )
                raise system.failure(type(self).__name__, self.tolerance, x, check, steps, cause)
        return system.solution(x, check, True, steps)

    def _rows(self, problem: HeadProblem, generator: torch.Generator) -> Tensor:
        rows = torch.randint(problem.n_train, (self.batch_size,), generator=generator, device="cpu")
        return rows.to(problem.features.device)

    def _scale(self, system: System, generator: torch.Generator) -> float:
        """1.5 times the largest eigenvalue of a batch's H + damping, of four batches by ten power iterations each."""
        largest = 0.0
        theta = system.problem.theta
        for _ in range(4):
            rows = self._rows(system.problem, generator)
            v = torch.randn(theta.shape, generator=generator, device="cpu").to(theta)
            for _ in range(10):
                v = system.problem.hvp(v / v.norm().clamp_min(1e-30), rows)
            largest = max(largest, float(v.norm()))
        return 1.5 * (largest + system.damping)

    def _cycle(self, system: System, r: Tensor, scale: float, depth: int, generator: torch.Generator) -> Tensor:
        """The recursion from zero on the residual r: the mean of its second half, in float64."""
        d, mean = torch.zeros_like(r), torch.zeros_like(r)
        for step in range(depth):
            hd = system.problem.hvp(d, self._rows(system.problem, generator))
            d = d + (r - hd - system.damping * d) / scale
            if step >= depth // 2:
                mean += d / (depth - depth // 2)
        return mean.double()


@dataclass(frozen=True)
class BlockDiagonal:
    """H without its blocks between classes: K systems of size D+1. An approximation that states its residual."""

    def solve(self, problem: HeadProblem, rhs: Tensor, damping: float) -> Solution:
        """Solve (H_kk + damping) value_k = rhs_k for each class k.

        Raises:
            ValueError: if a block is singular to float64.
        """
        system = System(problem, rhs, damping)
        x = torch.empty_like(system.rhs)
        for k in range(len(problem.weight)):
            h = system.exact.hessian_block(k, k)
            h.diagonal().add_(system.mu)
            row = system.rhs[..., k, :]
            x[..., k, :] = torch.cholesky_solve(row.reshape(-1, len(h)).T, _cholesky(h, damping)).T.reshape(row.shape)
        return system.solution(x, system.check(x), True, 0)


@dataclass(frozen=True)
class PlainGradient:
    """H as its mean eigenvalue: the limit of large damping. An approximation that states its residual.

    The direction is the validation gradient's; the length is what the damped solution tends to as damping grows.
    """

    def solve(self, problem: HeadProblem, rhs: Tensor, damping: float) -> Solution:
        """rhs / (mean eigenvalue + damping + weight_decay).

        Raises:
            ValueError: if that denominator is 0.
        """
        system = System(problem, rhs, damping)
        x = system.rhs / (problem.mean_eigenvalue + system.mu)
        return system.solution(x, system.check(x), True, 0)


Solver = Direct | CG | LiSSA | BlockDiagonal | PlainGradient


def solve(problem: HeadProblem, rhs: Tensor, damping: float, solver: Solver | Literal["auto"] = "auto") -> Solution:
    """S = (H + damping)^-1 rhs.

    Args:
        problem: the head's training problem; its weight decay is part of H.
        rhs: (K, D + 1), bias in the last column, or (K, D) without: a problem's `validation_gradient` for s_val; or
            a stack (R, ...) of such, which shares the passes over the features.
        damping: absolute, >= 0; see `relative_damping`. Without weight decay it must be > 0 where H is singular apart
            from its null direction: D+1 > N, duplicated or constant features, one-hot probabilities.
        solver: "auto" is Direct up to K (D+1) = 512 and CG beyond.

    Raises:
        ValueError: if rhs or damping are out of range, or H + damping is singular.
        ConvergenceError: if the solver's tolerance is not reached.
    """
    if isinstance(solver, str):
        if solver != "auto":
            raise ValueError(
                f'solver must be "auto" or one of Direct(), CG(), LiSSA(), ..., got {solver!r}; "auto" picks'
            )
        solver = Direct() if problem.theta.numel() <= _DIRECT_SIZE else CG()
    return solver.solve(problem, rhs, damping)


def _check_options(tolerance: float, max_steps: int) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}; 1e-3 is usual")
    if max_steps < 1:
        raise ValueError(f"max_steps must be >= 1, got {max_steps}; leave it out for the default")
