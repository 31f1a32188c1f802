"""The judge of a fit: half of the validation set, from which the fit learns nothing, says which networks are better.

Its images are dealt into folds, each with an s_val of its own, so that the spread of what the folds predict shows how
far the prediction depends on the validation images at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from learned_aug.influence.head import HeadBatch

__all__ = ["FOLDS", "Estimate", "deal", "estimate", "halves"]

FOLDS = 8
GOLDEN = (math.sqrt(5) - 1) / 2
T_95 = 2.365  # two-sided 95 % quantile of Student's t with FOLDS - 1 degrees of freedom


class Estimate(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    margin: float
    """Half of the interval's width; infinite without folds."""

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return 0 if abs(self.mean) <= self.margin or math.isnan(self.mean) else 1 if self.mean > 0 else -1


def halves(val: HeadBatch, start: int = 0) -> tuple[HeadBatch, list[HeadBatch]]:
    """Split a validation set into what the fit learns from, and the folds of its judge.

    Multiples of the golden ratio deal the images, so that a set is split evenly whether it is sorted by class or goes
    through the classes in turn.

    Args:
        val: features and labels, of this process.
        start: index of its first image among those of all processes.

    Returns:
        One half, and the other in ``FOLDS`` parts; all of it and no part where a part would have fewer than two images.
    """
    part = _places(val, 2 * FOLDS, start)
    folds = _dealt(val, part, range(1, 2 * FOLDS, 2))
    if min(len(fold.labels) for fold in folds) < 2:
        return val, []
    return HeadBatch(*(rows[part % 2 == 0] for rows in val)), folds


def deal(val: HeadBatch) -> list[HeadBatch]:
    """Deal a whole validation set into ``FOLDS`` parts of about equal size, fewer for few images, and none empty."""
    parts = _dealt(val, _places(val, FOLDS, 0), range(FOLDS))
    return [part for part in parts if len(part.labels)]


def _places(val: HeadBatch, parts: int, start: int) -> Tensor:
    index = torch.arange(start, start + len(val.labels), dtype=torch.float64, device="cpu")
    return (parts * (index * GOLDEN % 1)).long().to(val.labels.device)


def _dealt(val: HeadBatch, places: Tensor, parts: Iterable[int]) -> list[HeadBatch]:
    return [HeadBatch(*(rows[places == k] for rows in val)) for k in parts]


def estimate(drops: Tensor) -> Estimate:
    """Estimate the mean of predicted falls of the validation loss, with an interval over images and validation images.

    Args:
        drops: (folds, N), nats, by fold of the judge and training image.
    """
    mean = float(drops.mean())
    if drops.shape[0] < 2 or drops.shape[1] < 2:
        return Estimate(mean, math.inf)
    over_images = float(drops.mean(0).var()) / drops.shape[1]
    over_folds = float(drops.mean(1).var()) / drops.shape[0]
    return Estimate(mean, T_95 * math.sqrt(over_images + over_folds))
