"""Stage 4: train a classifier on augmented batches. Used by the demo, the examples and the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.head import borrowed
from learned_aug.runtime.checks import check_at_least, check_at_most_one, check_class_range, check_labels
from learned_aug.runtime.data import Data
from learned_aug.runtime.events import Event, OnEvent
from learned_aug.runtime.stream import Stream
from learned_aug.training.choice import DrawChoice
from learned_aug.training.reader import first_tensor
from learned_aug.training.steer import SteeredDraws

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

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(self, steps=1, batch_size=1, lr=0, momentum=0, weight_decay=0, label_smoothing=0)
        check_at_most_one(self, "label_smoothing")


def retrain(
    model: nn.Module,
    train: Data,
    config: RetrainConfig | None = None,
    *,
    augment: Callable[[Tensor], Tensor] | SteeredDraws | DrawChoice | None = None,
    baseline: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> None:
    """Train `model`, in place, by SGD with Nesterov momentum; the learning rate rises for a tenth and falls to 0.

    Args:
        model: a fresh classifier; trained on its own device and in its own dtype, on its logits or first output.
        train: (image, label) pairs, as :func:`learned_aug.fit` takes them.
        config: settings.
        augment: makes augmented batches of batches (B, C, H, W), such as an Augmenter; or :class:`SteeredDraws` or
            :class:`DrawChoice` for this `model`, which also see the labels; None trains on the baseline alone.
        baseline: augmentation of single images (C, H, W), before `augment`.
        seed: seed of the order of a Dataset's samples, and of what its transforms and `baseline` draw.
        on_event: gets "retrain" events: loss (nats).

    Raises:
        ValueError: if `augment` is for another model, changes the shape of a batch, or labels do not fit.
    """
    config = config if config is not None else RetrainConfig()
    sees_labels = isinstance(augment, (SteeredDraws, DrawChoice))
    if isinstance(augment, (SteeredDraws, DrawChoice)) and augment.model is not model:
        raise ValueError(f"augment must be a {type(augment).__name__} for the model in training, got one for another")
    weight = next(model.parameters())
    batches = Stream(
        train,
        "train",
        "retrain",
        seed=seed,
        batch_size=config.batch_size,
        device=weight.device,
        dtype=weight.dtype,
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
        if augment is not None:
            augmented = augment(images, labels) if sees_labels else augment(images)  # type: ignore[call-arg]
            if augmented.shape != images.shape:
                raise ValueError(
                    f"augment must return batches of the shape that it gets, {tuple(images.shape)}, got "
                    f"{tuple(augmented.shape)}; resize or crop in the data set"
                )
            images = augmented.to(weight.dtype)
        logits = first_tensor(model(images))
        check_class_range(check_labels(labels, logits.shape[0]), logits.shape[1])
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_event is not None:
            on_event(Event("retrain", step + 1, config.steps, {"loss": float(loss.detach())}))
    model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, batch_size: int = 500) -> tuple[float, float]:
    """Measure the error (share) and the mean cross-entropy (nats) of `model`, in eval mode, on (image, label) pairs.

    The model comes back as it was, its mode included.

    Raises:
        ValueError: if labels do not fit.
    """
    wrong, loss, count = 0, 0.0, 0
    weight = next(model.parameters())
    stream = Stream(data, "data", "evaluate", seed=0, batch_size=batch_size, device=weight.device, dtype=weight.dtype)
    with borrowed(model):
        for images, labels in stream.once():
            logits = first_tensor(model(images)).float()
            check_class_range(check_labels(labels, logits.shape[0]), logits.shape[1], count)
            wrong += int((logits.argmax(1) != labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return wrong / count, loss / count
