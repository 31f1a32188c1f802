"""Softmax regression on the features that enter a classifier's head, in closed form.

Write h~ = [h; 1] for a feature vector with the bias input appended, theta = [W, b] for the head, p = softmax(theta h~)
and y for the (smoothed) one-hot label. With N training samples of weight w_i the head's loss is

    L(theta) = 1/N sum_i w_i CE(p_i, y_i) + weight_decay / 2 |theta|^2,

    gradient   1/N sum_i w_i (p_i - y_i) h~_i^T + weight_decay theta,
    Hessian    H V = 1/N sum_i w_i (diag(p_i) - p_i p_i^T) V h~_i h~_i^T + weight_decay V.

One Hessian product is two matrix products over the features and needs no autograd. Everything here is streamed over
rows: memory beyond the features is N K for the probabilities, and no K(D+1) square matrix is formed.

**Several processes.** With `sharded=True` each process holds a part of the samples, of any size, in the order of the
ranks; every sum over samples then runs over all processes (see `parallel`), N counts all samples, and all processes get
the result that one of them would get on all samples. All must make the same calls in the same order, at equal weights.

**Null direction.** Adding one vector to every class row of theta leaves the softmax unchanged, so the data term of H is
singular there (D+1 dimensions). Every gradient is orthogonal to it: its rows sum to zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.fit.events import Event, OnEvent
from learned_aug.fit.head import HeadBatch, check_finite, check_labels
from learned_aug.fit.parallel import all_sum_, broadcast_, span

__all__ = ["Head", "HeadProblem", "RefitResult", "mean_gradient", "refit"]

# Rows are processed in blocks of about this many bytes of features. On the CPU a block stays in cache between the two
# products of a Hessian product; on an accelerator it only has to be large enough to hide the launches.
_CPU_BLOCK_BYTES = 4 << 20
_GPU_BLOCK_BYTES = 256 << 20


def residuals(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """p - y, (B, K): softmax of the logits less the one-hot labels, smoothed as torch's cross-entropy does.

    At least float32, so that half-precision logits do not lose the small residuals of well-fitted samples.
    """
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    return p - targets(labels, p, label_smoothing)


def targets(labels: Tensor, like: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """y, one-hot labels smoothed as torch's cross-entropy does, of shape (B, K) and dtype of `like`."""
    smooth = label_smoothing / like.shape[1]
    return torch.full_like(like, smooth).scatter_(1, labels[:, None], 1 - label_smoothing + smooth)


def mean_gradient(
    batch: HeadBatch, bias: bool = True, label_smoothing: float = 0.0, *, sharded: bool = False
) -> Tensor:
    """Gradient of the mean cross-entropy of `batch` with respect to the head: 1/B sum (p - y) h~^T.

    Of the hyper-validation set this is the `val_grad` of which `ihvp.solve` makes s_val.

    Args:
        batch: features (B, D), logits (B, K), labels (B,).
        bias: whether the head has one.
        label_smoothing: of the loss whose gradient is wanted; the validation loss usually has none.
        sharded: each process has a part of the samples, and B counts all of them.

    Returns:
        (K, D + 1), bias in the last column, or (K, D) without; in the dtype of the logits; rows sum to zero.

    Warns:
        UserWarning: if a class of the head has no sample in `batch`.
    """
    check_labels(batch.labels, batch.logits.shape)
    check_finite(batch)
    count = warn_of_missing_classes(batch.labels, batch.logits.shape[1], sharded)
    r = residuals(batch.logits, batch.labels, label_smoothing)
    grad = r.T @ batch.features.to(r.dtype)
    if bias:
        grad = torch.cat([grad, r.sum(0)[:, None]], 1)
    return (all_sum_(grad) if sharded else grad) / count


def warn_of_missing_classes(labels: Tensor, classes: int, sharded: bool = False) -> int:
    """Warn if the hyper-validation set lacks a class of the head; the number of its samples, over all processes."""
    counts = labels.bincount(minlength=classes)
    if sharded:
        all_sum_(counts)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        warnings.warn(
            f"the validation set has no sample of {len(missing)} of the head's {classes} classes ({shown}): losses "
            "on them count for nothing, so an augmentation that harms them is not seen; add samples of each class",
            stacklevel=3,
        )
    return int(counts.sum())


Basis = tuple[Tensor, Tensor]  # eigenvalues and eigenvectors


class Head(Protocol):
    """What influences need of the classifier's last layer, once it is refitted: :class:`HeadProblem` without data."""

    @property
    def weight(self) -> Tensor:
        """(K, D)."""

    @property
    def bias(self) -> Tensor | None:
        """(K,)."""

    @property
    def label_smoothing(self) -> float:
        """Of its training loss."""

    @property
    def n_train(self) -> int:
        """Number of its training samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadProblem:
    """The head's training problem on cached features; formulas in the module's docstring.

    Computes in the dtype of `weight`; `features` may be stored in a smaller one and are cast block by block.

    Raises:
        ValueError: if shapes, labels, weights or settings are out of range, or a logit is not finite.
    """

    features: Tensor  # (N, D)
    labels: Tensor  # (N,), class indices
    weight: Tensor  # (K, D)
    bias: Tensor | None  # (K,)
    sample_weights: Tensor | None = None  # (N,), w_i >= 0; the loss divides by N, not by their sum
    label_smoothing: float = 0.0  # as in torch's cross-entropy, in [0, 1]
    weight_decay: float = 0.0  # the loss has weight_decay / 2 |theta|^2, bias included, as torch's optimisers do
    sharded: bool = False  # these are one process's part of the samples

    def __post_init__(self) -> None:
        n = len(self.features)
        if self.features.ndim != 2 or n == 0:
            raise ValueError(f"features must be (N, D) with N >= 1, got {tuple(self.features.shape)}; see collect()")
        if self.weight.ndim != 2 or self.weight.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"weight must be (K, {self.features.shape[1]}), got {tuple(self.weight.shape)}; take it from the head "
                "that the features enter"
            )
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"weight must be float32 or float64 to compute in, got {self.weight.dtype}; cast it")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"bias must be ({len(self.weight)},), got {tuple(self.bias.shape)}; use None for none")
        check_labels(self.labels, torch.Size([n, len(self.weight)]))
        w = self.sample_weights
        if w is not None and (w.shape != (n,) or not bool(((w >= 0) & w.isfinite()).all())):
            raise ValueError(
                f"sample_weights must be ({n},), finite and >= 0, got {tuple(w.shape)}, minimum {float(w.min())}; "
                "a negative weight makes the Hessian indefinite"
            )
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1], got {self.label_smoothing}; use that of the training loss"
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"weight_decay must be >= 0 and finite, got {self.weight_decay}; use that of the training loss"
            )
        self._span  # noqa: B018  # here all processes meet, not in whichever property comes first

    @classmethod
    def from_batch(
        cls,
        batch: HeadBatch,
        head: nn.Linear,
        sample_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        weight_decay: float = 0.0,
        sharded: bool = False,
    ) -> HeadProblem:
        """The problem that `head` was trained on, from what `collect` gave; the head's weights are copied.

        Computes in the dtype of the head, at least float32.
        """
        dtype = torch.promote_types(head.weight.dtype, torch.float32)
        return cls(
            features=batch.features,
            labels=batch.labels,
            weight=head.weight.detach().clone().to(dtype),
            bias=None if head.bias is None else head.bias.detach().clone().to(dtype),
            sample_weights=sample_weights,
            label_smoothing=label_smoothing,
            weight_decay=weight_decay,
            sharded=sharded,
        )

    @property
    def theta(self) -> Tensor:
        """(K, D + 1), bias in the last column, or (K, D) without."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias[:, None]], 1)

    @property
    def n_train(self) -> int:
        """N, the number of training samples, of all processes together."""
        return self._span[1]

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The first of these samples among all, and N."""
        count = len(self.features)
        return span(count, self.features.device) if self.sharded else (0, count)

    def total(self, sums: Tensor) -> Tensor:
        """`sums` over these samples, replaced by those over all."""
        return all_sum_(sums) if self.sharded else sums

    def with_theta(self, theta: Tensor) -> HeadProblem:
        """The same problem at other weights, (K, D + 1) or (K, D); computes in the dtype of `theta`."""
        weight, bias = (theta, None) if self.bias is None else (theta[:, :-1], theta[:, -1])
        return replace(self, weight=weight, bias=bias)

    def to(self, dtype: torch.dtype) -> HeadProblem:
        """The same problem computed in `dtype`; features stay as they are stored."""
        return self if self.weight.dtype == dtype else self.with_theta(self.theta.to(dtype))

    @property
    def batch(self) -> HeadBatch:
        """The training samples as a batch, of this process if sharded, with the logits of these weights."""
        return HeadBatch(self.features, self.logits, self.labels)

    def batches(self) -> Iterator[HeadBatch]:
        """`batch` in parts, of which only one need be in memory."""
        for rows in self._blocks():
            yield HeadBatch(self.features[rows], self._logits(rows), self.labels[rows])

    def _blocks(self, width: int = 1, stride: int = 1) -> Iterator[slice]:
        """Row ranges whose features, and `width` rows of logits, take about the block size in the computing dtype.

        With a stride, of every `stride`-th among all samples.
        """
        budget = _CPU_BLOCK_BYTES if self.features.device.type == "cpu" else _GPU_BLOCK_BYTES
        row = (self.weight.shape[1] + width * self.weight.shape[0]) * self.weight.element_size()
        step = max(64, budget // row) * stride
        return (slice(i, i + step, stride) for i in range(-self._span[0] % stride, len(self.features), step))

    def _weigh(self, values: Tensor, rows: slice | Tensor) -> Tensor:
        """`values` (B, ...) of the samples in `rows`, times their weights."""
        if self.sample_weights is None:
            return values
        w = self.sample_weights[rows].to(values.dtype)
        return values * w.view(-1, *[1] * (values.ndim - 1))

    def _extended(self, rows: slice) -> Tensor:
        """h~ of the samples in `rows`, (B, D + 1), or (B, D) without bias, in the computing dtype."""
        h = self.features[rows].to(self.weight.dtype)
        return h if self.bias is None else F.pad(h, (0, 1), value=1.0)

    def _logits(self, rows: slice) -> Tensor:
        logits = F.linear(self.features[rows].to(self.weight.dtype), self.weight, self.bias)
        check_finite(HeadBatch(self.features[rows], logits, self.labels[rows]), rows.start)
        return logits

    @property
    def logits(self) -> Tensor:
        """(N, K), computed anew at each use."""
        return self._stack(self._logits)

    @cached_property
    def probabilities(self) -> Tensor:
        """p, (N, K)."""
        return self._stack(lambda rows: self._logits(rows).softmax(1))

    def _stack(self, values: Callable[[slice], Tensor]) -> Tensor:
        """(N, K) of its blocks of rows."""
        out = self.weight.new_empty(len(self.features), len(self.weight))
        for rows in self._blocks():
            out[rows] = values(rows)
        return out

    def loss(self) -> Tensor:
        """L(theta), nats, a scalar."""
        data = self.weight.new_zeros(())
        for rows in self._blocks():
            smoothing = self.label_smoothing
            ce = F.cross_entropy(self._logits(rows), self.labels[rows], reduction="none", label_smoothing=smoothing)
            data += self._weigh(ce, rows).sum()
        return self.total(data) / self.n_train + 0.5 * self.weight_decay * self.theta.square().sum()

    def gradient(self) -> Tensor:
        """(K, D + 1) or (K, D): 1/N sum_i w_i (p_i - y_i) h~_i^T + weight_decay theta."""
        out = torch.zeros_like(self.theta)
        for rows in self._blocks():
            r = self.probabilities[rows] - targets(self.labels[rows], self.probabilities[rows], self.label_smoothing)
            self._add_outer(out, self._weigh(r, rows), rows)
        return self.total(out).div_(self.n_train).add_(self.theta, alpha=self.weight_decay)

    def hvp(self, v: Tensor, rows: Tensor | None = None) -> Tensor:
        """H V, weight decay included and damping not.

        Args:
            v: (K, D + 1) or (K, D) as `theta`, or a stack (R, ...) of them, which shares the passes over the features.
            rows: indices below N of a batch of samples, the same in all processes, over which to take the mean instead.

        Returns:
            of the shape of `v`, in the dtype of `weight`.
        """
        if v.shape[-2:] != self.theta.shape or v.ndim > 3:
            raise ValueError(
                f"v must be {tuple(self.theta.shape)} or a stack of such, got {tuple(v.shape)}; shape it as theta"
            )
        dim = self.weight.shape[1]
        flat = v.to(self.weight.dtype).reshape(-1, v.shape[-1])
        stack = len(flat) // len(self.weight)
        out = torch.zeros_like(flat)
        bias = None if self.bias is None else flat[:, dim]
        for block in self._blocks(stack) if rows is None else [self._own(rows)]:
            u = F.linear(self.features[block].to(flat.dtype), flat[:, :dim], bias)
            u = u.view(len(u), stack, len(self.weight))
            p = self.probabilities[block, None]
            u = self._weigh(p * (u - (p * u).sum(2, keepdim=True)), block)
            self._add_outer(out, u.flatten(1), block)
        out = self.total(out).div_(self.n_train if rows is None else len(rows)).view(v.shape)
        return out.add_(v.to(out.dtype), alpha=self.weight_decay)

    def _own(self, rows: Tensor) -> Tensor:
        """Of `rows` among all samples those of this process, counted from its first."""
        if not self.sharded:
            return rows
        rows = rows - self._span[0]
        return rows[(rows >= 0) & (rows < len(self.features))]

    def _add_outer(self, out: Tensor, r: Tensor, rows: slice | Tensor) -> None:
        """out += sum_i r_i h~_i^T over the samples in `rows`."""
        dim = self.weight.shape[1]
        out[:, :dim].addmm_(r.T, self.features[rows].to(r.dtype))
        if self.bias is not None:
            out[:, dim].add_(r.sum(0))

    def hessian_block(self, j: int, k: int) -> Tensor:
        """The Hessian's data term between the rows j and k of theta, (D + 1, D + 1) or (D, D)."""
        size = self.theta.shape[1]
        out = torch.zeros(size, size, dtype=self.weight.dtype, device=self.weight.device)
        for rows in self._blocks():
            p, h = self.probabilities[rows], self._extended(rows)
            a = p[:, j] * ((1.0 if j == k else 0.0) - p[:, k])
            out.addmm_((self._weigh(a, rows)[:, None] * h).T, h)
        return self.total(out) / self.n_train

    @cached_property
    def mean_eigenvalue(self) -> float:
        """Trace of the Hessian's data term (no weight decay) over its size: the unit for relative damping."""
        extra = 0.0 if self.bias is None else 1.0
        trace = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        for rows in self._blocks():
            p = self.probabilities[rows]
            h = self.features[rows].to(p.dtype)
            trace += self._weigh((p * (1 - p)).sum(1) * (h.square().sum(1) + extra), rows).sum()
        return float(self.total(trace)) / self.n_train / self.theta.numel()

    @cached_property
    def mean_square_feature(self) -> float:
        """Of the features, without the bias input: the unit for relative weight decay."""
        total = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        for rows in self._blocks():
            total += self.features[rows].double().square().sum()
        return float(self.total(total)) / self.n_train / self.features.shape[1]

    def kronecker_inverse(self, damping: float, basis: Basis | None = None) -> Callable[[Tensor], Tensor]:
        """An approximate (H + damping)^-1, to precondition with: H by the Kronecker product of its two marginals.

        H = mean_i (A_i (x) h~_i h~_i^T), A_i = diag(p_i) - p_i p_i^T, by mean_i A_i (x) mean_i h~_i h~_i^T with the
        second mean weighted by tr A_i, so that samples without curvature do not shape it. Two eigenproblems, of sizes K
        and D+1; the second is spared if `basis`, the `feature_basis` at other weights, is given.
        """
        k = len(self.weight)
        classes = self.weight.new_zeros(k, k)
        for rows in self._blocks(stride=self._stride):
            p = self.probabilities[rows]
            wp = self._weigh(p, rows)
            classes += torch.diag(wp.sum(0)) - wp.T @ p
        classes = self.total(classes) / len(range(0, self.n_train, self._stride))
        lk, qk = torch.linalg.eigh(classes)
        if self.sharded:
            broadcast_(lk, qk)
        ld, qd = self.feature_basis() if basis is None else basis
        spectrum = lk.clamp_min(0)[:, None] * ld.clamp_min(0) + (self.weight_decay + damping)

        def inverse(r: Tensor) -> Tensor:
            out: Tensor = qk @ ((qk.T @ r @ qd) / spectrum) @ qd.T
            return out

        return inverse

    def feature_basis(self) -> Basis:
        """Eigenvalues (D + 1,) and vectors of the second moment of h~, weighted by curvature."""
        size = self.theta.shape[1]
        moment, weight = self.weight.new_zeros(size, size), self.weight.new_zeros(())
        for rows in self._blocks(stride=self._stride):
            p, h = self.probabilities[rows], self._extended(rows)
            trace = self._weigh((p * (1 - p)).sum(1), rows)
            moment.addmm_((trace[:, None] * h).T, h)
            weight += trace.sum()
        moment = self.total(moment) / self.total(weight).clamp_min(torch.finfo(weight.dtype).tiny)
        values, vectors = torch.linalg.eigh(moment)
        if self.sharded:  # to the last bit, so that solvers take the same steps everywhere
            broadcast_(values, vectors)
        return values, vectors

    @property
    def _stride(self) -> int:
        """Of every so many samples one, about four for each column of theta, gives a spectrum's outline."""
        return max(1, self.n_train // (4 * self.theta.shape[1] + 1000))


class RefitResult(NamedTuple):
    """A head at, or towards, its optimum."""

    problem: HeadProblem  # float64, at the new weights
    gradient_norm: float  # |grad L|, nats per unit of theta
    steps: int  # Newton steps
    converged: bool


def norms(v: Tensor) -> Tensor:
    """Norm of a matrix (K, D), a scalar, or of each in a stack (R, K, D), (R,)."""
    return v.square().sum((-2, -1)).sqrt()


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    done: Callable[[Tensor, Tensor], bool],
    max_steps: int,
    precondition: Callable[[Tensor], Tensor] = lambda r: r,
) -> tuple[Tensor, Tensor, int]:
    """Preconditioned conjugate gradients on `apply(x) = rhs` from x = 0, for a matrix or a stack of them.

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


def refit(
    problem: HeadProblem, tolerance: float = 1e-9, max_steps: int = 100, *, on_event: OnEvent | None = None
) -> RefitResult:
    """Train the head to stationarity: Newton steps by conjugate gradients, with a line search, in float64.

    Args:
        problem: the head as found; not changed.
        tolerance: on |grad L|, relative to the root mean square of |h~|.
        max_steps: Newton steps. Without weight decay, separable features have no minimiser: the weights then grow until
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
