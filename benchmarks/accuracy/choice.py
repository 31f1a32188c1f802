"""Choose among fresh dropout masks, per image, with the classifier as it stands: the hard limit of
max_q E_q[-I] - beta KL(q || prior), whose answer is q ~ prior exp(-I / beta).

Rules: "best" and "worst" by predicted influence, "hardest" by cross-entropy, "random" for control.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from learned_aug.fit.head import HeadBatch, HeadProblem, HeadTap, borrowed, collect, find_head, mean_gradient, refit
from learned_aug.fit.ihvp import relative_damping, solve
from learned_aug.fit.maximize import predicted_influence


class Choice:
    """Called with images and labels; returns one augmented copy of each, chosen among `k`.

    Influences are read from a snapshot of the classifier, renewed every `every` calls, with batch-norm statistics of
    the training set and a refitted head.
    """

    def __init__(self, augmenter, model, train, val, rule, *, k=2, every=100, damping=0.0, weight_decay=0.03):
        self.augmenter, self.model, self.train, self.val, self.rule = augmenter, model, train, val, rule
        self.k, self.every, self.damping, self.weight_decay = k, every, damping, weight_decay  # units: InfluenceConfig
        self.calls = 0

    def __call__(self, images, labels):
        if self.calls % self.every == 0:
            self.recentre()
        self.calls += 1
        with torch.no_grad():
            draws = torch.stack([self.augmenter(images) for _ in range(self.k)])
            scores = torch.stack([self.score(images, draw, labels) for draw in draws])
            return draws[scores.argmax(0), torch.arange(len(images), device=images.device)]

    def score(self, images, augmented, labels):
        """(B,), the highest is taken."""
        if self.rule == "random":
            return torch.rand(len(images), device=images.device)
        with borrowed(self.snapshot), HeadTap(self.snapshot, find_head(self.snapshot)) as tap:
            if self.rule == "hardest":
                return F.cross_entropy(tap(augmented)[1], labels, reduction="none")
            influence, _ = predicted_influence(tap, self.head, self.ihvp, images, augmented, labels)
        return -influence if self.rule == "best" else influence

    def recentre(self):
        """Take a new snapshot; solve for s_val at it."""
        if self.rule == "random":
            return
        self.snapshot = copy.deepcopy(self.model)
        norms = [m for m in self.snapshot.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the passes
        self.snapshot.train()
        with torch.no_grad():
            for rows in torch.arange(len(self.train[0])).split(250):
                self.snapshot(self.train[0][rows])
        if self.rule == "hardest":
            return
        with borrowed(self.snapshot), HeadTap(self.snapshot, find_head(self.snapshot)) as tap:
            train, val = (collect(tap, zip(x.split(500), y.split(500), strict=True)) for x, y in (self.train, self.val))
            decay = self.weight_decay * float(train.features.square().mean())
            problem = HeadProblem.from_batch(train, tap.head, weight_decay=decay)
        self.head = refit(problem).problem
        features = val.features.to(self.head.weight.dtype)
        logits = F.linear(features, self.head.weight, self.head.bias)
        gradient = mean_gradient(HeadBatch(features, logits, val.labels))
        self.ihvp = solve(self.head, gradient, relative_damping(self.head, self.damping)).value
