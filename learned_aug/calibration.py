"""Calibration: random networks whose draws differ by a stated amount."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from learned_aug.config import FAMILIES, UNITS, AugmenterConfig
from learned_aug.draw import Draw
from learned_aug.functional import recolor, shrunk

if TYPE_CHECKING:
    from learned_aug.augmenter import Augmenter

__all__ = ["calibrate"]

CALIBRATION = 2**21  # pixels, at most, of a calibration: dense fields take 200 bytes each and more
PAIRS = 128  # pairs of draws, at least, that a calibration compares


def calibrate(augmenter: Augmenter, images: Tensor, generator: torch.Generator | None) -> None:
    """Center the fields and bring each family to its unit, see :meth:`learned_aug.Augmenter.calibrate_`.

    Raises:
        ValueError: if two draws do not differ, or a unit cannot be reached.
    """
    config = augmenter.config
    images = images[: max(32, CALIBRATION // config.size**2)]
    if images.numel() and float((images - images.mean(dim=(1, 2, 3), keepdim=True)).abs().amax()) < 1e-4:
        raise ValueError(
            "images must differ from pixel to pixel, got constant ones; give typical images that are not constant"
        )
    count = max(PAIRS, images.shape[0])
    side = min(config.size, max(32, math.isqrt(CALIBRATION // (2 * count))))
    images = shrunk(images, side)  # before they are repeated: memory
    images = images.repeat(-(-PAIRS // images.shape[0]), 1, 1, 1)[:count].repeat(2, 1, 1, 1)
    noise = augmenter.draw_noise(images.shape[0], generator=generator, device=images.device)
    draw, units = augmenter.empty_draw((side, side)), noise.new_tensor([UNITS[f] for f in FAMILIES])
    for k, pair in enumerate(augmenter.pairs()):
        generator_net = pair.generator
        code = augmenter.encode(pair, draw.apply(images))
        mask = augmenter.mask(noise[:, k, : config.tau_dim], code.keep)
        raw = generator_net.drawn(code.tau, mask)
        generator_net.center.copy_(raw.mean(0))
        generator_net.gain.fill_(1)
        for family, name in enumerate(FAMILIES):
            alone = torch.zeros_like(units)
            alone[family] = units[family]
            # A fixed point: the spread grows with the gain, at first in proportion, near the bound slowly.
            for _ in range(100):
                fields = generator_net.fields(raw)
                if getattr(fields, name) is None:
                    break
                drawn = augmenter.extend(draw, fields, alone.expand(images.shape[0], -1))
                spread = _spread(config, name, drawn, images)
                if abs(spread / UNITS[name] - 1) < 1e-3:
                    break
                if not 0 < spread < math.inf:
                    raise ValueError(
                        f"two draws must differ in their {name}, got a difference of {spread:.3g}; give images "
                        "that are not constant, and tau_dropout > 0"
                    )
                generator_net.gain[family] *= UNITS[name] / spread
            else:
                raise ValueError(
                    f"the unit of {name}, {UNITS[name]}, cannot be reached, two draws differed by {spread:.3g}; "
                    "give other images, or raise tau_dropout"
                )
        draw = augmenter.extend(draw, generator_net.fields(raw), units.expand(images.shape[0], -1))


def gray_levels(images: Tensor) -> Tensor:
    """Return images of the shape of (B, C, H, W) whose pixels are gray, each of a level uniform in [0, 1].

    The strength of a color filter is how much it changes these. On the user's own images the same strength would be
    another filter for each data set: on dark ones an offset three times as large.
    """
    source = torch.Generator().manual_seed(0)
    levels = torch.rand(images[:1, :1].shape, generator=source, dtype=torch.float32, device="cpu")
    return levels.to(images).expand_as(images)


def _spread(config: AugmenterConfig, family: str, draw: Draw, images: Tensor) -> float:
    """How far the first and the second half of the draws differ, in the unit of the family."""
    if family == "color":
        mean, std = (images.new_tensor(v)[:, None, None] for v in (config.mean, config.std))
        one, two = recolor((gray_levels(images) - mean) / std, cast(Tensor, draw.coarse_color)).chunk(2)
        return float(((one - two) * std).abs().mean())
    one, two = cast(Tensor, draw.flow()).chunk(2)
    scale = (config.size - 1) / (draw.size[0] - 1)  # to pixels of the training size
    return float((one - two).norm(dim=1).mean()) * scale / config.size
