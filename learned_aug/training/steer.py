"""SteeredDraws: augmented batches whose draws are made harder, image by image, for the classifier in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.config import AugmenterConfig
from learned_aug.fit.prior import prior
from learned_aug.fit.tilt import tilted
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.checks import check_range
from learned_aug.runtime.data import Data
from learned_aug.runtime.distributed import rank
from learned_aug.runtime.numbers import as_number, check_count, check_number, check_seed
from learned_aug.runtime.rng import generator
from learned_aug.training.augment import check_units
from learned_aug.training.reader import Loss, Reader, check_state

__all__ = ["UNSTEERED", "SteeredDraws"]

UNSTEERED: dict[str, Any] = {"share": 0.5, "strength": 1.0, "tilt": 0.0}
"""Settings with which nothing follows the classifier: draws of the networks at their own strength, the control."""
KEPT = 0.9  # of the running mean of the probability, at each reading


class SteeredDraws:
    """Augments a share of each batch, and steers the draws of every third batch by the classifier in training.

        steered = SteeredDraws(model)
        for images, labels in loader:
            images = steered(images, labels)
            ...  # your training step

    The prior are random networks of random strength, calibrated on the first batch. A steered draw starts from one of
    the prior, takes the gradient of the classifier's loss with respect to its dropout mask, and draws again
    from dropout that is tilted along it, at the same strength; the tilt is gated by the probability of the label, so
    that only what the classifier already gets right is made harder. It reads no label beyond the batch's own.

    How much is augmented, and how strongly, follows the classifier too: where `share` and `strength` are ranges they
    start at the lower end, and move toward the upper one with the square of the running mean of the probability that
    the classifier gives the labels of augmented images. A classifier that knows nothing yet learns little from hard
    images; one that is sure of them has no more to learn from mild ones.

    Call it where the training step runs the model, under the same autocast. Several processes of torch.distributed
    share the prior of process 0, and draw each for itself.

    Args:
        model: the classifier in training, on images of the value range stated by `mean` and `std`; read in eval mode.
        augmenter: networks to draw from, such as a fitted augmenter; by default a prior made at the first batch.
        share: share of each batch, taken at random, that is augmented: a number, or a range (low, high).
        strength: factor on the strengths of all draws: a number, or a range (low, high).
        period: every so many calls draws are steered, those of the others are the prior's; 1 steers at each call, at
            about twice the cost.
        tilt: root mean square of the logits of keeping that steering adds; 0 steers nothing, negative reverses it.
        gate: power of the probability of the label that the tilt is multiplied with; 0 is no gate.
        warmup: calls before the first draw is steered, while the classifier knows nothing and its batch-norm statistics
            are not those of its data.
        mean: mean of the images' normalization (x - mean) / std, a number or one per channel; None for [0, 1], or for
            that of `augmenter`.
        std: standard deviation of that normalization.
        loss: from the model's output and the labels to one loss per sample, (B,); by default the cross-entropy, for
            class indices and soft labels. In place of a probability, which another loss does not have, stands
            1/K to the power of the loss over its mean where all outputs are zero, for K outputs.
        by: "loss"; or "influence", which steers to a lower influence on `val` instead and needs both data sets.
        train: (image, label) pairs without augmentation, for ``by="influence"``.
        val: the hyper-validation set, for ``by="influence"``; errors on it are no longer honest.
        every: calls between two solutions of s_val, for ``by="influence"``: each reads `train` and `val`.
        config: settings of s_val, for ``by="influence"``.
        head: name of the last Linear, for ``by="influence"``; by default the last one registered.
        seed: seed of the prior and of all draws.

    Attributes:
        augmenter: the networks that draws come from; None before the first batch.
        confidence: running mean of the probability of the label at draws of the prior, whose square places `share` and
            `strength` in their ranges; 0 at the start.
        metrics: of the last batch that was read: mean probability of the label and mean gate.

    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        augmenter: Augmenter | None = None,
        share: float | tuple[float, float] = (0.25, 0.9),
        strength: float | tuple[float, float] = (0.5, 1.5),
        period: int = 3,
        tilt: float = 3.0,
        gate: float = 4.0,
        warmup: int = 20,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        loss: Loss | None = None,
        by: Literal["loss", "influence"] = "loss",
        train: Data | None = None,
        val: Data | None = None,
        every: int = 200,
        config: InfluenceConfig | None = None,
        head: str | None = None,
        seed: int = 0,
    ) -> None:
        self.share = _range("share", share, 1.0)
        self.strength = _range("strength", strength, math.inf)
        self.tilt = check_number("tilt", tilt, remedy="0 steers nothing")
        self.gate = check_number("gate", gate, 0, "0 is no gate")
        self.warmup, self.period = check_count("warmup", warmup, 0), check_count("period", period, 1)
        self.every = check_count("every", every, 1)
        if augmenter is not None and tilt and not augmenter.config.tau_dropout:
            raise ValueError(
                "augmenter must have tau_dropout > 0 to be steered, got 0; change its config, or use tilt=0"
            )
        if augmenter is not None:
            check_units(augmenter.config, mean, std)
        self.model, self.augmenter, self._given = model, augmenter, augmenter
        self.mean, self.std, self.seed = mean, std, check_seed(seed)
        self.reader = Reader(model, by=by, loss=loss, train=train, val=val, config=config, head=head)
        self.calls = 0
        self.confidence = 0.0
        self.metrics: dict[str, float] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the batch with a share of its images augmented.

        Args:
            images: (B, C, H, W), floating, on the model's device.
            labels: class indices (B,), soft labels (B, K), or what `loss` takes.

        Returns:
            (B, C, H, W), a new tensor in the dtype of `images`.

        Raises:
            ValueError: if images or labels do not fit, with what was expected, what came and what to do.
            TypeError: if images are no floating tensor.
        """
        labels = self.reader.check(images, labels, steers=bool(self.tilt))
        if not len(images):
            return images.clone()
        augmenter = self._augmenter_for(images)
        reads = self._reads and self.calls >= self.warmup
        if reads and (self.calls - self.warmup) % self.every == 0:
            self.reader.renew()
        reads = reads and (self.calls - self.warmup) % self.period == 0
        # A function of the call: processes differ, also after they loaded one state.
        source = generator(self.seed, "steered draws", rank(), self.calls)
        self.calls += 1
        share, strength = self.share_and_strength
        count = round(share * images.shape[0])
        if not count and share:  # of a small batch, which would never be augmented
            count = int(float(torch.rand((), generator=source, device="cpu")) < share * images.shape[0])
        chosen = torch.randperm(images.shape[0], generator=source, device="cpu")[:count].to(images.device)
        part = images[chosen]
        noise = augmenter.draw_noise(part.shape[0], generator=source, device=images.device)
        if reads and part.shape[0]:
            drawn = self._read(augmenter, part, labels[chosen], noise, source, strength)
        else:
            drawn = augmenter(part, noise, strength=strength)
        out = images.clone()
        out[chosen] = drawn
        return out

    @property
    def share_and_strength(self) -> tuple[float, float]:
        """Both as the confidence places them in their ranges now."""
        # The square: without it a classifier that is far from fitting its images gets too many draws, too strong.
        share, strength = (low + self.confidence**2 * (high - low) for low, high in (self.share, self.strength))
        return share, strength

    @property
    def _reads(self) -> bool:
        """Whether anything follows the classifier."""
        return bool(self.tilt) or any(low != high for low, high in (self.share, self.strength))

    def _read(
        self,
        augmenter: Augmenter,
        images: Tensor,
        labels: Tensor,
        noise: Tensor,
        source: torch.Generator,
        strength: float,
    ) -> Tensor:
        """Draw by `noise`, read the classifier there, and draw again from `source` along what it says."""
        if augmenter.config.dropout == "fixed":
            masks = augmenter.mask(noise[..., : augmenter.config.tau_dim])
        else:  # the encoder has a say
            masks = augmenter.trace(images, noise).masks
        with torch.set_grad_enabled(bool(self.tilt)):
            masks = masks.detach().requires_grad_(bool(self.tilt))
            strengths = augmenter.strengths(noise)
            trace = augmenter.trace(images, masks=masks, strengths=strengths, strength=strength)
            drawn = trace.draw.apply(images)
            score, probability = self.reader.score(drawn, labels)
            gradient = self.reader.gradient(score, masks) if self.tilt else None
        sure = float(probability.mean())
        self.confidence += (1 - KEPT) * (sure - self.confidence)
        self.metrics = {"probability": sure, "gate": float(probability.pow(self.gate).mean())}
        if gradient is None:
            return drawn
        logits = tilted(gradient, probability, tilt=self.tilt, gate=self.gate)
        if trace.logits is not None:
            logits = logits + trace.logits
        fresh = augmenter.draw_noise(images.shape[0], generator=source, device=images.device)
        masks = augmenter.mask(fresh[..., : augmenter.config.tau_dim], logits.detach())
        return augmenter.trace(images, masks=masks, strengths=strengths, strength=strength).draw.apply(images)

    def _augmenter_for(self, images: Tensor) -> Augmenter:
        """Return the networks, made and calibrated at the first batch.

        Raises:
            ValueError: if the first batch is not of the range of given ones, or no prior can be made of it.
        """
        if self.augmenter is None:
            self.augmenter = prior(images, mean=self.mean, std=self.std, seed=self.seed)
        elif not self.calls:  # what a prior checks of its images
            self.augmenter.to(images.device)
            check_range(images, self.augmenter.config.mean, self.augmenter.config.std)
        return self.augmenter

    def state_dict(self) -> dict[str, Any]:
        """Return all that an exact resume needs: the networks, the position of the draws, and s_val."""
        made = self.augmenter
        return {
            "augmenter": None if made is None else {"config": made.config.to_dict(), "weights": made.state_dict()},
            "seed": self.seed,
            "calls": self.calls,
            "confidence": self.confidence,
            "reader": self.reader.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; the draws to come are those that would have come.

        Raises:
            ValueError: if it is no such state, or its networks have another configuration than the `augmenter` that was
                given.
        """
        check_state(self, state, "augmenter", "seed", "calls", "confidence", "reader")
        self.augmenter = self._given
        if state["augmenter"] is not None:
            config = AugmenterConfig.from_dict(state["augmenter"]["config"])
            kept = config.to_dict()
            given = kept if self._given is None else self._given.config.to_dict()
            if other := [name for name in given if given[name] != kept[name]]:
                raise ValueError(
                    f"augmenter must be the one whose state this is, got another {' and '.join(other)}; give that one, "
                    "or none"
                )
            weights = state["augmenter"]["weights"]
            made = Augmenter(config).to(next(iter(weights.values())).dtype)
            made.load_state_dict(weights)
            self.augmenter = made.to(self.reader.device)
        self.seed, self.calls, self.confidence = state["seed"], state["calls"], state["confidence"]
        self.reader.load_state_dict(state["reader"])


def _range(name: str, value: float | Sequence[float], most: float) -> tuple[float, float]:
    """Return a setting that is a number or a range as a range.

    Raises:
        ValueError: if it is neither, or not within 0 to `most`.
    """
    given = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    ends = tuple(map(as_number, given))
    if len(ends) != 2 or not all(map(math.isfinite, ends)):
        raise ValueError(f"{name} must be a finite number or a range (low, high), got {value!r}")
    if not 0 <= ends[0] <= ends[1] <= most:
        limit = "0 or more" if most == math.inf else f"in [0, {most:g}]"
        raise ValueError(f"{name} must be {limit}, the lower end first, got {value!r}")
    return ends[0], ends[1]
