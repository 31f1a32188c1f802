"""SteeredDraws: draws that are tilted, image by image, by one gradient of the classifier as it stands."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.influence.scores import unit_rms
from learned_aug.runtime.data import Data
from learned_aug.training.choice import DrawChoice

__all__ = ["SteeredDraws"]


class SteeredDraws(DrawChoice):
    """Augments each image by a draw from dropout that is tilted to a lower influence or, without `val`, a higher loss.

    Stage 3 of the fit without the learning: the logits of keeping the units of tau are those of the
    augmenter plus `tilt` sqrt(tau_dim) times the direction of the influence's gradient with respect to the mask, from
    one backward pass. So it depends on nothing that E would have to generalize, at the cost, on each call, of a forward
    and a backward pass through the snapshot for each of `draws`.

    Args:
        augmenter: the prior, with ``tau_dropout > 0``.
        model: as of :class:`DrawChoice`, like the arguments that are not listed here.
        train: as there.
        val: as there: None steers to a higher loss.
        tilt: root mean square of the logits that are added; 0 draws from the augmenter as it is.
        draws: for each image, at which gradients are taken, scaled to length 1 and averaged.
        every: calls between two snapshots.
        config: of s_val.
        head: name of the last Linear.
    """

    def __init__(
        self,
        augmenter: Augmenter,
        model: nn.Module,
        train: Data,
        val: Data | None,
        *,
        tilt: float = 3.0,
        draws: int = 1,
        every: int = 100,
        config: InfluenceConfig | None = None,
        head: str | None = None,
    ) -> None:
        super().__init__(augmenter, model, train, val, draws=draws, every=every, config=config, head=head)
        if not augmenter.config.tau_dropout:
            raise ValueError("augmenter must have tau_dropout > 0 to be steered by, got 0; change its config")
        if not math.isfinite(tilt):
            raise ValueError(f"tilt must be finite, got {tilt}")
        self.tilt = tilt

    def augment(self, images: Tensor, labels: Tensor) -> Tensor:
        """By the snapshot as it is."""
        steer = torch.zeros((), device=images.device)
        for _ in range(self.draws):
            prior = self.augmenter.trace(images, self._noise(images))
            steer = steer + self.direction(images, labels, prior.masks)
        logits = self.tilt * unit_rms(steer) + (0 if prior.logits is None else prior.logits)
        masks = self.augmenter.strike(self._noise(images), logits)
        return self.augmenter.trace(images, masks=masks).draw.apply(images)

    def direction(self, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """In which the score rises at these masks, (B, stages, tau_dim), of root mean square 1."""
        masks = masks.detach().requires_grad_()
        with torch.enable_grad():
            score = self.snapshot.score(self.augmenter.trace(images, masks=masks).draw.apply(images), labels)
            (gradient,) = torch.autograd.grad(score.sum(), masks)
        return unit_rms(gradient)

    def _noise(self, images: Tensor) -> Tensor:
        return self.augmenter.draw_noise(len(images), device=images.device)
