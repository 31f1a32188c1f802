"""The prior: random networks of random strength, calibrated on images of the user."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learned_aug.augmenter import Augmenter
from learned_aug.config import SMALLEST, AugmenterConfig
from learned_aug.runtime.checks import check_images, check_range
from learned_aug.runtime.distributed import broadcast_
from learned_aug.runtime.numbers import check_seed, numbers
from learned_aug.runtime.rng import generator

__all__ = ["prior"]


@torch.inference_mode(False)
def prior(
    images: Tensor,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
    config: AugmenterConfig | None = None,
) -> Augmenter:
    """Make the prior: random networks of random strength, calibrated on some images, the same in all processes.

    Draws nothing from global generators.

    Args:
        images: (B, C, H, W), floating, some typical ones; of few each is drawn more often.
        mean: mean of their normalization, a number or one per channel; None for images in [0, 1].
        std: standard deviation of their normalization.
        seed: seed of the networks.
        config: settings of the networks in place of the default ones, `mean` and `std` among them.

    Raises:
        TypeError: if the images are no floating tensor.
        ValueError: if they are not in the value range that is stated, constant, or none.
    """
    if not check_images(images).shape[0]:
        raise ValueError("images must hold at least one image, got an empty batch; give some typical ones")
    if config is None:
        if max(images.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"images must have a side of {SMALLEST} pixels or more, got {tuple(images.shape)}; resize them"
            )
        shift, scale = numbers(mean, 0.0), numbers(std, 1.0)
        config = AugmenterConfig(channels=images.shape[1], size=max(images.shape[-2:]), mean=shift, std=scale)
    elif mean is not None or std is not None:
        raise ValueError("mean and std must be None beside config=, which states them, got both; set them there")
    check_range(images, config.mean, config.std)
    draws = generator(check_seed(seed), "prior")
    with torch.device("cpu"):  # where the generator is, whatever the default device
        augmenter = Augmenter(config, generator=draws)
    augmenter.to(images.device).calibrate_(images.float(), generator=draws)
    broadcast_(*augmenter.state_dict().values())
    return augmenter
