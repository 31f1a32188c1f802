"""The controls of `DrawChoice` and `SteeredDraws`: the same draws, chosen by other rules."""

import torch
import torch.nn.functional as F

from learned_aug.fit import DrawChoice, SteeredDraws


class Worst(DrawChoice):
    """The draw of the worst predicted influence."""

    def score(self, augmented, labels):
        return -super().score(augmented, labels)


class Hardest(DrawChoice):
    """The draw of the highest cross-entropy."""

    def score(self, augmented, labels):
        return F.cross_entropy(self.tap(augmented)[1], labels, reduction="none")


class Harder(SteeredDraws):
    """Steered to a higher cross-entropy: adversarial."""

    score = Hardest.score


class Random(DrawChoice):
    """Any of the draws."""

    def score(self, augmented, labels):
        return torch.rand(len(augmented), device=augmented.device)

    def renew(self):
        pass
