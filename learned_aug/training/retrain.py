"""Stage 4: train a classifier on augmented batches. Used by the demo, the examples and the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from learned_aug.augmenter import Augmenter
from learned_aug.influence.head import borrowed
from learned_aug.influence.layer import first_tensor, placement
from learned_aug.runtime.autocast import fresh_casts
from learned_aug.runtime.checks import check_class_range, check_labels, check_logits, check_range, model_errors_named
from learned_aug.runtime.data import Data
from learned_aug.runtime.events import Event, OnEvent
from learned_aug.runtime.numbers import check_at_least, check_at_most_one, check_seed
from learned_aug.runtime.rng import forked
from learned_aug.runtime.stream import Stream
from learned_aug.training.augment import Augment, applied, batched, parts
from learned_aug.training.choice import DrawChoice
from learned_aug.training.steer import SteeredDraws

__all__ = ["RetrainConfig", "evaluate", "fitting", "retrain"]


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Settings of stage 4, training a classifier on augmented batches."""

    steps: int = 1200
    """Training steps (ours)."""
    batch_size: int = 50
    """Images per step, where the data are a Dataset (ours)."""
    lr: float = 0.05
    """Peak learning rate of the one-cycle schedule (ours)."""
    momentum: float = 0.9
    """Nesterov momentum of SGD (ours)."""
    weight_decay: float = 5e-4
    """Weight decay of SGD (ours)."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss, in [0, 1]."""
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    """From the parameters to an optimizer, in place of SGD with the three settings above."""
    make_schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None
    """From optimizer and number of steps to a schedule, stepped once a batch, in place of the one-cycle schedule: from
    1/25 of the peak up for 30 % of the steps, then down to nearly 0, both as a cosine."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(self, steps=1, batch_size=1, lr=0, momentum=0, weight_decay=0, label_smoothing=0)
        check_at_most_one(self, "label_smoothing")


@torch.inference_mode(False)
@torch.enable_grad()
@fresh_casts()
def retrain(
    model: nn.Module,
    train: Data,
    config: RetrainConfig | None = None,
    *,
    augment: Augment | None = None,
    baseline: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> None:
    """Train `model`, in place, by SGD with Nesterov momentum and the one-cycle learning rate.

    The loss is the cross-entropy, to class indices or soft labels. The model is left in eval mode.

    Args:
        model: a fresh classifier; trained on its own device and in its own dtype, on its logits or first output.
        train: (image, label) pairs, as :func:`learned_aug.fit` takes them, or with soft labels (K,).
        config: settings.
        augment: from a batch (B, C, H, W), or from a batch and its labels, to augmented images, or to images and soft
            labels (B, K): an Augmenter, :class:`SteeredDraws` or :class:`DrawChoice` for this `model`, ``v2.MixUp``, or
            a function. Other transforms of torchvision are drawn for each image. None trains on the baseline alone.
        baseline: augmentation of single images (C, H, W), before `augment`.
        seed: seed of the order of a Dataset's samples, and of what its transforms, `baseline` and `augment` draw on the
            CPU.
        on_event: gets "retrain" events: loss (nats) and, without soft labels, accuracy (share) on the augmented batch.

    Raises:
        ValueError: if all of the model is frozen, `augment` is for another model, it changes the shape of a batch, or
            logits or labels do not fit.
    """
    config = config if config is not None else RetrainConfig()
    augment = None if augment is None else batched(augment)
    for part in parts(augment):
        if isinstance(part, (SteeredDraws, DrawChoice)) and part.model is not model:
            raise ValueError(f"augment must be a {type(part).__name__} for the model in training, got one for another")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the model must have parameters that train, got none; unfreeze some with requires_grad_(True), as those of "
            "its head"
        )
    device, dtype = placement(model)
    batches = Stream(
        train,
        "train",
        "retrain",
        seed=check_seed(seed),
        batch_size=config.batch_size,
        device=device,
        dtype=dtype,
        baseline=baseline,
        shuffle=True,
        soft=True,
    )
    optimizer, schedule = _optimizer(model, config)
    model.train()
    for step in range(config.steps):
        images, labels = next(batches)
        for part in parts(augment) if not step else ():
            if isinstance(part, Augmenter):
                check_range(images, part.config.mean, part.config.std)
        if augment is not None:
            with forked() as reseed:
                reseed(seed, "augment", step)
                images, labels = applied(augment, images, labels)
            images = images.to(dtype)
            if images.device.type == "cpu" and not bool(images.isfinite().all()):
                raise ValueError(
                    "augment must return finite images, got NaN or infinity; apply it alone to find the cause"
                )
        with nullcontext() if step else model_errors_named(images):
            logits = check_logits(first_tensor(model(images)).float(), len(images))
        labels = fitting(labels, logits)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        torch.clear_autocast_cache()  # within a caller's autocast, whose copies of the weights are old now
        if on_event is not None:
            metrics = {"loss": float(loss.detach())}
            if labels.ndim == 1:
                metrics["accuracy"] = float((logits.detach().argmax(1) == labels).double().mean())
            on_event(Event("retrain", step + 1, config.steps, metrics))
    model.eval()


def _optimizer(model: nn.Module, config: RetrainConfig) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Make optimizer and schedule.

    Raises:
        ValueError: if the user's functions give something else.
    """
    optimizer: torch.optim.Optimizer
    if config.make_optimizer is not None:
        optimizer = config.make_optimizer(model.parameters())
        if not hasattr(optimizer, "step") or isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "RetrainConfig.make_optimizer must give an optimizer that steps without a closure, got "
                f"{type(optimizer).__name__}; give one such as torch.optim.AdamW"
            )
    else:
        optimizer = torch.optim.SGD(
            model.parameters(),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
    if config.make_schedule is not None:
        schedule = config.make_schedule(optimizer, config.steps)
        if not hasattr(schedule, "step") or isinstance(schedule, ReduceLROnPlateau):
            raise ValueError(
                "RetrainConfig.make_schedule must give a schedule that steps without a metric, got "
                f"{type(schedule).__name__}; give one such as torch.optim.lr_scheduler.CosineAnnealingLR"
            )
        return optimizer, schedule
    # One step more than are taken, for the rate after the last of a cycle is nearly 0.
    peaks = [group["lr"] for group in optimizer.param_groups]
    return optimizer, OneCycleLR(optimizer, peaks, total_steps=config.steps + 1, cycle_momentum=False)


def fitting(labels: Tensor, logits: Tensor, start: int | None = 0) -> Tensor:
    """Return class indices, or soft labels in the logits' dtype; `start` is as of `check_class_range`.

    Raises:
        ValueError: if they do not fit the logits.
    """
    if not labels.is_floating_point():
        check_class_range(check_labels(labels, logits.shape[0]), logits.shape[1], start)
        return labels
    if labels.shape != logits.shape:
        raise ValueError(
            f"soft labels must be like the logits, {tuple(logits.shape)}, got {tuple(labels.shape)}; check the number "
            "of classes of what mixes them"
        )
    return labels.to(logits.dtype)


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, batch_size: int = 500) -> tuple[float, float]:
    """Measure the error (share) and the mean cross-entropy (nats) of `model`, in eval mode, on (image, label) pairs.

    Soft labels count as right where their likeliest class is. The model comes back as it was, its mode included.

    Raises:
        ValueError: if logits or labels do not fit.
    """
    wrong, loss, count = 0, 0.0, 0
    device, dtype = placement(model)
    stream = Stream(data, "data", "evaluate", seed=0, batch_size=batch_size, device=device, dtype=dtype, soft=True)
    with borrowed(model):
        for images, labels in stream.once():
            with nullcontext() if count else model_errors_named(images):
                logits = check_logits(first_tensor(model(images)).float(), len(images))
            labels = fitting(labels, logits, count)
            wrong += int((logits.argmax(1) != (labels if labels.ndim == 1 else labels.argmax(1))).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return wrong / count, loss / count
