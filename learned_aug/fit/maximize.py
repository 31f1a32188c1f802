"""Stage 3 as the paper has it: E and G move along the influence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from learned_aug.augmenter import Augmenter
from learned_aug.fit.config import MaximizeConfig
from learned_aug.fit.diagnostics import divergence_named, require_finite
from learned_aug.fit.events import OnEvent
from learned_aug.fit.head import HeadTap
from learned_aug.fit.influence import predicted_val_drop
from learned_aug.fit.parallel import all_mean, average_gradients_, world_size
from learned_aug.fit.problem import Head
from learned_aug.fit.rng import generator
from learned_aug.fit.s_val import predicted_influence
from learned_aug.fit.training import FollowingInfluence, share_of_noise

__all__ = ["Maximizing", "maximize"]

REMEDY = "lower MaximizeConfig.lr"


def maximize(
    augmenter: Augmenter,
    tap: HeadTap,
    batches: Iterator[tuple[Tensor, Tensor]],
    head: Head,
    ihvp: Tensor,
    config: MaximizeConfig,
    *,
    seed: int = 0,
    on_event: OnEvent,
) -> None:
    """Train E and G, in place, against a fixed s_val.

    Minimises E[I], the mean influence of replacing an image by its augmented copy (Eq. 18), in units of its standard
    deviation in the first batch. It is linear in the distribution of the copies, so that all draws become alike.

    Args:
        augmenter: pretrained or calibrated; its draws must differ.
        tap: open, on the borrowed model.
        batches: endless (images, labels), as the model is trained on them.
        head: as in :func:`predicted_influence`.
        ihvp: s_val, (K, D + 1).
        config: settings.
        seed: of the draws.
        on_event: gets "maximize" events: predicted_val_drop (Eq. 15, nats, mean over the images replaced one at a time;
            positive is good), cross_entropy (nats) and misclassified (share) of the user's model on the augmented
            images.
    """
    Maximizing(augmenter, tap, batches, head, ihvp, config, seed=seed).run(on_event)


class Maximizing(FollowingInfluence):
    """The state and the step of :func:`maximize`."""

    def step(self) -> dict[str, Tensor]:
        """E and G's."""
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
    """Over all processes, each of which has as many values."""
    count = len(values) * world_size()
    variance = all_mean((values - all_mean(values.mean())).square().mean()) * count / (count - 1)
    return variance.sqrt()
