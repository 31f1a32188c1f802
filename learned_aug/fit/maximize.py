"""Stage 3: E and G learn to make images that lower the validation loss, as the influence predicts it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from learned_aug.augmenter import Augmented, Augmenter
from learned_aug.fit.config import MaximizeConfig
from learned_aug.fit.diagnostics import divergence_named, draw_distance, require_finite
from learned_aug.fit.events import OnEvent
from learned_aug.fit.head import HeadTap
from learned_aug.fit.influence import predicted_val_drop
from learned_aug.fit.parallel import all_mean, average_gradients_, world_size
from learned_aug.fit.problem import HeadProblem
from learned_aug.fit.rng import generator
from learned_aug.fit.s_val import predicted_influence
from learned_aug.fit.training import Training, share_of_noise

__all__ = ["Maximizing", "maximize"]

REMEDY = "lower MaximizeConfig.lr"


def maximize(
    augmenter: Augmenter,
    tap: HeadTap,
    batches: Iterator[tuple[Tensor, Tensor]],
    head: HeadProblem,
    ihvp: Tensor,
    config: MaximizeConfig,
    *,
    seed: int = 0,
    on_event: OnEvent,
) -> None:
    """Train E and G, in place, against a fixed s_val.

    Minimises E[I] / std(I) + label_weight E[hinge] + trust_weight distance. I is the influence of replacing an image by
    its augmented copy (Eq. 18), its std that of the first batch. hinge = max(0, CE - label_margin) keeps the user's
    model sure of the label. distance, to the E and G of the start under the same noise, keeps the warps from running
    off together: I is linear in the distribution of the images, so that alone it would make all draws alike.

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
            images, and moved, the distance of the trust term.
    """
    Maximizing(augmenter, tap, batches, head, ihvp, config, seed=seed).run(on_event)


class Maximizing(Training):
    """The state and the step of :func:`maximize`."""

    name = "maximize"

    def __init__(
        self,
        augmenter: Augmenter,
        tap: HeadTap,
        batches: Iterator[tuple[Tensor, Tensor]],
        head: HeadProblem,
        ihvp: Tensor,
        config: MaximizeConfig,
        *,
        seed: int,
    ) -> None:
        self.tap, self.batches, self.head, self.ihvp, self.config, self.seed = tap, batches, head, ihvp, config, seed
        self.start = copy.deepcopy(augmenter)
        self.optimizer = torch.optim.Adam(augmenter.parameters(), config.lr)
        super().__init__(augmenter, config.steps, {}, {"adam": self.optimizer})

    def step(self) -> dict[str, Tensor]:
        """E and G's."""
        config, augmenter = self.config, self.augmenter
        images, labels = next(self.batches)
        draws = generator(self.seed, self.name, self.done)
        noise = share_of_noise(augmenter, images, draws)
        with divergence_named("maximize", REMEDY):
            out = augmenter.augment(images, noise)
        anchor = self.start.augment(images, noise)
        influence, logits = predicted_influence(self.tap, self.head, self.ihvp, images, out.images, labels)
        if not self.units:
            if len(images) * world_size() < 2:
                raise ValueError("train must give batches of at least 2 images, got 1; raise the batch size")
            other = self.start.augment(images, share_of_noise(augmenter, images, draws))
            both = Augmented(*(torch.cat(pair) for pair in zip(anchor, other, strict=True)))
            self.units["influence"] = _std(influence.detach()).clamp_min(1e-12)
            self.units["spread"] = all_mean(draw_distance(both)).clamp_min(1e-12)
        moved = _distance(out, anchor, self.units["spread"])
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        hinge = F.relu(cross_entropy - config.label_margin)
        gain = influence.mean() / self.units["influence"]
        loss = gain + config.label_weight * hinge.mean() + config.trust_weight * moved
        require_finite(all_mean(loss.detach()), "maximize", REMEDY)
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients_(augmenter.parameters())
        torch.nn.utils.clip_grad_norm_(augmenter.parameters(), config.clip)
        self.optimizer.step()
        return {
            "predicted_val_drop": predicted_val_drop(influence.mean(), self.head.n_train),
            "cross_entropy": cross_entropy.mean(),
            "misclassified": (logits.argmax(1) != labels).float().mean(),
            "moved": moved,
        }


def _std(values: Tensor) -> Tensor:
    """Over all processes, each of which has as many values."""
    count = len(values) * world_size()
    variance = all_mean((values - all_mean(values.mean())).square().mean()) * count / (count - 1)
    return variance.sqrt()


def _distance(out: Augmented, anchor: Augmented, spread: Tensor) -> Tensor:
    """Mean squared distance of the flows and of the colours, each in units of the start's spread."""
    flow = (out.flow - anchor.flow).square().sum(1).mean() / spread[0].square()
    color = (out.delta - anchor.delta).square().mean() / spread[1].square()
    return flow + color
