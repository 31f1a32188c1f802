"""Controls: of `DrawChoice`, the same draws chosen by other rules; of learned dropout, other gradients."""

import torch
import torch.nn.functional as F

from learned_aug.fit import DrawChoice
from learned_aug.fit.dropout import LearningDropout
from learned_aug.fit.influence import unit_rms


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


class LearningHarderDropout(LearningDropout):
    """Towards a higher cross-entropy: adversarial."""

    def wanted(self, augmented, labels, masks):
        loss = F.cross_entropy(self.tap(augmented)[1], labels, reduction="sum")
        return unit_rms(torch.autograd.grad(loss, masks)[0])
