"""Augmentations of batches in one form: what users pass is called on a batch, image by image where it must be.

An augmentation takes a batch of images, or images and labels, and returns images, or images with soft labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from learned_aug.config import AugmenterConfig
from learned_aug.influence.head import borrowed
from learned_aug.influence.layer import first_tensor
from learned_aug.runtime.checks import SLACK, warn_if_plain

__all__ = ["Augment", "Chain", "Cutout", "Mixing", "applied", "batched", "check_units", "each", "parts", "same"]

Augment = Callable[..., Any]
"""From images (B, C, H, W), or images and labels, to images of that shape, or images and labels."""
MIXES = (v2.MixUp, v2.CutMix)


def each(
    policy: Callable[[Tensor], Tensor],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Make a policy for single images one for batches, in which every image gets a draw of its own.

    A policy of torchvision that is given a batch applies one operation to all of it.

    Args:
        policy: from an image (C, H, W) in uint8 to one of the same shape, in uint8, or floating with values in [0, 1].
        mean: mean of the images' normalization (x - mean) / std, a number or one per channel; None for [0, 1].
        std: standard deviation of that normalization.

    Returns:
        A function of images (B, C, H, W), floating, which refuses a first batch that is not in the stated range.
    """
    return _Each(policy, mean, std)


class _Each:
    """What :func:`each` gives, a class so that it can be pickled."""

    _in_range = False  # whether a batch was, and so the data set is

    def __init__(self, policy: Callable[[Tensor], Tensor], mean: Any, std: Any) -> None:
        self.policy, self.mean, self.std = policy, mean, std

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, which what was seen so far is none of."""
        return {"policy": self.policy, "mean": self.mean, "std": self.std}

    def __call__(self, images: Tensor) -> Tensor:
        dtype = torch.promote_types(images.dtype, torch.float32)  # half precision would round white up, to black
        shift, scale = (_column(v, x, images.device, dtype) for v, x in ((self.mean, 0.0), (self.std, 1.0)))
        if {shift.numel(), scale.numel()} - {1, images.shape[1]} or not bool((scale > 0).all()):
            raise ValueError(
                f"mean and std must be 1 or {images.shape[1]} numbers, std above 0, got {self.mean} and {self.std}"
            )
        values = images * scale + shift
        if not self._in_range and len(values):
            low, high = (float(value) for value in values.aminmax())
            if not -SLACK <= low <= high <= 1 + SLACK:
                raise ValueError(
                    f"images must be in [0, 1] for a policy after their normalization is undone, got {low:.3g} to "
                    f"{high:.3g}; state their normalization, mean= and std=, where the policy is named, or as "
                    "learned_aug.training.each(policy, mean=, std=)"
                )
            warn_if_plain(images, shift)
            self._in_range = True
        pixels = tv.to_dtype(values.clamp(0, 1), torch.uint8, scale=True)
        out = torch.stack([tv.to_dtype(self._drawn(image), dtype, scale=True) for image in pixels])
        return ((out - shift) / scale).to(images.dtype)

    def _drawn(self, image: Tensor) -> Tensor:
        try:
            drawn = self.policy(image)
        except (TypeError, ValueError) as error:
            if "float" not in str(error):
                raise
            raise ValueError(
                f"a policy gets images in uint8, which this one does not take ({error}); put v2.ToDtype(torch.float32, "
                "scale=True) before it, and leave Normalize to mean= and std="
            ) from error
        if drawn.is_floating_point() and not bool(((drawn >= -SLACK) & (drawn <= 1 + SLACK)).all()):
            low, high = map(float, drawn.aminmax())
            raise ValueError(
                f"a policy must leave floating images in [0, 1], got {low:.3g} to {high:.3g}; leave Normalize to mean= "
                "and std="
            )
        return drawn


def _column(values: Any, default: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(default if values is None else values, dtype=dtype, device=device).view(-1, 1, 1)


class Cutout:
    """Covers a square of each image, its center anywhere, so that a part of it may lie outside (DeVries and Taylor).

    The square takes the mean of the batch, by channel, which is what the authors' 0 is after their normalization.

    Args:
        share: side of the square as a share of the image's; the authors' 16 pixels of CIFAR-10's 32 by default.
    """

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def __call__(self, images: Tensor) -> Tensor:
        """Return covered copies of (B, C, H, W), drawn from torch's global generator."""
        count, _, *sides = images.shape
        inside = []
        for axis, side in enumerate(sides):
            center = torch.randint(side, (count, 1), device=images.device)
            half = self.share * side / 2
            place = torch.arange(side, device=images.device) - center
            covered = (place >= -half) & (place < half)
            inside.append(covered[:, None, :, None] if axis == 0 else covered[:, None, None, :])
        return torch.where(inside[0] & inside[1], images.mean((0, 2, 3), keepdim=True), images)


class Mixing:
    """Mixup or CutMix of torchvision, which learns the number of classes from the classifier at its first batch.

    One share is drawn for a batch, as the authors of both do.

    Args:
        model: the classifier in training.
        mix: ``v2.MixUp`` or ``v2.CutMix``.
        alpha: of the Beta distribution of the share.
        p: probability that a batch is mixed.
    """

    def __init__(self, model: nn.Module, mix: type[Any], *, alpha: float = 1.0, p: float = 1.0) -> None:
        self.model, self.mix, self.alpha, self.p = model, mix, alpha, p
        self.mixed: Any = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images (B, C, H, W) and soft labels (B, K)."""
        if self.mixed is None:
            with torch.no_grad(), borrowed(self.model):
                classes = first_tensor(self.model(images[:2])).shape[1]
            self.mixed = self.mix(alpha=self.alpha, num_classes=classes)
        if float(torch.rand(())) >= self.p:
            return images, labels
        out: tuple[Tensor, Tensor] = self.mixed(images, labels)
        return out


class Chain:
    """One augmentation after the other.

    Args:
        stages: augmentations of batches, the first one first.
    """

    def __init__(self, *stages: Augment) -> None:
        self.stages = [batched(stage) for stage in stages]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch as the last stage leaves it."""
        for stage in self.stages:
            images, labels = applied(stage, images, labels)
        return images, labels


def parts(augment: Augment | None) -> list[Augment]:
    """Return the stages of a chain, or the augmentation alone."""
    if isinstance(augment, Chain):
        return [part for stage in augment.stages for part in parts(stage)]
    return [] if augment is None else [augment]


def batched(augment: Augment, *, mean: Any = None, std: Any = None) -> Augment:
    """Return an augmentation of batches: a transform of torchvision is drawn for each image, all else is left alone.

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(augment) or isinstance(augment, type):
        got = getattr(augment, "__name__", type(augment).__name__)
        raise TypeError(
            f"an augmentation must be a function of batches, an Augmenter or a transform, got {got}; names of arms are "
            "for compare"
        )
    transform = isinstance(augment, v2.Transform) or type(augment).__module__.startswith("torchvision.transforms")
    if not transform or isinstance(augment, MIXES) or type(augment).__module__.startswith("learned_aug"):
        return augment
    return each(augment, mean=mean, std=std)


def check_units(config: AugmenterConfig, mean: Any, std: Any) -> None:
    """Refuse a normalization that is not that of the given augmenter.

    Raises:
        ValueError: with both.
    """
    for name, given, own in (("mean", mean, config.mean), ("std", std, config.std)):
        if given is None:
            continue
        one, two = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (given, own))
        if len({len(one), len(two), 1}) > 2 or not torch.allclose(one, two, rtol=0, atol=1e-3):
            raise ValueError(
                f"{name} must be that of the augmenter's images, {own}, got {given}; fit an augmenter to images of "
                "this normalization, or leave it out for a prior"
            )


def applied(augment: Augment, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Apply an augmentation of batches, and check what it returns.

    Args:
        augment: one that :func:`batched` returned; it gets the labels if it needs two arguments.
        images: (B, C, H, W), floating.
        labels: class indices (B,), or soft labels (B, K).

    Returns:
        Images of the same shape, and the labels, or soft labels (B, K).

    Raises:
        ValueError: if shapes, dtypes or labels do not fit.
    """
    out = augment(images, labels) if _sees_labels(augment) else augment(images)
    drawn, given = out if isinstance(out, tuple) and len(out) == 2 else (out, labels)
    if not isinstance(drawn, Tensor) or drawn.shape != images.shape:
        got = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        raise ValueError(
            f"augment must return batches of the shape that it gets, {tuple(images.shape)}, got {got}; resize or crop "
            "in the data set"
        )
    if not drawn.is_floating_point():
        raise ValueError(
            f"augment must return floating images, as it gets, got {drawn.dtype}; end it with "
            "v2.ToDtype(torch.float32, scale=True)"
        )
    if given is not labels:
        _check_labels(given, labels)
    return drawn, given


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are of one shape and hold the same values, NaN in the same places among them."""
    if one.shape != two.shape:
        return False
    return bool(((one == two) | (one.isnan() & two.isnan())).all())


def _check_labels(given: Any, labels: Tensor) -> None:
    what = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
    if isinstance(given, Tensor) and same(given, labels):
        return
    soft = isinstance(given, Tensor) and given.is_floating_point() and given.ndim == 2 and len(given) == len(labels)
    if not soft or not bool(((given.sum(1) - 1).abs() < 1e-2).all()):
        raise ValueError(
            f"augment must return the labels that it gets, or soft labels ({len(labels)}, classes) that sum to 1, got "
            f"other ones, {what}; return the images alone, or mix one-hot labels as the images are mixed"
        )


def _sees_labels(augment: Augment) -> bool:
    """Whether an augmentation takes the labels: it needs two arguments, or mixes images."""
    if isinstance(augment, MIXES):
        return True
    function = augment.forward if isinstance(augment, nn.Module) else augment
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a built-in
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in given) >= 2
