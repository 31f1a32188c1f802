"""Stage 3 as the paper has it: E and G move along the influence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from learned_aug.augmenter import Augmenter
from learned_aug.fit.diagnostics import divergence_named, require_finite
from learned_aug.fit.stage import FollowingInfluence, share_of_noise
from learned_aug.influence.head import HeadTap
from learned_aug.influence.problem import Head
from learned_aug.influence.s_val import predicted_influence
from learned_aug.influence.scores import predicted_val_drop
from learned_aug.runtime.distributed import all_mean, average_gradients_, world_size
from learned_aug.runtime.numbers import check_at_least
from learned_aug.runtime.rng import generator

__all__ = ["LinearConfig", "Maximizing"]

REMEDY = "lower LinearConfig.lr"


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Settings of stage 3 as the paper has it: E and G move along the influence.

    That is linear in the distribution of the augmented images, so that its optimum is a single warp for all draws; on
    MNIST it destroyed the labels.
    """

    steps: int = 600
    """Training steps (ours; the paper states none)."""
    batch_size: int = 64
    """Images per step, over all processes (ours)."""
    lr: float = 2e-4
    """Learning rate of Adam (ours); 0, a control, learns nothing."""
    clip: float = 1.0
    """Largest norm of the gradient (ours)."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(self, steps=0, batch_size=2, lr=0, clip=1e-12)


class Maximizing(FollowingInfluence):
    """Stage 3 of the paper: train E and G, in place, against a fixed s_val.

    Minimizes E[I], the mean influence of replacing an image by its augmented copy (Eq. 18), in units of its standard
    deviation in the first batch. It is linear in the distribution of the copies, so that all draws become alike.

    Its events are called "maximize" and hold predicted_val_drop (Eq. 15, nats, mean over the images replaced one at a
    time; positive is good), and cross_entropy (nats) and misclassified (share) of the user's model on the augmented
    images.

    Args:
        augmenter: pretrained or calibrated; its draws must differ.
        tap: open, on the borrowed model.
        batches: endless (images, labels), as the model is trained on them.
        head: the head for which `ihvp` was computed.
        ihvp: s_val, (K, D + 1).
        config: settings of this form of stage 3.
        seed: seed of the draws.
    """

    def __init__(
        self,
        augmenter: Augmenter,
        tap: HeadTap,
        batches: Iterator[tuple[Tensor, Tensor]],
        head: Head,
        ihvp: Tensor,
        config: LinearConfig,
        *,
        seed: int,
    ) -> None:
        self.config = config
        super().__init__(augmenter, tap, batches, head, ihvp, steps=config.steps, lr=config.lr, seed=seed)

    def step(self) -> dict[str, Tensor]:
        """Take a step of E and G along the influence.

        Raises:
            ValueError: if a batch has a single image.
        """
        config, augmenter = self.config, self.augmenter
        images, labels = next(self.batches)
        noise = share_of_noise(augmenter, images, generator(self.seed, self.name, self.done))
        with divergence_named(self.name, REMEDY):
            augmented = augmenter(images, noise)
        influence, logits = predicted_influence(self.tap, self.head, self.ihvp, images, augmented, labels)
        if not self.units:
            if len(images) * world_size() < 2:
                raise ValueError("train must give batches of at least 2 images, got 1; raise the batch size")
            self.units["influence"] = _std(influence.detach()).clamp_min(1e-12)
        loss = influence.mean() / self.units["influence"]
        require_finite(all_mean(loss.detach()), self.name, REMEDY)
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients_(augmenter.parameters())
        torch.nn.utils.clip_grad_norm_(augmenter.parameters(), config.clip)
        self.optimizer.step()
        return {
            "predicted_val_drop": predicted_val_drop(influence.mean(), self.head.n_train),
            "cross_entropy": F.cross_entropy(logits, labels),
            "misclassified": (logits.argmax(1) != labels).float().mean(),
        }


def _std(values: Tensor) -> Tensor:
    """Return the standard deviation over all processes, each of which has as many values."""
    count = len(values) * world_size()
    variance = all_mean((values - all_mean(values.mean())).square().mean()) * count / (count - 1)
    return variance.sqrt()
