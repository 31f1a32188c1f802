"""Ready-made arms of a comparison: what people would pick, each as its authors use it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from learned_aug.training.choice import DrawChoice
from learned_aug.training.steer import SteeredDraws

__all__ = ["ARMS", "Arm", "each"]

Arm = Callable[[nn.Module], Callable[[Tensor], Tensor] | SteeredDraws | DrawChoice | None]


def each(policy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Make a policy for single images one for batches, in which every image gets a draw of its own.

    A policy of torchvision that is given a batch applies one operation to all of it.

    Args:
        policy: from an image (C, H, W) in uint8 to one of the same shape.

    Returns:
        A function of images (B, C, H, W) with values in [0, 1].
    """

    def augment(images: Tensor) -> Tensor:
        pixels = tv.to_dtype(images.clamp(0, 1), torch.uint8, scale=True)
        drawn = torch.stack([policy(image) for image in pixels])
        out: Tensor = tv.to_dtype(drawn, images.dtype, scale=True)
        return out

    return augment


ARMS: dict[str, Arm] = {
    "baseline": lambda model: None,
    "TrivialAugmentWide": lambda model: each(v2.TrivialAugmentWide()),
    "prior": lambda model: SteeredDraws(model, tilt=0),
    "steered": lambda model: SteeredDraws(model),
}
