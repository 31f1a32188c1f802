"""What the stages of a fit read, and what each of them does with it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from learned_aug.augmenter import Augmenter
from learned_aug.config import AugmenterConfig
from learned_aug.fit.config import FitConfig
from learned_aug.fit.diagnostics import measure
from learned_aug.fit.dropout import DropoutConfig, LearningDropout
from learned_aug.fit.judge import Estimate, estimate, halves
from learned_aug.fit.linear import Maximizing
from learned_aug.fit.pretrain import PretrainConfig, Pretraining
from learned_aug.fit.prior import prior
from learned_aug.fit.stage import IN_FLIGHT, Stage
from learned_aug.influence.head import HeadTap, check_differentiable, collect
from learned_aug.influence.problem import Head
from learned_aug.influence.s_val import predicted_influence, solve_s_val
from learned_aug.influence.scores import predicted_val_drop
from learned_aug.influence.system import Solution
from learned_aug.runtime.data import Data, as_pair, check_source
from learned_aug.runtime.distributed import broadcast_, rank, span, world_size
from learned_aug.runtime.events import Event, OnEvent
from learned_aug.runtime.rng import forked, generator
from learned_aug.runtime.stream import Stream, check_alike

__all__ = ["Influence", "Setting", "Tap"]

# Gradients of the validation and the test loss agree badly below: cosine .89 with 5,000 images of MNIST, .36 with 120.
SMALL_VAL = 1000
PROBE = 512  # training images on which the diagnostics are measured


class Tap(HeadTap):
    """Runs the model under autocast, if asked to."""

    def __init__(self, model: nn.Module, head: nn.Linear, amp: torch.dtype | None) -> None:
        super().__init__(model, head)
        self.amp = amp

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits as :class:`HeadTap` does, in the dtype of the images."""
        if self.amp is None:
            return super().__call__(images)
        with torch.autocast(images.device.type, self.amp):
            features, logits = super().__call__(images)
        return features.to(images.dtype), logits.to(images.dtype)


@dataclass(frozen=True)
class Influence:
    """What stage 2 leaves: the head at which influences are read, and s_val, the fit's and those of its judge."""

    head: Head
    solution: Solution
    """Of the fit's half of the validation set, (K, D + 1)."""
    judges: Tensor
    """(folds, K, D + 1), of the other half; no folds where it is too small for them."""

    def tree(self) -> dict[str, Any]:
        """Return it as a checkpoint keeps it."""
        return {"head": vars(self.head), "solution": vars(self.solution), "judges": self.judges}

    @staticmethod
    def of(tree: dict[str, Any], device: torch.device) -> Influence:
        """Rebuild it from what a checkpoint keeps."""
        parts: list[dict[str, Any]] = [
            {k: v.to(device) if isinstance(v, Tensor) else v for k, v in tree[part].items()}
            for part in ("head", "solution")
        ]
        return Influence(Head(**parts[0]), Solution(**parts[1]), tree["judges"].to(device))


@dataclass(frozen=True)
class Setting:
    """What the stages read, and what each of them does with it."""

    tap: HeadTap
    train: Data
    val: Data
    baseline: Callable[[Tensor], Tensor] | None
    config: FitConfig

    def stream(
        self, name: str, use: str, batch_size: int, *, augmented: bool = True, shuffle: bool = True, shared: bool = True
    ) -> Stream:
        """Return batches of `train` or `val`; `use` tells its draws from those of other streams."""
        data = self.train if name == "train" else self.val
        return Stream(
            data,
            name,
            use,
            seed=self.config.seed,
            batch_size=batch_size if shuffle else bounded(data, name, batch_size),
            device=self.tap.head.weight.device,
            dtype=self.tap.head.weight.dtype,
            baseline=self.baseline if augmented else None,
            shuffle=shuffle,
            rank=rank() if shared else 0,
            world=world_size() if shared else 1,
        )

    def solve(self, notify: OnEvent) -> dict[str, Any]:
        """Stage 2: the refitted head and s_val, for :class:`Influence`."""
        size = self.config.batch_size
        train = self.stream("train", "train features", size, shuffle=False)
        val = self.stream("val", "val features", size, augmented=False, shuffle=False)
        dtype = self.config.influence.cache_dtype
        train_batch, val_batch = (
            collect(self.tap, _reported(read, notify), dtype, count=read.images, keep_logits=False)
            for read in (train, val)
        )
        first, count = span(len(val_batch.labels), val_batch.labels.device)
        if count < SMALL_VAL:
            warnings.warn(
                f"val has {count} images, about {SMALL_VAL} or more are needed for a gradient that resembles that of "
                "unseen images; use more",
                stacklevel=5,
            )
        fitted, folds = halves(val_batch, first)
        head, solution = solve_s_val(
            train_batch,
            fitted,
            self.tap.head,
            self.config.influence,
            also=folds,
            sharded=world_size() > 1,
            on_event=notify,
        )
        judges = solution.value[1:] if folds else solution.value.new_empty(0, *solution.value.shape)
        solution = replace(solution, value=solution.value[0]) if folds else solution
        notify(Event("ihvp", 1, 1, {"residual": solution.residual, "steps": float(solution.steps)}))
        return Influence(head, solution, judges).tree()

    def probe(self, count: int = PROBE) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the same training images for all that is measured, few at a time where they are large."""
        for images, labels in _first(self.stream("train", "probe", 128, shuffle=False, shared=False).once(), count):
            size = max(2, IN_FLIGHT // (2 * images[0].numel()))  # each is drawn twice
            yield from zip(images.split(size), labels.split(size), strict=True)

    def check(self) -> None:
        """Refuse, before any work, what the first images show to be impossible."""
        check_alike(train=self.train, val=self.val)
        images, _ = next(self.probe(1))
        check_differentiable(self.tap, images)

    def start(self, given: Augmenter | AugmenterConfig | None) -> dict[str, Any]:
        """Return the configuration and weights of the start: the given networks, or random ones, calibrated."""
        # No more of large ones than are looked at.
        size = max(32, bounded(self.train, "train", 128))
        images = torch.cat([images for images, _ in self.probe(size)])[:128]
        if isinstance(given, Augmenter):
            network = copy.deepcopy(given).to(images.device)
            network.draw(images[:1])  # raises for images that it cannot take
        else:
            network = prior(images, seed=self.config.seed, config=given)
        weights = network.state_dict()
        broadcast_(*weights.values())  # loaders give each process other images
        return {"config": network.config.to_dict(), "weights": weights}

    def pretraining(self, network: Augmenter, config: PretrainConfig) -> tuple[Stage, list[Stream]]:
        """Build stage 1, and the streams that it reads."""
        sources = self.stream("train", "sources", (config.batch_size + 1) // 2, augmented=False)
        reals = self.stream("train", "reals", config.batch_size)
        stage = Pretraining(network, self.tap, sources, reals, config, seed=self.config.seed)
        return stage, [sources, reals]

    def maximizing(self, network: Augmenter, influence: Influence) -> tuple[Stage, list[Stream]]:
        """Build stage 3, and the stream that it reads."""
        config = self.config.maximize
        batches = self.stream("train", "maximize", config.batch_size)
        args = network, self.tap, batches, influence.head, influence.solution.value
        stage: Stage
        if isinstance(config, DropoutConfig):
            stage = LearningDropout(*args, config, seed=self.config.seed)
        else:
            stage = Maximizing(*args, config, seed=self.config.seed)
        return stage, [batches]

    def measured(self, stages: dict[str, Augmenter], influence: Influence, notify: OnEvent) -> dict[str, Any]:
        """Measure each of the networks on the same images and draws, and judge the fitted ones against the first.

        Returns:
            "diagnostics": by name of the networks, the figures of :func:`measure`, and margin, half of the 95 %
            interval of predicted_val_drop. "gain": mean and margin of how much more the last of the networks are
            predicted to lower the validation loss than the first.
        """
        s_vals = influence.judges if len(influence.judges) else influence.solution.value[None]
        drops, figures = {}, {}
        images = self.stream("train", "probe", 128, shuffle=False, shared=False).images
        total = min(images or PROBE, PROBE)
        for name, network in stages.items():
            parts: list[Tensor] = []

            def val_drop(
                images: Tensor, augmented: Tensor, labels: Tensor, name: str = name, parts: list[Tensor] = parts
            ) -> Tensor:
                predicted = predicted_influence(self.tap, influence.head, s_vals, images, augmented, labels)[0]
                parts.append(predicted_val_drop(predicted, influence.head.n_train))
                done = sum(part.shape[-1] for part in parts)
                notify(Event(f"diagnostics of {name}", done, max(done, 2 * total)))
                return parts[-1].mean(0)

            draws = generator(self.config.seed, "diagnostics")
            figures[name] = measure(network, self.tap, self.probe(), val_drop=val_drop, generator=draws)
            drops[name] = torch.cat(parts, 1)
            figures[name]["margin"] = estimate(drops[name]).margin
        first, *_, last = drops.values()
        gain = estimate(last - first)
        values = torch.tensor([*(list(part.values()) for part in figures.values())], dtype=torch.float64)
        values = torch.cat([values.flatten(), torch.tensor(gain, dtype=torch.float64)]).to(self.tap.head.weight.device)
        broadcast_(values)
        rows = values[:-2].view(len(figures), -1).tolist()
        named = {
            name: dict(zip(part, row, strict=True)) for (name, part), row in zip(figures.items(), rows, strict=True)
        }
        return {"diagnostics": named, "gain": Estimate(*values[-2:].tolist())}


def bounded(data: Data, name: str, batch_size: int) -> int:
    """Return a batch size for passes that only read, so that no more than ``IN_FLIGHT`` values are held at once."""
    check_source(data, name)
    if isinstance(data, DataLoader):
        return batch_size
    with forked():
        image, _ = as_pair(data[0], name)
    values = image.numel() if isinstance(image, Tensor) else 1
    return min(batch_size, max(2 * world_size(), IN_FLIGHT // max(1, values)))


def _reported(stream: Stream, notify: OnEvent) -> Iterator[tuple[Tensor, Tensor]]:
    for step, batch in enumerate(stream.once(), 1):
        yield batch
        notify(Event(f"{stream.name} features", step, stream.batches))


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches until `count` images have come."""
    for batch in batches:
        yield batch
        count -= len(batch[1])
        if count <= 0:
            return
