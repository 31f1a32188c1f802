"""Random softmax-regression problems, with their dense autograd reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learned_aug.influence.head import HeadBatch
from learned_aug.influence.problem import HeadProblem, residuals

KINDS = ("plain", "imbalanced", "duplicated features", "more features than samples", "near one-hot")


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def random_problem(
    seed: int,
    kind: str = "plain",
    *,
    n: int = 60,
    bias: bool = True,
    label_smoothing: float = 0.0,
    weighted: bool = False,
    weight_decay: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> HeadProblem:
    """A problem with 2 to 5 classes and 3 to 9 features, at random weights."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k, d = 2 + seed % 4, 3 + seed % 7
    n = d - 1 if kind == "more features than samples" else n
    features, weight = randn(n, d), randn(k, d)
    labels = torch.randint(k, (n,), generator=generator)
    if seed % 2:
        features = features.relu()
    if kind == "imbalanced":
        labels = torch.where(torch.rand(n, generator=generator) < 0.95, 0, labels)
    if kind == "duplicated features":
        features[:, 1] = features[:, 0]
    if kind == "near one-hot":
        weight *= 12
        labels = (features @ weight.T).argmax(1)
    return HeadProblem(
        features=features.to(dtype),
        labels=labels,
        weight=weight.to(dtype),
        bias=randn(k).to(dtype) if bias else None,
        sample_weights=torch.rand(n, generator=generator, dtype=dtype) * 2 if weighted else None,
        label_smoothing=label_smoothing,
        weight_decay=weight_decay,
    )


def autograd_loss(problem: HeadProblem, theta: Tensor) -> Tensor:
    """The problem's loss at theta, by torch's cross-entropy."""
    h = problem.features.to(theta.dtype)
    if problem.bias is not None:
        h = torch.cat([h, torch.ones_like(h[:, :1])], 1)
    ce = F.cross_entropy(h @ theta.T, problem.labels, reduction="none", label_smoothing=problem.label_smoothing)
    w = 1.0 if problem.sample_weights is None else problem.sample_weights
    return (w * ce).mean() + 0.5 * problem.weight_decay * theta.square().sum()


def dense_hessian(problem: HeadProblem) -> Tensor:
    """(K (D+1), K (D+1)) in float64 by torch.func, weight decay included."""
    theta = problem.theta.double()
    exact = problem.to(torch.float64)
    hessian = torch.func.jacrev(torch.func.grad(lambda t: autograd_loss(exact, t)))(theta)
    return hessian.reshape(theta.numel(), theta.numel())


def dense_solution(problem: HeadProblem, rhs: Tensor, damping: float) -> Tensor:
    """(H + damping)^-1 rhs by an LU factorization in float64, of one matrix or a stack."""
    h = dense_hessian(problem)
    h.diagonal().add_(damping)
    return torch.linalg.solve(h, rhs.double().reshape(-1, len(h)).T).T.reshape(rhs.shape)


def influence_up_params(
    inverse: Callable[[Tensor], Tensor], batch: HeadBatch, bias: bool = True, label_smoothing: float = 0.0
) -> Tensor:
    """Influence of up-weighting each sample on the head itself, Eq. 12: -H^-1 grad l, (B, K, D + 1).

    Args:
        inverse: (H + damping)^-1, of a stack (B, K, D + 1).
        batch: features (B, D), logits (B, K), labels (B,).
        bias: whether the head has one.
        label_smoothing: of the training loss.
    """
    h = batch.features if not bias else F.pad(batch.features, (0, 1), value=1.0)
    r = residuals(batch.logits, batch.labels, label_smoothing)
    return -inverse(r[:, :, None] * h.to(r.dtype)[:, None, :])
