"""Controls: of `DrawChoice`, the same draws chosen by other rules; of learned dropout and steering, other gradients."""

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from learned_aug.fit.dropout import LearningDropout
from learned_aug.influence.scores import unit_rms
from learned_aug.training.choice import DrawChoice
from learned_aug.training.snapshot import Snapshot
from learned_aug.training.steer import SteeredDraws


class Scored(DrawChoice):
    """By another score than the snapshot's own."""

    def renew(self):
        super().renew()
        own = self.snapshot.score
        self.snapshot.score = lambda augmented, labels: self.score(own, augmented, labels)


class Worst(Scored):
    """The draw of the worst predicted influence."""

    def score(self, own, augmented, labels):
        return -own(augmented, labels)


class Random(DrawChoice):
    """Any of the draws."""

    def renew(self):
        self.snapshot = SimpleNamespace(score=lambda images, labels: torch.rand(len(images), device=images.device))


class WithoutLoss(SteeredDraws):
    """Steered by what is left of the influence's direction without its component along the loss's."""

    def direction(self, images, labels, masks):
        influence = super().direction(images, labels, masks)
        followed = self.snapshot
        self.snapshot = Snapshot(followed.tap, followed.label_smoothing)
        loss = super().direction(images, labels, masks)
        self.snapshot = followed
        along = (influence * loss).flatten(1).mean(1)[:, None, None] * loss  # both of root mean square 1
        return unit_rms(influence - along)


class Taught(Scored, SteeredDraws):
    """Steered to a loss above that of a classifier trained before: draws that this one still recognizes.

    The objective of TeachAugment (Suzuki, CVPR 2022).
    """

    def __init__(self, *args, teacher, **options):
        super().__init__(*args, **options)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def score(self, own, augmented, labels):
        return own(augmented, labels) - F.cross_entropy(self.teacher(augmented), labels, reduction="none")


class LearningHarderDropout(LearningDropout):
    """Towards a higher cross-entropy: adversarial."""

    def score(self, augmented, labels):
        return F.cross_entropy(self.tap(augmented)[1], labels, reduction="none")
