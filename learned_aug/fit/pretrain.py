"""Stage 1: the augmenter learns to mimic the user's baseline augmentation, by a relativistic average GAN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.draw import Augmented
from learned_aug.fit.diagnostics import divergence_named, draw_distance, require_finite, shared_change
from learned_aug.fit.stage import Stage, share_of_noise
from learned_aug.influence.head import HeadTap
from learned_aug.runtime.distributed import all_mean, average_gradients_, world_size
from learned_aug.runtime.numbers import check_at_least, check_at_most_one
from learned_aug.runtime.rng import generator

__all__ = [
    "FeatureDiscriminator",
    "ImageDiscriminator",
    "PretrainConfig",
    "Pretraining",
    "ragan_d_loss",
    "ragan_g_loss",
]

REMEDY = "lower PretrainConfig.lr, or the discriminators'"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of stage 1, in which G learns to mimic the baseline augmentation by a relativistic average GAN (paper).

    No measurement shows a gain, and it takes half of a fit's time: :class:`FitConfig` leaves it out unless asked.
    """

    steps: int = 300
    """Training steps (ours; the paper states none)."""
    batch_size: int = 64
    """Images per step, over all processes (ours)."""
    lr: float = 1e-4
    """Learning rate of Adam for E and G (ours); at 1e-3 G collapses to one warp."""
    lr_image: float = 1e-4
    """Learning rate of Adam for the image discriminator (ours)."""
    lr_feature: float = 1e-3
    """Learning rate of Adam for the feature discriminator, one Linear (ours): slower, and G runs ahead of it."""
    feature_weight: float = 1.0
    """Weight of the feature-space loss beside the image-space loss (paper: both, weight unstated)."""
    diversity_weight: float = 1.0
    """Weight of the terms that keep draws apart and without a shared change (ours; 0 leaves them out)."""
    growth: float = 0.0
    """Share of the steps in which fields="pixel" grow from 4x4 points, in [0, 1] (paper: so, for ImageNet)."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(self, steps=0, batch_size=2, feature_weight=0, diversity_weight=0)
        check_at_least(self, lr=0, lr_image=0, lr_feature=0, growth=0)
        check_at_most_one(self, "growth")


def ragan_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Compute the discriminator's loss: a real sample should look more real than the average fake one, and the reverse.

    -E_r log s(C_r - E C_f) - E_f log(1 - s(C_f - E C_r)), s the sigmoid; ln 4 where it cannot tell them apart. Of
    several processes each gets its share of the loss, of which the mean is wanted; the inner means run over all.

    Args:
        real: logits C of real samples, (B,), or (B, M) of M discriminators.
        fake: logits C of fake samples, (B',) or (B', M).

    Returns:
        A scalar, or (M,).
    """
    real_mean, fake_mean = all_mean(real.mean(0)), all_mean(fake.mean(0))
    return F.softplus(fake_mean - real).mean(0) + F.softplus(fake - real_mean).mean(0)


def ragan_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Compute the generator's loss: :func:`ragan_d_loss` with the roles exchanged."""
    return ragan_d_loss(fake, real)


class ImageDiscriminator(nn.Sequential):
    """Stride-2 convolutions with LeakyReLU 0.2 to one logit per image: (B, C, H, W) to (B, 1).

    It sees a copy of half the side: at full resolution it wins at once, by the blur that any bilinear warp leaves.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        sides = [channels, width, 2 * width, 4 * width]
        layers: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)]
        for a, b in pairwise(sides):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * sides[-1], 1))


class FeatureDiscriminator(nn.Linear):
    """One Linear on the features that enter the head (paper): (B, D) to (B, 1)."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 1)


def growth_level(done: int, config: PretrainConfig, size: int) -> float:
    """Tell how fine the fields are at a step, for :meth:`learned_aug.Augmenter.grown_to`.

    From 4x4 points to those of the training size, doubling: each level is held and then the next one blended in, for as
    many steps (progressive growing, Karras et al. 2018). The last step is always at full resolution.

    Args:
        done: number of steps taken so far.
        config: settings of stage 1, of which `steps` and `growth` are read.
        size: side of the images, pixels.

    Returns:
        log2 of the points along a side; infinite once grown.
    """
    first, levels = 2, math.ceil(math.log2(size)) - 2
    if levels * config.growth * config.steps <= 0:
        return math.inf
    at = levels * (done + 1) / (config.growth * config.steps)
    if at >= levels:
        return math.inf
    whole = math.floor(at)
    return first + whole + max(0.0, 2 * (at - whole) - 1)


class Pretraining(Stage):
    """Stage 1: train E and G, in place, so that their images pass for baseline-augmented ones.

    Two terms of ours keep the draws diverse, since the GAN alone rewards any single plausible warp: a hinge holds two
    draws for one image as far apart as they are at the start (each source image is drawn twice in its batch), and the
    mean over the batch of flow and color change, which all draws share, is drawn to 0.

    With ``config.growth``, full-resolution fields grow from coarse to fine, see :func:`growth_level`.

    Its events are called "pretrain" and hold the losses of the image and the feature discriminator, d_image and
    d_feature, and of G against each, g_image and g_feature (ln 4 = 1.386 at a draw), and warp, the mean distance of
    two draws' flows, a share of the image side.

    Args:
        augmenter: calibrated networks, trained in place.
        tap: open, on the borrowed model.
        sources: endless (images, labels), to be augmented.
        reals: endless (images, labels) with the baseline augmentation, never the raw images.
        config: settings of stage 1.
        seed: seed of the draws and of the discriminators' weights.

    Raises:
        ValueError: if fields that are no full-resolution ones are asked to grow.
    """

    name = "pretrain"

    def __init__(
        self,
        augmenter: Augmenter,
        tap: HeadTap,
        sources: Iterator[tuple[Tensor, Tensor]],
        reals: Iterator[tuple[Tensor, Tensor]],
        config: PretrainConfig,
        *,
        seed: int,
    ) -> None:
        if config.growth and augmenter.config.fields != "pixel":
            raise ValueError(
                f'PretrainConfig.growth needs full-resolution fields, got fields="{augmenter.config.fields}", which do '
                'not grow; use AugmenterConfig(fields="pixel"), or growth=0'
            )
        self.tap, self.sources, self.reals, self.config, self.seed = tap, sources, reals, config, seed
        self.image_critic = ImageDiscriminator(augmenter.config.channels)
        self.feature_critic = FeatureDiscriminator(tap.head.in_features)
        initial = generator(seed, self.name, "discriminators")
        for module in (*self.image_critic, self.feature_critic):
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, 0.2, generator=initial)
                nn.init.zeros_(module.bias)
        self.image_critic.to(augmenter.device)
        self.feature_critic.to(augmenter.device)
        self.weights = torch.tensor([1.0, config.feature_weight], device=augmenter.device)
        # No momentum and a short second moment, as usual for a game whose gradients turn.
        self.d_optimizer = torch.optim.Adam(
            [
                {"params": self.image_critic.parameters(), "lr": config.lr_image},
                {"params": self.feature_critic.parameters(), "lr": config.lr_feature},
            ],
            betas=(0.0, 0.99),
        )
        self.g_optimizer = torch.optim.Adam(augmenter.parameters(), config.lr, betas=(0.0, 0.99))
        super().__init__(
            augmenter,
            config.steps,
            {"image_critic": self.image_critic, "feature_critic": self.feature_critic},
            {"d": self.d_optimizer, "g": self.g_optimizer},
        )

    def judge(self, images: Tensor) -> Tensor:
        """Return the logits of both discriminators, (B, 2)."""
        return torch.cat([self.image_critic(images.float()), self.feature_critic(self.tap(images)[0].float())], dim=1)

    def step(self) -> dict[str, Tensor]:
        """Take a step of the discriminators, then one of E and G."""
        config, augmenter = self.config, self.augmenter
        # A loader's batches may be larger.
        source = next(self.sources)[0][: (config.batch_size + 1) // 2 // world_size()]
        real = next(self.reals)[0][: config.batch_size // world_size()]
        noise = share_of_noise(augmenter, source, generator(self.seed, self.name, self.done), draws=2)
        source = source.repeat(2, 1, 1, 1)
        with divergence_named("pretrain", REMEDY):
            if "spread" not in self.units:  # at full resolution
                with torch.no_grad():
                    self.units["spread"] = all_mean(draw_distance(augmenter.augment(source, noise)))
            with augmenter.grown_to(growth_level(self.done, config, augmenter.config.size)):
                out = augmenter.augment(source, noise)
        spread, start = all_mean(draw_distance(out)), self.units["spread"]

        d_loss = ragan_d_loss(self.judge(real), self.judge(out.images.detach()))
        self.d_optimizer.zero_grad()
        (d_loss * self.weights).sum().backward()
        average_gradients_([*self.image_critic.parameters(), *self.feature_critic.parameters()])
        self.d_optimizer.step()

        with torch.no_grad():
            real_logits = self.judge(real)
        g_loss = ragan_g_loss(real_logits, self.judge(out.images))
        unit = start.clamp_min(1e-12)
        flow, delta = (all_mean(field.mean(0, keepdim=True)) for field in (out.flow, out.delta))
        shared = shared_change(Augmented(out.images, flow, delta))
        collapse = (F.relu(start - spread) / unit + shared / unit.square()).sum()
        loss = (g_loss * self.weights).sum() + config.diversity_weight * collapse
        require_finite(all_mean(loss.detach()), "pretrain", REMEDY)
        self.g_optimizer.zero_grad()
        loss.backward()
        average_gradients_(augmenter.parameters())
        self.g_optimizer.step()
        return {
            "d_image": d_loss[0],
            "d_feature": d_loss[1],
            "g_image": g_loss[0],
            "g_feature": g_loss[1],
            "warp": spread[0] / max(source.shape[-2:]),
        }
