"""Influence of training samples on the validation loss, through the head.

Sign: an influence is the derivative of the validation loss by the weight of a training sample, so that negative is
good. Reduction: the training loss is a mean over N samples, so that adding a sample (or replacing one) moves the
validation loss by I / N, and leaving one out by -I / N. A sample of weight w counts w times.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from learned_aug.influence.head import HeadBatch
from learned_aug.influence.problem import HeadProblem, residuals

__all__ = [
    "Stationarity",
    "check_stationary",
    "influence_aug",
    "influence_up",
    "predicted_val_drop",
]


def influence_up(ihvp: Tensor, batch: HeadBatch, label_smoothing: float = 0.0) -> Tensor:
    """Compute the influence of up-weighting each sample on the validation loss, Eqs. 13 and 14: -<S, (p - y) h~^T>.

    For the validation set, S is s_val = (H + damping)^-1 val_grad. For single validation samples, pass the stack of
    theirs; or, H being symmetric, pass S = (H + damping)^-1 of one *training* sample's gradient and the validation set
    as `batch`: that gives the influence of this sample on each validation sample for one solve.

    Args:
        ihvp: S, (K, D + 1), bias in the last column, or (K, D) without, or a stack (R, ...) of such; a constant.
        batch: features (B, D), logits (B, K), labels (B,) of the training samples.
        label_smoothing: label smoothing of the training loss, in [0, 1].

    Returns:
        (B,), or (R, B) for a stack; nats per unit of sample weight; differentiable through `batch`. Memory O(B K).

    Raises:
        ValueError: if K or D differ between `ihvp` and `batch`, `label_smoothing` is out of range, or `ihvp`, on a CPU,
            is not finite.
    """
    classes, dim = batch.logits.shape[1], batch.features.shape[1]
    if ihvp.ndim not in (2, 3) or ihvp.shape[-2] != classes or ihvp.shape[-1] not in (dim, dim + 1):
        raise ValueError(
            f"ihvp must be ({classes}, {dim + 1}), or ({classes}, {dim}) without bias, or a stack of such for features "
            f"{tuple(batch.features.shape)} and logits {tuple(batch.logits.shape)}, got {tuple(ihvp.shape)}; "
            "solve it for the head that the features enter"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}; give that of the training loss")
    if ihvp.device.type == "cpu" and not bool(ihvp.isfinite().all()):
        raise ValueError("ihvp must be finite, got NaN or infinity; look for them in the head and its features")
    r = residuals(batch.logits, batch.labels, label_smoothing)
    h = batch.features.to(r.dtype)

    def single(s: Tensor) -> Tensor:
        # <S, r h~^T> = <S h~, r>: (B, K) where the gradients would be (B, K, D + 1).
        u = h @ s[:, :dim].T
        return -((u if s.shape[1] == dim else u + s[:, dim]) * r).sum(1)

    s = ihvp.detach().to(r.dtype)
    return single(s) if s.ndim == 2 else torch.stack([single(one) for one in s])


def influence_aug(ihvp: Tensor, aug: HeadBatch, orig: HeadBatch, label_smoothing: float = 0.0) -> Tensor:
    """Compute the influence of replacing each sample by its augmented copy, Eq. 18: I_up(aug) - I_up(orig).

    Negative is good: the predicted fall of the validation loss is -I / n_train (Eq. 15).

    Args:
        ihvp: s_val, (K, D + 1), bias in the last column, or (K, D) without, or a stack of such; treated as constant.
        aug: features (B, D), logits (B, K), labels (B,) of the augmented images.
        orig: the same for the originals, in the same order.
        label_smoothing: label smoothing of the training loss, in [0, 1].

    Returns:
        (B,), or (R, B) for a stack; nats per unit of sample weight; differentiable through `aug`.

    Raises:
        ValueError: as in :func:`influence_up`; if B, or class indices on a CPU, differ between the batches.
    """
    if aug.logits.shape != orig.logits.shape:
        raise ValueError(
            f"aug and orig must hold the same samples in the same order, got logits {tuple(aug.logits.shape)} and "
            f"{tuple(orig.logits.shape)}; repeat orig for several copies per sample"
        )
    # Soft labels may differ, as of mixed images; a look at values on an accelerator would make it wait.
    looks = aug.labels.ndim == orig.labels.ndim == 1 and aug.labels.device.type == orig.labels.device.type == "cpu"
    if looks and (others := int((aug.labels != orig.labels).sum())):
        raise ValueError(
            f"aug and orig must hold the same samples in the same order, got {others} of {len(orig.labels)} labels "
            "that differ; read both in one order"
        )
    return influence_up(ihvp, aug, label_smoothing) - influence_up(ihvp, orig, label_smoothing)


def predicted_val_drop(influence: Tensor, n_train: int) -> Tensor:
    """Predict the fall of the validation loss, Eq. 15: -I / N.

    Args:
        influence: influence of up-weighting or replacing, nats per unit of sample weight.
        n_train: N, samples in the training set over which H is a mean.

    Returns:
        of the shape of `influence`, nats; positive is good.

    Raises:
        ValueError: if `n_train` is below 1.
    """
    if n_train < 1:
        raise ValueError(f"n_train must be >= 1, got {n_train}; see HeadProblem.n_train")
    return -influence / n_train


class Stationarity(NamedTuple):
    """How far a head is from the optimum that influences assume."""

    gradient_norm: float  # |grad L|, nats per unit of theta
    relative: float  # the same over the root mean square of |grad L_i|: 0 at the optimum, 1 if all samples pull alike
    refit_drop: float  # predicted fall of the validation loss if the head alone were refitted, <S, grad L>, nats
    typical_drop: float  # root mean square of the predicted change if one training sample is left out, nats


def check_stationary(problem: HeadProblem, ihvp: Tensor, limit: float = 0.01) -> Stationarity:
    """Measure how far the head is from stationary, and warn beyond `limit`.

    Influences are changes of the *refitted* head. A head that is not stationary would move without any change of its
    data, so that its predictions are off by that move's curvature, and their sum over the training set is not zero.

    Args:
        problem: the head as the influences use it.
        ihvp: s_val, (K, D + 1) or (K, D).
        limit: on `relative`. In benchmarks/influence/validity.py heads at 0.04 to 0.1 predicted badly (Pearson 0.3 to
            0.5), and the same heads refitted well.

    Warns:
        UserWarning: with the gradient norm and the predicted effect of refitting on the validation loss.
    """
    gradient = problem.gradient()
    norm = float(gradient.norm())
    sums = torch.zeros(2, dtype=torch.float64, device=gradient.device)  # over samples: |grad L_i|^2, influence^2
    for batch in problem.batches():
        r = residuals(batch.logits, batch.labels, problem.label_smoothing)
        square = batch.features.to(r.dtype).square().sum(1) + (0.0 if problem.bias is None else 1.0)
        sums[0] += (r.square().sum(1) * square).sum()
        sums[1] += influence_up(ihvp, batch, problem.label_smoothing).square().sum()
    each, influence = (problem.total(sums) / problem.n_train).sqrt().tolist()
    result = Stationarity(
        gradient_norm=norm,
        relative=norm / each if each > 0 else 0.0,
        refit_drop=float((ihvp.to(gradient.dtype) * gradient).sum()),
        typical_drop=influence / problem.n_train,
    )
    if result.relative > limit:
        warnings.warn(
            f"the head is far from stationary: |grad L| = {norm:.1e}, {result.relative:.0%} of one sample's gradient. "
            f"Refitting it alone is predicted to lower the validation loss by {result.refit_drop:.1e}, where leaving "
            f"out one sample changes it by {result.typical_drop:.1e}: influences assume the refitted head. Use "
            "refit(problem), or train the head longer on the same images, with its weight decay given",
            stacklevel=2,
        )
    return result
