"""Stage 1: the augmenter learns to mimic the user's baseline augmentation, by a relativistic average GAN."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.fit.config import PretrainConfig
from learned_aug.fit.diagnostics import divergence_named, draw_distance, require_finite, shared_change
from learned_aug.fit.events import Event, OnEvent
from learned_aug.fit.head import HeadTap

__all__ = ["FeatureDiscriminator", "ImageDiscriminator", "pretrain", "ragan_d_loss", "ragan_g_loss"]

REMEDY = "lower PretrainConfig.lr, or the discriminators'"


def ragan_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss: a real sample should look more real than the average fake one, and the reverse.

    -E_r log s(C_r - E C_f) - E_f log(1 - s(C_f - E C_r)), s the sigmoid; ln 4 where it cannot tell them apart.

    Args:
        real: logits C of real samples, (B,), or (B, M) of M discriminators.
        fake: logits C of fake samples, (B',) or (B', M).

    Returns:
        A scalar, or (M,).
    """
    return F.softplus(fake.mean(0) - real).mean(0) + F.softplus(fake - real.mean(0)).mean(0)


def ragan_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Generator's loss: :func:`ragan_d_loss` with the roles exchanged."""
    return ragan_d_loss(fake, real)


class ImageDiscriminator(nn.Sequential):
    """Stride-2 convolutions with LeakyReLU .2 to one logit per image: (B, C, H, W) to (B, 1).

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


def pretrain(
    augmenter: Augmenter,
    tap: HeadTap,
    sources: Iterator[tuple[Tensor, Tensor]],
    reals: Iterator[tuple[Tensor, Tensor]],
    config: PretrainConfig,
    *,
    generator: torch.Generator,
    on_event: OnEvent,
) -> None:
    """Train E and G, in place, so that their images pass for baseline-augmented ones.

    Two terms of ours keep the draws diverse, since the GAN alone rewards any single plausible warp: a hinge holds two
    draws for one image as far apart as they are at the start (each source image is drawn twice in its batch), and the
    mean over the batch of flow and colour change, which all draws share, is drawn to 0.

    Args:
        augmenter: calibrated.
        tap: open, on the borrowed model.
        sources: endless (images, labels), to be augmented.
        reals: endless (images, labels) with the baseline augmentation, never the raw images.
        config: settings.
        generator: for the masks and the discriminators' weights.
        on_event: gets "pretrain" events: the losses of the image and the feature discriminator, d_image and d_feature,
            and of G against each, g_image and g_feature (ln 4 = 1.386 at a draw), and spread_px, the mean distance of
            two draws' flows in pixels.
    """
    if not config.steps:
        return
    real = next(reals)[0][: config.batch_size]
    image_critic, feature_critic = ImageDiscriminator(real.shape[1]), FeatureDiscriminator(tap.head.in_features)
    for module in (*image_critic, feature_critic):
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, 0.2, generator=generator)
            nn.init.zeros_(module.bias)
    image_critic.to(real.device)
    feature_critic.to(real.device)
    weights = torch.tensor([1.0, config.feature_weight], device=real.device)

    def judge(images: Tensor) -> Tensor:
        return torch.cat([image_critic(images.float()), feature_critic(tap(images)[0].float())], dim=1)

    # No momentum and a short second moment, as usual for a game whose gradients turn.
    d_optimizer = torch.optim.Adam(
        [
            {"params": image_critic.parameters(), "lr": config.lr_image},
            {"params": feature_critic.parameters(), "lr": config.lr_feature},
        ],
        betas=(0.0, 0.99),
    )
    g_optimizer = torch.optim.Adam(augmenter.parameters(), config.lr, betas=(0.0, 0.99))
    start: Tensor | None = None
    augmenter.requires_grad_(True)
    try:
        for step in range(config.steps):
            source = next(sources)[0][: (config.batch_size + 1) // 2]
            with divergence_named("pretrain", REMEDY):
                out = augmenter.augment(source.repeat(2, 1, 1, 1), generator=generator)
            spread = draw_distance(out)
            start = spread.detach() if start is None else start

            real_logits, fake_logits = judge(real), judge(out.images.detach())
            d_loss = ragan_d_loss(real_logits, fake_logits)
            d_optimizer.zero_grad()
            (d_loss * weights).sum().backward()
            d_optimizer.step()

            with torch.no_grad():
                real_logits = judge(real)
            g_loss = ragan_g_loss(real_logits, judge(out.images))
            unit = start.clamp_min(1e-12)
            collapse = (F.relu(start - spread) / unit + shared_change(out) / unit.square()).sum()
            loss = (g_loss * weights).sum() + config.diversity_weight * collapse
            require_finite(loss, "pretrain", REMEDY)
            g_optimizer.zero_grad()
            loss.backward()
            g_optimizer.step()

            real = next(reals)[0][: config.batch_size]
            values = torch.cat([d_loss.detach(), g_loss.detach(), spread.detach()[:1]]).tolist()
            names = ("d_image", "d_feature", "g_image", "g_feature", "spread_px")
            on_event(Event("pretrain", step + 1, config.steps, dict(zip(names, values, strict=True))))
    finally:
        augmenter.zero_grad()
        augmenter.requires_grad_(False)
