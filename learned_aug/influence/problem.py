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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.head import HeadBatch, check_finite
from learned_aug.runtime.checks import check_class_range, check_labels
from learned_aug.runtime.distributed import all_sum_, broadcast_, span

__all__ = ["Basis", "Head", "HeadProblem", "residuals", "targets", "warn_of_missing_classes"]

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
    """y, one-hot or soft labels smoothed as torch's cross-entropy does, of shape (B, K) and dtype of `like`."""
    smooth = label_smoothing / like.shape[1]
    if labels.ndim == 2:
        return labels.to(like.dtype) * (1 - label_smoothing) + smooth
    return torch.full_like(like, smooth).scatter_(1, labels[:, None].long(), 1 - label_smoothing + smooth)


def warn_of_missing_classes(labels: Tensor, classes: int, sharded: bool = False) -> int:
    """Warn if the hyper-validation set lacks a class of the head; return its size, over all processes."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A head at which influences are read: what is left of a :class:`HeadProblem` without its data."""

    weight: Tensor
    """(K, D)."""
    bias: Tensor | None
    """(K,); None for a head without."""
    label_smoothing: float
    """Label smoothing of the head's training loss."""
    n_train: int
    """N, the number of training samples."""

    def __call__(self, features: Tensor, labels: Tensor) -> HeadBatch:
        """Return what the head makes of features (B, D), in their dtype, with their labels (B,)."""
        bias = None if self.bias is None else self.bias.to(features.dtype)
        return HeadBatch(features, F.linear(features, self.weight.to(features.dtype), bias), labels)


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
    weight_decay: float = 0.0  # the loss has weight_decay / 2 |theta|^2, bias included, as torch's optimizers do
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
        check_class_range(check_labels(self.labels, n), len(self.weight))
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

    @property
    def head(self) -> Head:
        """The head of this problem, without its data."""
        return Head(weight=self.weight, bias=self.bias, label_smoothing=self.label_smoothing, n_train=self.n_train)

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The first of these samples among all, and N."""
        count = len(self.features)
        return span(count, self.features.device) if self.sharded else (0, count)

    def total(self, sums: Tensor) -> Tensor:
        """`sums` over these samples, replaced by those over all."""
        return all_sum_(sums) if self.sharded else sums

    def with_theta(self, theta: Tensor) -> HeadProblem:
        """Return the same problem at other weights, (K, D + 1) or (K, D); computes in the dtype of `theta`."""
        weight, bias = (theta, None) if self.bias is None else (theta[:, :-1], theta[:, -1])
        return replace(self, weight=weight, bias=bias)

    def to(self, dtype: torch.dtype) -> HeadProblem:
        """Return the same problem computed in `dtype`; features stay as they are stored."""
        return self if self.weight.dtype == dtype else self.with_theta(self.theta.to(dtype))

    @property
    def batch(self) -> HeadBatch:
        """The training samples as a batch, of this process if sharded, with the logits of these weights."""
        return HeadBatch(self.features, self.logits, self.labels)

    def batches(self) -> Iterator[HeadBatch]:
        """Yield `batch` in parts, of which only one need be in memory."""
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
        """Compute L(theta), nats, a scalar."""
        data = self.weight.new_zeros(())
        for rows in self._blocks():
            smoothing = self.label_smoothing
            labels = self.labels[rows].long()
            ce = F.cross_entropy(self._logits(rows), labels, reduction="none", label_smoothing=smoothing)
            data += self._weigh(ce, rows).sum()
        return self.total(data) / self.n_train + 0.5 * self.weight_decay * self.theta.square().sum()

    def gradient(self) -> Tensor:
        """(K, D + 1) or (K, D): 1/N sum_i w_i (p_i - y_i) h~_i^T + weight_decay theta."""
        out = torch.zeros_like(self.theta)
        for rows in self._blocks():
            r = self.probabilities[rows] - targets(self.labels[rows], self.probabilities[rows], self.label_smoothing)
            self._add_outer(out, self._weigh(r, rows), rows)
        return self.total(out).div_(self.n_train).add_(self.theta, alpha=self.weight_decay)

    def validation_gradient(self, val: HeadBatch) -> Tensor:
        """Return the gradient of the mean loss on validation samples, of which a solver makes s_val.

        Args:
            val: features (B, D) and labels (B,) of the validation set, of this process if sharded; its logits are not
                used. The loss has neither label smoothing nor weight decay.

        Returns:
            (K, D + 1) or (K, D); rows sum to zero.

        Warns:
            UserWarning: if a class of the head has no sample in `val`.
        """
        plain = self._plain(val)
        warn_of_missing_classes(val.labels, len(self.weight), self.sharded)
        return plain.gradient()

    def gradient_on(self, batch: HeadBatch) -> Tensor:
        """Return :meth:`validation_gradient` without its warning, as for a part of a validation set."""
        return self._plain(batch).gradient()

    def _plain(self, batch: HeadBatch) -> HeadProblem:
        """The mean loss on other samples, without smoothing, weights and decay; refuses labels that are no classes."""
        return replace(
            self,
            features=batch.features,
            labels=batch.labels,
            sample_weights=None,
            label_smoothing=0.0,
            weight_decay=0.0,
        )

    def hvp(self, v: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute H V, weight decay included and damping not.

        Args:
            v: (K, D + 1) or (K, D) as `theta`, or a stack (R, ...) of them, which shares the passes over the features.
            rows: indices below N of a batch of samples, the same in all processes, over which to take the mean instead.

        Returns:
            of the shape of `v`, in the dtype of `weight`.

        Raises:
            ValueError: if `v` has another shape.
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
