"""Stage 4: train a classifier on augmented batches. Used by the demo, the examples and the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.head import borrowed, check_labels
from learned_aug.runtime.checks import check_at_least, check_at_most_one
from learned_aug.runtime.data import Data
from learned_aug.runtime.events import Event, OnEvent
from learned_aug.runtime.stream import Stream
from learned_aug.training.choice import DrawChoice

__all__ = ["RetrainConfig", "evaluate", "retrain"]


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Settings of stage 4, training a classifier on augmented batches."""

    steps: int = 1200
    """Training steps (ours)."""
    batch_size: int = 50
    """Images per step, where the data are a Dataset (ours)."""
    lr: float = 0.05
    """Peak learning rate: it rises for a tenth of the steps, then falls as a cosine to 0 (ours)."""
    momentum: float = 0.9
    """Nesterov momentum of SGD (ours)."""
    weight_decay: float = 5e-4
    """Weight decay of SGD (ours)."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss, in [0, 1]."""
    mix: float = 0.5
    """Share of each batch that is augmented, in [0, 1] (ours); all of it was worse on MNIST."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(self, steps=1, batch_size=1, lr=0, momentum=0, weight_decay=0, label_smoothing=0, mix=0)
        check_at_most_one(self, "label_smoothing", "mix")


def retrain(
    model: nn.Module,
    train: Data,
    config: RetrainConfig | None = None,
    *,
    augment: Callable[[Tensor], Tensor] | DrawChoice | None = None,
    baseline: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> None:
    """Train `model`, in place, by SGD with Nesterov momentum; the learning rate rises for a tenth and falls to 0.

    Args:
        model: a fresh classifier; trained on its own device.
        train: (image, label) pairs, as :func:`learned_aug.fit` takes them.
        config: settings; `mix` is the share of each batch that `augment` replaces.
        augment: on batches (B, C, H, W), such as an Augmenter; or a :class:`DrawChoice` or :class:`SteeredDraws` for
            this `model`, which also sees the labels; None trains on the baseline alone.
        baseline: on single images (C, H, W), before `augment`.
        seed: seed of the order of a Dataset's samples, and of what its transforms and `baseline` draw.
        on_event: gets "retrain" events: loss (nats).
    """
    config = config if config is not None else RetrainConfig()
    if isinstance(augment, DrawChoice) and augment.model is not model:
        raise ValueError("augment must be a DrawChoice for the model in training, got one for another model")
    device = next(model.parameters()).device
    batches = Stream(
        train,
        "train",
        "retrain",
        seed=seed,
        batch_size=config.batch_size,
        device=device,
        baseline=baseline,
        shuffle=True,
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    rise = max(1, config.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / config.steps))
    )
    model.train()
    for step in range(config.steps):
        images, labels = next(batches)
        if augment is not None and (n := round(config.mix * len(images))):
            part = augment(images[:n], labels[:n]) if isinstance(augment, DrawChoice) else augment(images[:n])
            images = torch.cat([part, images[n:]])
        logits = model(images)
        check_labels(labels, logits.shape)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_event is not None:
            on_event(Event("retrain", step + 1, config.steps, {"loss": float(loss.detach())}))
    model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, batch_size: int = 500) -> tuple[float, float]:
    """Error (share) and mean cross-entropy (nats) of `model`, in eval mode, on (image, label) pairs.

    The model comes back as it was, its mode included.
    """
    wrong, loss, count = 0, 0.0, 0
    with borrowed(model):
        device = next(model.parameters()).device
        for images, labels in Stream(data, "data", "evaluate", seed=0, batch_size=batch_size, device=device).once():
            logits = model(images)
            check_labels(labels, logits.shape, count)
            wrong += int((logits.argmax(1) != labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return wrong / count, loss / count
