"""DrawChoice: the best of a few draws, judged by the classifier as it stands while it is trained."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.data import Data
from learned_aug.training.reader import Loss, Reader

__all__ = ["DrawChoice"]


class DrawChoice:
    """Augments each image by the best of `draws` fresh draws: the one whose influence predicts the lowest loss.

    Moving E and G along the influence ends in one warp for all, because the influence is linear in the distribution q
    of the draws. The form that keeps them diverse, min_q E_q[I] + beta KL(q || prior), has the answer
    q ~ prior exp(-I / beta); the best of a few draws from the prior is its hard limit.

    The classifier is read in eval mode, as it stands. s_val is solved anew every `every` calls, which reads all of
    `train` and `val`: for large sets raise it. A call is a forward pass for each draw.

    Args:
        model: the classifier in training.
        augmenter: the networks to draw from, such as those of :func:`learned_aug.prior`.
        by: "influence", which needs both data sets; or "loss", the hardest draw.
        train: (image, label) pairs without augmentation, for "influence".
        val: the hyper-validation set, for "influence"; errors on it are no longer honest, for the choice follows it.
        draws: candidates for each image, at least 1.
        every: calls between two solutions of s_val.
        loss: from the model's output and the labels to one loss per sample, (B,); by default the cross-entropy.
        config: settings of s_val.
        head: name of the last Linear, by default the last one registered.

    Raises:
        ValueError: if a setting is out of range, or data are missing.
    """

    def __init__(
        self,
        model: nn.Module,
        augmenter: Augmenter,
        *,
        by: Literal["loss", "influence"] = "influence",
        train: Data | None = None,
        val: Data | None = None,
        draws: int = 2,
        every: int = 100,
        loss: Loss | None = None,
        config: InfluenceConfig | None = None,
        head: str | None = None,
    ) -> None:
        for name, value in (("draws", draws), ("every", every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.model, self.augmenter, self.draws, self.every = model, augmenter, draws, every
        self.reader = Reader(model, by=by, loss=loss, train=train, val=val, config=config, head=head)
        self.calls = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return augmented copies of (B, C, H, W) with labels (B,), the best of the draws for each."""
        if self.calls % self.every == 0:
            self.reader.renew()
        self.calls += 1
        drawn = torch.stack([self.augmenter(images) for _ in range(self.draws)])
        best = self.score(drawn.flatten(0, 1), labels.repeat(self.draws)).view(self.draws, -1).argmax(0)
        return drawn[best, torch.arange(images.shape[0], device=images.device)]

    def score(self, drawn: Tensor, labels: Tensor) -> Tensor:
        """Score draws (B, C, H, W) with labels (B,); the highest score is taken. Made to be overridden."""
        return self.reader.score(drawn, labels)[0]
