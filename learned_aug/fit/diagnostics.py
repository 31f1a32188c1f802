"""What an augmenter does to images, in figures: strength, diversity, and how often it fools the classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from learned_aug.augmenter import Augmenter
from learned_aug.draw import Augmented
from learned_aug.influence.head import HeadTap

__all__ = ["divergence_named", "draw_distance", "effective_rank", "measure", "require_finite", "shared_change"]

RANKED = 256  # draws whose flows give the effective rank


def draw_distance(out: Augmented) -> Tensor:
    """Return the mean distance of two draws for the same images.

    Args:
        out: augmented batch whose second half repeats the images of the first.

    Returns:
        (2,): of the flows, pixels, and of the color changes, mean absolute, units of the images. 0 where the augmenter
        has no such field; differentiable.
    """
    one, two = out.flow.chunk(2)
    first, second = out.delta.chunk(2)
    return torch.stack([(one - two).norm(dim=1).mean(), (first - second).abs().mean()])


def shared_change(out: Augmented) -> Tensor:
    """Measure what all samples of a batch have in common.

    Returns:
        (2,): mean squared length of the batch's mean flow, pixels^2, and of its mean color change; differentiable.
    """
    return torch.stack([out.flow.mean(0).square().sum(0).mean(), out.delta.mean(0).square().mean()])


@contextmanager
def divergence_named(stage: str, remedy: str) -> Iterator[None]:
    """Say so where the networks have diverged: images were checked before, so the augmenter's complaint is not theirs.

    Raises:
        RuntimeError: for the augmenter's ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise RuntimeError(f"{stage} diverged, E and G give values that are not finite; {remedy}") from error


def require_finite(loss: Tensor, stage: str, remedy: str) -> None:
    """Refuse a loss that is not finite, before a step is made along it.

    Raises:
        RuntimeError: if it is not, naming the stage and the remedy.
    """
    if not loss.detach().isfinite().all():
        raise RuntimeError(f"{stage} diverged, its loss must be finite, got {float(loss.detach())}; {remedy}")


def effective_rank(flow: Tensor) -> float:
    """Count the directions in which flows (B, 2, H, W) vary: exp of the entropy of their normalized variances.

    It is 1 for copies of one warp at different strengths, at most B - 1.
    """
    centered = (flow - flow.mean(0)).flatten(1)
    variance = torch.linalg.svdvals(centered.double()).square()
    share = variance / variance.sum().clamp_min(1e-300)
    return float(torch.special.entr(share).sum().exp())


def coarse(flow: Tensor) -> Tensor:
    """Means of flows (B, 2, H, W) over at most 32 x 32 areas: they are smooth, and many of them are kept."""
    height, width = flow.shape[-2:]
    return F.adaptive_avg_pool2d(flow, (min(height, 32), min(width, 32)))


@torch.no_grad()
def measure(
    augmenter: Augmenter,
    tap: HeadTap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    val_drop: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Measure an augmenter on (images, labels) batches.

    Args:
        augmenter: drawn twice for each image.
        tap: open, on the borrowed model.
        batches: pairs of images (B, C, H, W) and labels (B,).
        val_drop: predicted fall of the validation loss, (B,), of (images, augmented, labels); left out without it.
        generator: source of the noise of the draws; by default torch's global one.

    Returns:
        warp: mean distance of two draws' flows for one image, a share of the image side.
        color: mean distance of two draws' color changes, a share of the range [0, 1].
        flow: mean length of the flow, a share of the image side.
        shift: mean length of the mean flow over images and draws, a share of the image side; a warp that all share.
        rank: :func:`effective_rank` of the flows of up to 128 images, NaN for fewer than 8.
        misclassified: share of the augmented images that the user's model gets wrong.
        predicted_val_drop: fall of the validation loss that is predicted for replacing one image by its augmented copy,
            nats, mean over the images (Eq. 15).
    """
    sums = torch.zeros(4, dtype=torch.float64)
    total: Tensor | float = 0.0
    first: list[Tensor] = []
    wrong = count = 0
    for images, labels in batches:
        images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        out = augmenter.augment(images, generator=generator)
        logits = tap(out.images)[1]
        wrong += int((logits.argmax(1) != labels).sum())
        if val_drop is not None:
            sums[3] += float(val_drop(images, out.images, labels).sum())
        part = torch.stack([*draw_distance(out), out.flow.norm(dim=1).mean()])
        sums[:3] += part.double().cpu() * len(images)
        total = total + out.flow.sum(0)
        if count < RANKED:
            first.append(coarse(out.flow[: RANKED - count]))
        count += len(images)
    side = max(images.shape[-2:])
    std = sum(augmenter.config.std) / len(augmenter.config.std)
    flows = torch.cat(first)
    figures = {
        "warp": float(sums[0]) / count / side,
        "color": float(sums[1]) / count * std,
        "flow": float(sums[2]) / count / side,
        "shift": float((torch.as_tensor(total) / count).norm(dim=0).mean()) / side,
        "rank": effective_rank(flows) if len(flows) >= 16 else math.nan,
        "misclassified": wrong / count,
    }
    return figures if val_drop is None else {**figures, "predicted_val_drop": float(sums[3]) / count}
