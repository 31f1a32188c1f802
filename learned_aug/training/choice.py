"""DrawChoice: the best of a few draws, judged by the classifier as it stands while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.data import Data

__all__ = ["DrawChoice"]


class DrawChoice:
    """Augments each image by the best of `draws` fresh draws: the one whose influence predicts the lowest loss.

    Moving E and G along the influence ends in one warp for all, because the influence is linear in the distribution q
    of the draws. The form that keeps them diverse, min_q E_q[I] + beta KL(q || prior), has the answer
    q ~ prior exp(-I / beta); the best of a few draws from the prior is its hard limit.

    Influences are read from a snapshot of the classifier, renewed every `every` calls: batch-norm statistics measured
    anew (those of a classifier in training lag behind), head refitted, s_val solved. A call is a forward pass for each
    draw. A renewal is a pass over at most 4,096 images of `train` for batch norm, if there is any, and over all of
    `train` and `val` for s_val: for large sets raise `every`.

    Args:
        augmenter: the prior; calibrated or fitted.
        model: the classifier in training, never changed here.
        train: (image, label) pairs without augmentation.
        val: the hyper-validation set; errors on it are no longer honest, for the choice follows it. None takes the
            highest loss of the snapshot in place of the lowest influence: the hardest draw.
        draws: for each image, at least 1.
        every: calls between two snapshots.
        config: of s_val; of it, the loss takes the label smoothing alone.
        head: name of the last Linear, by default the last one registered.

    Raises:
        ValueError: if a setting is out of range, or batch norm cannot be measured on the batches of `train`.
    """

    def __init__(
        self,
        augmenter: Augmenter,
        model: nn.Module,
        train: Data,
        val: Data | None,
        *,
        draws: int = 2,
        every: int = 100,
        config: InfluenceConfig | None = None,
        head: str | None = None,
    ) -> None:
        for name, value in (("draws", draws), ("every", every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.augmenter, self.model, self.draws, self.every = augmenter, model, draws, every
        self.snapshots = Snapshots(model, train, val, config if config is not None else InfluenceConfig(), head)
        self.calls = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Augment (B, C, H, W) with labels (B,), after a new snapshot if one is due."""
        if self.calls % self.every == 0:
            self.renew()
        self.calls += 1
        return self.augment(images, labels)

    def renew(self) -> None:
        """Take a new snapshot of the model."""
        self.snapshot = self.snapshots.take()

    def augment(self, images: Tensor, labels: Tensor) -> Tensor:
        """Augment (B, C, H, W) with labels (B,) by the snapshot as it is."""
        drawn = torch.cat([self.augmenter(images) for _ in range(self.draws)])
        best = self.snapshot.score(drawn, labels.repeat(self.draws)).view(self.draws, -1).argmax(0)
        return drawn.view(self.draws, *images.shape)[best, torch.arange(len(images), device=images.device)]
