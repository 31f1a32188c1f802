"""Checks that settings and inputs share: what was expected, what came, and what to do about it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LARGEST",
    "SLACK",
    "check_class_range",
    "check_images",
    "check_labels",
    "check_logits",
    "check_range",
    "check_strength",
    "check_targets",
    "model_errors_named",
    "range_remedy",
    "warn_if_plain",
]

SLACK = 0.5  # how far outside [0, 1] an image may be, as bicubic resizing leaves it, before it counts as normalized
BYTES = 256.0  # up to here nonnegative floats may be bytes, with the little that resizing adds
# What integers are to be divided by: v2.ToDtype takes the range of their type, which turns images black.
LARGEST = "the largest value that they may hold, 255 for 8-bit data"


def check_images(images: Any, channels: int | None = None) -> Tensor:
    """Refuse what is no floating batch (B, C, H, W), of C channels if they are given, and return it.

    Raises:
        TypeError: if it is no floating tensor.
        ValueError: if it has another shape, or no pixels.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images must be a floating batch (B, C, H, W), got {got}; use LearnedAugment, or scale uint8 with "
            f"v2.functional.to_dtype(images, torch.float32, scale=True), divide other integers by {LARGEST}, and stack "
            "single ones with torch.stack"
        )
    if images.ndim != 4 or 0 in images.shape[1:] or images.shape[1] != (channels or images.shape[1]):
        hint = "; add a batch dimension with images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images must be (B, {channels or 'C'}, H, W), got {tuple(images.shape)}{hint}")
    return images


def check_range(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a batch that is not in [0, 1] in the units of its images, with the slack that bicubic resizing needs.

    Args:
        images: (B, C, H, W), floating, B >= 1; normalized as (x - mean) / std.
        mean: one number, or one for each channel; 0 for images in [0, 1].
        std: likewise, 1 for these.

    Raises:
        ValueError: with the range; values that are not finite are others' to name, unless they are infinite.
    """
    shift, scale = (images.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
    if {shift.numel(), scale.numel()} - {1, images.shape[1]}:
        return  # which the configuration's own check names
    low, high = (float(value) for value in (images * scale + shift).aminmax())
    if low < -SLACK or high > 1 + SLACK:
        stated = any(mean) or any(s != 1 for s in std)
        undone = f"once (x - {tuple(mean)}) / {tuple(std)} is undone"
        when = undone if stated else "unless their normalization is stated"
        what = range_remedy(low, high, "pass the mean= and std= of their Normalize", may_be_bytes=not stated)
        raise ValueError(f"images must be in [0, 1] {when}, got [{low:.2f}, {high:.2f}]; {what}")
    warn_if_plain(images, shift)


def warn_if_plain(images: Tensor, mean: Tensor) -> None:
    """Warn of a batch in [0, 1], so not normalized, whose normalization is stated: all of it would be mild and gray.

    Args:
        images: (B, C, H, W).
        mean: of the normalization that is stated; nothing is told of 0.
    """
    if bool((mean > 0).any()) and bool(((images >= 0) & (images <= 1)).all()):
        warnings.warn(
            "all values of the first images are in [0, 1], as before a normalization, which leaves some below 0, and "
            "mean= and std= of one are stated; leave these out for images that are not normalized",
            stacklevel=4,
        )


def range_remedy(low: float, high: float, otherwise: str, *, may_be_bytes: bool = True) -> str:
    """Return what to do about images of a range outside [0, 1]; `otherwise` where nothing else explains it."""
    if not math.isfinite(high - low):
        return "check the source of NaN or infinity"
    if may_be_bytes and low >= 0 and high <= BYTES:
        return f"divide them by 255 if they are bytes, else {otherwise}"
    return otherwise


def check_strength(strength: float | Tensor) -> None:
    """Refuse a factor that is not finite; of tensors on an accelerator nothing is read, which would make it wait.

    Raises:
        ValueError: with what it was.
    """
    if not isinstance(strength, Tensor):
        finite = math.isfinite(strength)
    elif strength.device.type != "cpu" or torch.compiler.is_compiling():
        return
    else:
        finite = bool(strength.isfinite().all())
    if not finite:
        got = strength.flatten().tolist() if isinstance(strength, Tensor) else strength
        raise ValueError(f"strength must be finite, got {got}; 0 gives the images back")


def check_labels(labels: Any, samples: int, name: str = "labels") -> Tensor:
    """Refuse labels that are not class indices, with a remedy for the form that came.

    Args:
        labels: what a batch holds.
        samples: images of the batch, B.
        name: what they are called in the error, such as "labels of train".

    Returns:
        The labels, int64 (B,).

    Raises:
        ValueError: if they are something else.
    """
    if isinstance(labels, Tensor):
        integers = not labels.is_floating_point() and not labels.is_complex() and labels.dtype.itemsize > 0
        if integers and str(labels.dtype) != "torch.bool" and tuple(labels.shape) == (samples,):
            return labels.long()
        remedy, got = _remedy(labels, samples), f"{labels.dtype} {tuple(labels.shape)}"
    else:
        first = labels[0] if isinstance(labels, (list, tuple)) and len(labels) else labels
        got = f"{type(labels).__name__} of {type(first).__name__}" if first is not labels else type(labels).__name__
        remedy = "map class names to indices in the data set" if isinstance(first, str) else "give a tensor of indices"
    raise ValueError(f"{name} must be integer class indices of shape ({samples},), got {got}; {remedy}")


def check_logits(logits: Tensor, samples: int, remedy: str = "give one logit an image for each class") -> Tensor:
    """Refuse what is no (B, K), and return it.

    Args:
        logits: a model's output.
        samples: images of the batch, B.
        remedy: what to do about it.

    Raises:
        ValueError: if it has another shape.
    """
    if logits.ndim != 2 or len(logits) != samples:
        raise ValueError(f"the model must give logits (B, K) with B = {samples}, got {tuple(logits.shape)}; {remedy}")
    return logits


def check_targets(labels: Any, samples: int, *, values: bool = True) -> Tensor:
    """Refuse labels that the cross-entropy does not take: class indices (B,), or probabilities (B, K).

    Args:
        labels: what a batch holds.
        samples: images of the batch, B.
        values: whether to look at the probabilities, which makes an accelerator wait.

    Returns:
        The labels.

    Raises:
        ValueError: if they are something else.
    """
    soft = isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim == 2 and labels.shape[1] > 1
    if not soft or labels.shape[0] != samples:
        return check_labels(labels, samples)
    out: Tensor = labels
    if values and not bool(((out.sum(1) - 1).abs() < 1e-2).all() & (out >= 0).all()):
        raise ValueError(
            f"soft labels {tuple(out.shape)} must be probabilities that sum to 1 for each image, got "
            f"{float(out.min()):.3g} to {float(out.max()):.3g} with sums of {float(out.sum(1).min()):.3g} to "
            f"{float(out.sum(1).max()):.3g}; for several labels an image pass loss="
        )
    return out


@contextmanager
def model_errors_named(images: Tensor) -> Iterator[None]:
    """Say of a model's first pass, which the body is, what images it was given where it does not take them.

    Raises:
        ValueError: for what torch and the layers' own checks raise (RuntimeError, AssertionError).
        OutOfMemoryError: as it came.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())[:200]
        last = images.ndim == 4 and images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4)
        hint = "their channels seem to be last: permute(0, 3, 1, 2)" if last else "check channels, size and dtype"
        raise ValueError(f"the model does not take {images.dtype} {tuple(images.shape)} ({text}); {hint}") from error


def _remedy(labels: Tensor, samples: int) -> str:
    if labels.ndim != 1 and labels.numel() == samples:
        return "make it one dimension with labels.flatten()"
    if labels.ndim == 0 or labels.shape[0] != samples:
        return "give one label for each image of the batch"
    if labels.ndim == 2:
        ones = (labels.float().sum(1) - 1).abs().amax() < 1e-3
        if bool(ones) and bool(((labels == 0) | (labels == 1)).all()):
            return "turn one-hot labels into indices with labels.long().argmax(1)"
        if bool(ones):
            return "take the mixing of labels (Mixup, CutMix, smoothing) out of the data set or loader"
        return "several labels for an image are not supported here: one class for each image is"
    if labels.ndim == 1 and not labels.is_complex() and bool((labels.float() % 1 == 0).all()):
        return "convert them with labels.long()"
    return "give the index of each image's class, not a value to regress on"


def check_class_range(labels: Tensor, classes: int, start: int | None = 0) -> None:
    """Refuse class indices that a head of `classes` outputs does not have.

    Args:
        labels: class indices, integers (B,).
        classes: number of classes K.
        start: index of the first sample of the batch; None if these are some of many.

    Raises:
        ValueError: naming the first such sample; or if the head has a single output.
    """
    if classes < 2:
        raise ValueError(
            f"the model must give one logit for each of at least 2 classes, got {classes}; give a binary classifier "
            "two outputs, its logit and its negative halved: Linear(D, 2) with weights w / 2 and -w / 2"
        )
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        low, high = int(labels.min()), int(labels.max())
        hint = ""
        if low >= 1 and high == classes:
            hint = "; they seem to count from 1: subtract 1"
        elif int(labels[i]) == -100:
            hint = "; leave unlabeled samples (-100) out of the data"
        raise ValueError(
            f"labels must be in 0..{classes - 1}, the head's classes; "
            f"{'one' if start is None else f'sample {start + i}'} has label {int(labels[i])}{hint}"
        )
