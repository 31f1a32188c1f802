"""Controls: of `DrawChoice`, the same draws chosen by other rules; of learned dropout and steering, other gradients."""

import copy

import torch
import torch.nn.functional as F

from learned_aug.fit import DrawChoice, SteeredDraws
from learned_aug.fit.dropout import LearningDropout
from learned_aug.influence.scores import unit_rms


class Worst(DrawChoice):
    """The draw of the worst predicted influence."""

    def score(self, augmented, labels):
        return -super().score(augmented, labels)


class Random(DrawChoice):
    """Any of the draws."""

    def score(self, augmented, labels):
        return torch.rand(len(augmented), device=augmented.device)

    def renew(self):
        pass


class WithoutLoss(SteeredDraws):
    """Steered by what is left of the influence's direction without its component along the loss's."""

    def direction(self, images, labels, masks):
        influence = super().direction(images, labels, masks)
        self.val, val = None, self.val
        loss = super().direction(images, labels, masks)
        self.val = val
        along = (influence * loss).flatten(1).mean(1)[:, None, None] * loss  # both of root mean square 1
        return unit_rms(influence - along)


class Taught(SteeredDraws):
    """Steered to a loss above that of a classifier trained before: draws that this one still recognises.

    The objective of TeachAugment (Suzuki, CVPR 2022).
    """

    def __init__(self, *args, teacher, **options):
        super().__init__(*args, **options)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def score(self, augmented, labels):
        return super().score(augmented, labels) - F.cross_entropy(self.teacher(augmented), labels, reduction="none")


class LearningHarderDropout(LearningDropout):
    """Towards a higher cross-entropy: adversarial."""

    def score(self, augmented, labels):
        return F.cross_entropy(self.tap(augmented)[1], labels, reduction="none")
