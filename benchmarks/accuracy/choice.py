"""The controls of `DrawChoice`: the same draws, chosen by other rules."""

import torch
import torch.nn.functional as F

from learned_aug.fit import DrawChoice


class Worst(DrawChoice):
    """The draw of the worst predicted influence."""

    def score(self, augmented, labels):
        return -super().score(augmented, labels)


class Hardest(DrawChoice):
    """The draw of the highest cross-entropy."""

    def score(self, augmented, labels):
        return F.cross_entropy(self.tap(augmented)[1], labels, reduction="none")


class Random(DrawChoice):
    """Any of the draws."""

    def score(self, augmented, labels):
        return torch.rand(len(augmented), device=augmented.device)

    def renew(self):
        pass
