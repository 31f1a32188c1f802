"""The classifier as it stands: a copy with batch norm measured anew, and what it says of augmented images."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from learned_aug.influence.head import HeadTap, collect, find_head
from learned_aug.influence.problem import Head
from learned_aug.influence.s_val import InfluenceConfig, solve_s_val
from learned_aug.influence.scores import influence_up
from learned_aug.runtime.data import Data
from learned_aug.runtime.stream import Stream

__all__ = ["Snapshot", "Snapshots"]

NORMED = 4096  # training images, at most, that batch-norm statistics are measured on


class Snapshot:
    """A copy of the classifier, and the score that draws are chosen or steered by.

    Args:
        tap: open, on the copy.
        label_smoothing: label smoothing of the loss that the classifier is trained with.
        head: the refitted head at which influences are read; None follows the loss.
        ihvp: s_val, (K, D + 1), computed for `head`.
    """

    def __init__(
        self, tap: HeadTap, label_smoothing: float, head: Head | None = None, ihvp: Tensor | None = None
    ) -> None:
        self.tap, self.label_smoothing, self.head, self.ihvp = tap, label_smoothing, head, ihvp

    def score(self, augmented: Tensor, labels: Tensor) -> Tensor:
        """Score augmented images (B, C, H, W) with labels (B,); the highest score is the best draw.

        Returns:
            (B,): the loss; or, with `head`, minus the influence of up-weighting the draw (its image's is fixed).
        """
        features, logits = self.tap(augmented)
        if self.head is None or self.ihvp is None:
            return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        seen = self.head(features.to(self.ihvp.dtype), labels)
        return -influence_up(self.ihvp, seen, self.label_smoothing)


class Snapshots:
    """Takes snapshots of a classifier in training.

    Args:
        model: the classifier in training, never changed here.
        train: (image, label) pairs without augmentation.
        val: the hyper-validation set, for which s_val is solved; None leaves the loss alone to be followed.
        config: settings of s_val; of these, the loss takes the label smoothing alone.
        head: name of the last Linear, by default the last one registered.
    """

    def __init__(
        self, model: nn.Module, train: Data, val: Data | None, config: InfluenceConfig, head: str | None
    ) -> None:
        self.model, self.config, self.head = model, config, head
        read = partial(Stream, use="snapshot", seed=0, batch_size=256, device=find_head(model, head).weight.device)
        self.train, self.val = read(train, "train"), None if val is None else read(val, "val")
        self.normed = read(_shuffled(train), "train")

    @torch.no_grad()
    def take(self) -> Snapshot:
        """Copy the model, measure its batch norm and, to follow the influence, solve for s_val.

        Raises:
            ValueError: if batch norm cannot be measured on the batches of `train`.
        """
        model = copy.deepcopy(self.model)
        self._measure_batch_norm(model)
        model.eval()
        # The copy is ours: there is nothing to give back, and the hook stays as long as it does.
        tap = HeadTap(model, find_head(model, self.head)).__enter__()
        if self.val is None:
            return Snapshot(tap, self.config.label_smoothing)
        train, val = (collect(tap, data.once()) for data in (self.train, self.val))
        head, solution = solve_s_val(train, val, tap.head, self.config)
        return Snapshot(tap, self.config.label_smoothing, head, solution.value)

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
        for images, _ in self.normed.once():
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


def _shuffled(data: Data) -> Data:
    """A data set in a fixed random order, for it may be sorted by class; a loader is taken as it is."""
    if isinstance(data, DataLoader):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return Subset(data, order[:NORMED].tolist())
