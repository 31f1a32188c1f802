"""Draws that follow the classifier as it stands while it is trained: by influence, or by its own loss."""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from learned_aug.augmenter import Augmenter
from learned_aug.fit.config import InfluenceConfig
from learned_aug.fit.data import Batches, Data
from learned_aug.fit.head import HeadTap, collect, find_head
from learned_aug.fit.influence import influence_up, unit_rms
from learned_aug.fit.s_val import at_head, solve_s_val

__all__ = ["DrawChoice", "SteeredDraws"]

NORMED = 4096  # training images, at most, that batch-norm statistics are measured on


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
        self.config = config if config is not None else InfluenceConfig()
        self.head_name = head
        device = find_head(model, head).weight.device
        read = partial(Batches, batch_size=256, device=device)
        self.train, self.val = read(train, "train"), None if val is None else read(val, "val")
        self.normed = read(_shuffled(train), "train")
        self.calls = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Augmented copies of (B, C, H, W) with labels (B,)."""
        if self.calls % self.every == 0:
            self.renew()
        self.calls += 1
        return self.augment(images, labels)

    def augment(self, images: Tensor, labels: Tensor) -> Tensor:
        """By the snapshot as it is."""
        drawn = torch.cat([self.augmenter(images) for _ in range(self.draws)])
        best = self.score(drawn, labels.repeat(self.draws)).view(self.draws, -1).argmax(0)
        return drawn.view(self.draws, *images.shape)[best, torch.arange(len(images), device=images.device)]

    def score(self, augmented: Tensor, labels: Tensor) -> Tensor:
        """What is maximised, (B,): the loss, or minus the influence of up-weighting a draw (its image's is fixed)."""
        features, logits = self.tap(augmented)
        if self.val is None:
            return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.config.label_smoothing)
        features = features.to(self.ihvp.dtype)
        seen = at_head(self.problem, features, labels)
        return -influence_up(self.ihvp, seen, self.config.label_smoothing)

    @torch.no_grad()
    def renew(self) -> None:
        """Take a new snapshot of the model and, to follow the influence, solve for s_val at it."""
        snapshot = copy.deepcopy(self.model)
        self._measure_batch_norm(snapshot)
        snapshot.eval()
        # The snapshot is ours: there is nothing to give back, and the hook stays as long as it does.
        self.tap = HeadTap(snapshot, find_head(snapshot, self.head_name)).__enter__()
        if self.val is None:
            return
        train, val = (collect(self.tap, data) for data in (self.train, self.val))
        self.problem, solution = solve_s_val(train, val, self.tap.head, self.config)
        self.ihvp = solution.value

    def _measure_batch_norm(self, model: nn.Module) -> None:
        # Not those that the user has frozen.
        norms = [
            m
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training and m.track_running_stats
        ]
        if not norms:
            return
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        seen = 0
        for images, _ in self.normed:
            if len(images) > 1:  # one image has no variance
                seen += len(images)
                for norm in norms:
                    norm.momentum = len(images) / seen  # the mean over all of them
                model(images)
            if seen >= NORMED:
                return
        if not seen:
            raise ValueError(
                "train must give batches of 2 images or more to measure batch norm, got 1; raise batch_size"
            )


class SteeredDraws(DrawChoice):
    """Augments each image by a draw from dropout that is tilted to a lower influence or, without `val`, a higher loss.

    :func:`learned_aug.fit.learn_dropout` without the learning: the logits of keeping the units of tau are those of the
    augmenter plus `tilt` sqrt(tau_dim) times the direction of the influence's gradient with respect to the mask, from
    one backward pass. So it depends on nothing that E would have to generalise, at the cost, on each call, of a forward
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
            score = self.score(self.augmenter.trace(images, masks=masks).draw.apply(images), labels)
            (gradient,) = torch.autograd.grad(score.sum(), masks)
        return unit_rms(gradient)

    def _noise(self, images: Tensor) -> Tensor:
        return self.augmenter.draw_noise(len(images), device=images.device)


def _shuffled(data: Data) -> Data:
    """A data set in a fixed random order, for it may be sorted by class; a loader is taken as it is."""
    if isinstance(data, DataLoader):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return Subset(data, order[:NORMED].tolist())
