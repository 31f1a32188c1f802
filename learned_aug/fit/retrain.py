"""Stage 4: train a classifier on augmented batches. Used by the demo, the examples and the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.fit.choose import DrawChoice
from learned_aug.fit.config import RetrainConfig
from learned_aug.fit.data import Batches, Data
from learned_aug.fit.events import Event, OnEvent
from learned_aug.fit.head import borrowed, check_labels

__all__ = ["evaluate", "retrain"]


def retrain(
    model: nn.Module,
    train: Data,
    config: RetrainConfig | None = None,
    *,
    augment: Callable[[Tensor], Tensor] | DrawChoice | None = None,
    baseline: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
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
        generator: of the order of a Dataset's samples.
        on_event: gets "retrain" events: loss (nats).
    """
    config = config if config is not None else RetrainConfig()
    if isinstance(augment, DrawChoice) and augment.model is not model:
        raise ValueError("augment must be a DrawChoice for the model in training, got one for another model")
    device = next(model.parameters()).device
    data = Batches(
        train,
        "train",
        batch_size=config.batch_size,
        device=device,
        baseline=baseline,
        shuffle=True,
        generator=generator,
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
    batches = data.forever()
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
        for images, labels in Batches(data, "data", batch_size=batch_size, device=next(model.parameters()).device):
            logits = model(images)
            check_labels(labels, logits.shape, count)
            wrong += int((logits.argmax(1) != labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return wrong / count, loss / count
