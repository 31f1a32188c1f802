"""Influence of training samples on the validation loss, through the head.

Sign: `influence_up` is the derivative of the validation loss by the weight of a training sample, so that negative is
good. Reduction: the training loss is a mean over N samples, so that adding one sample, or replacing one, moves the
validation loss by I / N.
"""

from __future__ import annotations

from torch import Tensor

from .head import HeadBatch, residuals

__all__ = ["influence_aug", "influence_up", "predicted_val_drop"]


def influence_up(ihvp: Tensor, batch: HeadBatch, label_smoothing: float = 0.0) -> Tensor:
    """Influence of up-weighting each sample on the validation loss, Eq. 14: -<S, (p - y) h~^T>.

    Args:
        ihvp: s_val = (H + damping)^-1 val_grad, (K, D + 1), bias in the last column, or (K, D) without; a constant.
        batch: features (B, D), logits (B, K), labels (B,) of the training samples.
        label_smoothing: of the training loss.

    Returns:
        (B,), nats per unit of sample weight; differentiable through `batch`.
    """
    s = ihvp.detach().to(batch.features.dtype)
    classes, dim = batch.logits.shape[1], batch.features.shape[1]
    if s.ndim != 2 or s.shape[0] != classes or s.shape[1] not in (dim, dim + 1):
        raise ValueError(f"ihvp must be ({classes}, {dim + 1}) or ({classes}, {dim}), got {tuple(ihvp.shape)}")
    # <S, r h~^T> = <S h~, r>: (B, K) instead of (B, K, D).
    u = batch.features @ s[:, :dim].T
    if s.shape[1] == dim + 1:
        u = u + s[:, dim]
    return -(u * residuals(batch.logits, batch.labels, label_smoothing)).sum(1)


def influence_aug(ihvp: Tensor, aug: HeadBatch, orig: HeadBatch, label_smoothing: float = 0.0) -> Tensor:
    """Influence of replacing each sample by its augmented copy, Eq. 18: I_up(aug) - I_up(orig).

    Negative is good: the predicted fall of the validation loss is -I / n_train (Eq. 15).

    Args:
        ihvp: s_val, (K, D + 1), bias in the last column, or (K, D) without; treated as constant.
        aug: features (B, D), logits (B, K), labels (B,) of the augmented images.
        orig: the same for the originals, in the same order.
        label_smoothing: of the training loss.

    Returns:
        (B,), nats per unit of sample weight; differentiable through `aug`.

    Raises:
        ValueError: if K or D differ between `ihvp` and the batches.
    """
    if aug.logits.shape != orig.logits.shape:
        raise ValueError(
            f"aug and orig must hold the same samples, got logits {tuple(aug.logits.shape)} "
            f"and {tuple(orig.logits.shape)}"
        )
    return influence_up(ihvp, aug, label_smoothing) - influence_up(ihvp, orig, label_smoothing)


def predicted_val_drop(influence: Tensor, n_train: int) -> Tensor:
    """Predicted fall of the validation loss, Eq. 15: -I / N, nats; positive is good."""
    if n_train < 1:
        raise ValueError(f"n_train must be >= 1, got {n_train}")
    return -influence / n_train
