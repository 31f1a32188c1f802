"""What an augmenter does to images, in figures: strength, diversity, and how often it fools the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from learned_aug.augmenter import Augmented, Augmenter
from learned_aug.fit.head import HeadTap

__all__ = ["divergence_named", "draw_distance", "effective_rank", "measure", "require_finite", "shared_change"]


def draw_distance(out: Augmented) -> Tensor:
    """Mean distance of two draws for the same images.

    Args:
        out: of a batch whose second half repeats the images of the first.

    Returns:
        (2,): of the flows, pixels, and of the colour changes, mean absolute, units of the images. 0 where the augmenter
        has no such field; differentiable.
    """
    one, two = out.flow.chunk(2)
    first, second = out.delta.chunk(2)
    return torch.stack([(one - two).norm(dim=1).mean(), (first - second).abs().mean()])


def shared_change(out: Augmented) -> Tensor:
    """What all samples of a batch have in common.

    Returns:
        (2,): mean squared length of the batch's mean flow, pixels^2, and of its mean colour change; differentiable.
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
    """Raise RuntimeError if the loss is not finite, before a step is made along it."""
    if not loss.detach().isfinite().all():
        raise RuntimeError(f"{stage} diverged, its loss must be finite, got {float(loss.detach())}; {remedy}")


def effective_rank(flow: Tensor) -> float:
    """Number of directions in which flows (B, 2, H, W) vary: exp of the entropy of their normalised variances.

    1 for copies of one warp at different strengths, at most B - 1.
    """
    centred = (flow - flow.mean(0)).flatten(1)
    variance = torch.linalg.svdvals(centred.double()).square()
    share = variance / variance.sum().clamp_min(1e-300)
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def measure(
    augmenter: Augmenter,
    tap: HeadTap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    val_drop: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Figures of an augmenter on (images, labels) batches.

    Args:
        augmenter: drawn twice for each image.
        tap: open, on the borrowed model.
        batches: of images (B, C, H, W) and labels (B,).
        val_drop: predicted fall of the validation loss, (B,), of (images, augmented, labels); left out without it.
        generator: for the masks.

    Returns:
        flow_px: mean length of the flow, pixels.
        spread_px: mean distance of two draws' flows for one image, pixels.
        bias_px: mean length of the mean flow over images and draws, pixels; a warp that all draws share.
        rank: :func:`effective_rank` of the flows of the first batch.
        color: mean absolute colour change, units of the images.
        misclassified: share of the augmented images that the user's model gets wrong.
        predicted_val_drop: fall of the validation loss that is predicted for replacing one image by its augmented copy,
            nats, mean over the images (Eq. 15).
    """
    sums = torch.zeros(4, dtype=torch.float64)
    flows: list[Tensor] = []
    wrong = count = 0
    for images, labels in batches:
        images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        out = augmenter.augment(images, generator=generator)
        logits = tap(out.images)[1]
        wrong += int((logits.argmax(1) != labels).sum())
        if val_drop is not None:
            sums[3] += float(val_drop(images, out.images, labels).sum())
        part = torch.stack([out.flow.norm(dim=1).mean(), draw_distance(out)[0], out.delta.abs().mean()])
        sums[:3] += part.double().cpu() * len(images)
        flows.append(out.flow)
        count += len(images)
    bias = sum(flow.sum(0) for flow in flows) / count
    figures = {
        "flow_px": float(sums[0]) / count,
        "spread_px": float(sums[1]) / count,
        "bias_px": float(torch.as_tensor(bias).norm(dim=0).mean()),
        "rank": effective_rank(flows[0]),
        "color": float(sums[2]) / count,
        "misclassified": wrong / count,
    }
    return figures if val_drop is None else {**figures, "predicted_val_drop": float(sums[3]) / count}
