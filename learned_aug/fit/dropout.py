"""Stage 3: E learns which draws of the dropout lower the validation loss, for each image, as the influence predicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.fit.diagnostics import divergence_named, require_finite
from learned_aug.fit.stage import IN_FLIGHT, FollowingInfluence, share_of_noise
from learned_aug.fit.tilt import tilted
from learned_aug.influence.head import HeadTap
from learned_aug.influence.problem import Head
from learned_aug.influence.scores import influence_up
from learned_aug.nets import Encoder
from learned_aug.runtime.distributed import all_mean, average_gradients_
from learned_aug.runtime.numbers import check_at_least
from learned_aug.runtime.rng import generator

__all__ = ["DropoutConfig", "LearningDropout"]

REMEDY = "lower DropoutConfig.lr"


@dataclass(frozen=True, kw_only=True)
class DropoutConfig:
    """Settings of stage 3 as learned dropout (ours): E learns, for each image, which units of tau to keep."""

    steps: int = 450
    """Training steps (ours)."""
    batch_size: int = 64
    """Images per step, over all processes (ours)."""
    lr: float = 5e-3
    """Peak learning rate of Adam (ours); 0, a control, learns nothing."""
    tilt: float = 3.0
    """Root mean square of the logits of keeping a unit, were all draws of an image to agree on them (ours)."""
    gate: float = 4.0
    """Power of the probability that the model gives the label at a draw, by which the draw counts: what the model gets
    wrong teaches little (ours); 0 is no gate."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(self, steps=0, batch_size=2, lr=0, tilt=1e-6, gate=0)


class LearningDropout(FollowingInfluence):
    """Stage 3, ours: teach E the probability of keeping each unit of tau, for each image; all else of E and G stays.

    The influence I is linear in the distribution q of the draws, so its minimum alone would be one draw for all. Kept
    near the fixed dropout it came from, min_q E_q[I] + beta KL(q || prior), the best q of independent units has the
    logits l_j(x) = logit(1 - p) - E[dI/dm_j] / beta, to first order in the mask m. One backward pass gives the gradient
    of all units at once; here it is scaled to length 1 for each draw, so that no image counts more than another, and
    `tilt` sqrt(tau_dim) stands for 1 / beta. E regresses on it, which averages over draws and generalizes over images.

    Its events are called "maximize" and hold agreement, the mean cosine of what E gives with the gradient of one draw,
    and kl, the mean of KL(q || prior), nats.

    Args:
        augmenter: pretrained or calibrated, with ``dropout="learned"``.
        tap: open, on the borrowed model.
        batches: endless (images, labels), as the model is trained on them.
        head: the head for which `ihvp` was computed.
        ihvp: s_val, (K, D + 1).
        config: settings of this form of stage 3.
        seed: seed of the draws.

    Raises:
        ValueError: if the dropout of the augmenter is fixed.
    """

    def __init__(
        self,
        augmenter: Augmenter,
        tap: HeadTap,
        batches: Iterator[tuple[Tensor, Tensor]],
        head: Head,
        ihvp: Tensor,
        config: DropoutConfig,
        *,
        seed: int,
    ) -> None:
        self.config = config
        super().__init__(augmenter, tap, batches, head, ihvp, steps=config.steps, lr=config.lr, seed=seed)

    def part(self, augmenter: Augmenter) -> nn.Module:
        """Return E's layers for the dropout.

        Raises:
            ValueError: if the dropout of the augmenter is fixed.
        """
        if augmenter.config.dropout == "fixed" or not augmenter.config.tau_dropout:
            raise ValueError(
                'augmenter must have dropout="learned" and tau_dropout > 0, got '
                f"{augmenter.config.dropout!r} and {augmenter.config.tau_dropout}; change its config"
            )
        return nn.ModuleList(m.keep for m in augmenter.modules() if isinstance(m, Encoder) and m.keep)

    def step(self) -> dict[str, Tensor]:
        """Take a step of those layers of E that give the logits of the dropout."""
        config, augmenter = self.config, self.augmenter
        for group in self.optimizer.param_groups:  # a rise, and a fall to 0, which averages over the draws
            group["lr"] = config.lr * min(1.0, 4 * (self.done + 1) / config.steps, 2 - 2 * self.done / config.steps)
        images, labels = next(self.batches)
        noise = share_of_noise(augmenter, images, generator(self.seed, self.name, self.done))
        masks = augmenter.mask(noise[..., : augmenter.config.tau_dim]).requires_grad_()  # of the prior
        strengths = augmenter.strengths(noise)
        # Part by part where images are large: each image has a gradient of its own.
        size = max(1, IN_FLIGHT // (2 * images[0].numel()))
        given = [images, masks, labels] if strengths is None else [images, masks, labels, strengths]
        parts = [self._of_part(*part) for part in zip(*(rows.split(size) for rows in given), strict=True)]
        logits, wanted = (torch.cat(rows) for rows in zip(*parts, strict=True))
        loss = (logits / config.tilt - wanted).square().mean()
        require_finite(all_mean(loss.detach()), self.name, REMEDY)
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients_(self.trained.parameters())
        self.optimizer.step()
        return {
            "agreement": F.cosine_similarity(logits.flatten(1), wanted.flatten(1)).mean(),
            "kl": kl_to_prior(logits, 1 - augmenter.config.tau_dropout).mean(),
        }

    def _of_part(
        self, images: Tensor, masks: Tensor, labels: Tensor, strengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return E's logits for some images of a batch, and what they should be: (B, stages, tau_dim) each."""
        with divergence_named(self.name, REMEDY):
            trace = self.augmenter.trace(images, masks=masks, strengths=strengths)
        return cast(Tensor, trace.logits), self.wanted(trace.draw.apply(images), labels, masks)

    def wanted(self, augmented: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """Return the direction of the masks in which the influence falls.

        Its shape is (B, stages, tau_dim), its root mean square the gate.
        """
        features, output = self.tap(augmented)
        batch = self.head(features, labels)
        score = -influence_up(self.ihvp.to(features.dtype), batch, self.head.label_smoothing)
        (gradient,) = torch.autograd.grad(score.sum(), masks)
        probability = output.detach().softmax(1).gather(1, labels[:, None])[:, 0]
        return tilted(gradient, probability, tilt=1.0, gate=self.config.gate)


def kl_to_prior(logits: Tensor, keep: float) -> Tensor:
    """Compute the KL divergence of a dropout from the one of probability `keep`, nats: (B, ...) to (B,).

    Args:
        logits: what the dropout's logits of keeping each unit have beyond those of `keep`, (B, ...).
        keep: probability of keeping a unit under the prior.
    """
    prior = math.log(keep / (1 - keep))
    q = torch.sigmoid(logits + prior)
    each = q * logits - F.softplus(logits + prior) + math.log1p(math.exp(prior))
    return each.flatten(1).sum(1)
