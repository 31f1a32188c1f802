"""fit(): the stages in their order, on the user's model and data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from learned_aug.augmenter import Augmenter
from learned_aug.fit.config import FitConfig
from learned_aug.fit.data import Batches, Data
from learned_aug.fit.diagnostics import measure
from learned_aug.fit.events import Event, OnEvent, ProgressBars
from learned_aug.fit.gan import pretrain
from learned_aug.fit.head import HeadTap, borrowed, collect, find_head
from learned_aug.fit.ihvp import Solution
from learned_aug.fit.influence import predicted_val_drop
from learned_aug.fit.maximize import maximize
from learned_aug.fit.s_val import predicted_influence, solve_s_val
from learned_aug.nets import AugmenterConfig

__all__ = ["FitResult", "fit"]

# Gradients of the validation and the test loss agree badly below: cosine .89 with 5,000 images of MNIST, .36 with 120.
SMALL_VAL = 1000
PROBE = 512  # training images on which the diagnostics are measured


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """What :func:`fit` gives.

    Attributes:
        augmenter: the fitted one.
        pretrained: as it was after stage 1; a control.
        untrained: calibrated at the start, to the same strength; the control of every comparison.
        diagnostics: for each of the three, the figures of :func:`learned_aug.fit.measure`.
        solution: s_val and how well it was solved.
        history: all events, in their order.
        config: settings.
    """

    augmenter: Augmenter
    pretrained: Augmenter
    untrained: Augmenter
    diagnostics: dict[str, dict[str, float]]
    solution: Solution
    history: list[Event]
    config: FitConfig

    def __str__(self) -> str:
        """The diagnostics as a table."""
        names = list(self.diagnostics["untrained"])
        rows = [["", *names]] + [
            [stage, *(f"{figures[name]:.3g}" for name in names)] for stage, figures in self.diagnostics.items()
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def fit(
    model: nn.Module,
    train: Data,
    val: Data,
    *,
    baseline: Callable[[Tensor], Tensor] | None = None,
    augmenter: AugmenterConfig | None = None,
    head: str | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
    on_event: OnEvent | None = None,
) -> FitResult:
    """Fit an augmentation network to a trained classifier.

    s_val is solved on the features of `train` and `val` that enter the model's last Linear (stage 2, first because it
    needs no augmenter); a calibrated random augmenter is trained to mimic the baseline augmentation (stage 1), then to
    lower the validation loss that the influence predicts (stage 3). Stage 4, training a classifier on augmented images,
    is yours: use the augmenter in your own training, or :func:`learned_aug.fit.retrain`.

    Args:
        model: a trained classifier that ends in an nn.Linear and returns its logits. It comes back bit-identical:
            parameters, buffers, mode, requires_grad and hooks, also when fit raises. All runs on its device.
        train: what the model was trained on: a Dataset of (image, label), image a floating tensor (C, H, W), or a
            DataLoader of such batches, which keeps its own batch size in all stages.
        val: the hyper-validation set, of the same kind, about 1,000 images or more; not augmented, not in `train`, and
            never the test set that you report.
        baseline: the augmentation the model was trained with, from an image (C, H, W) to one of the same size, such as
            ``v2.RandomCrop(32, padding=4)``; None skips stage 1, which needs the images without it as well. Its draws
            come from torch's global generator: seed that for a repeatable fit.
        augmenter: the networks' configuration; by default for the channels and size of images in [0, 1]. State mean and
            std there if the images are normalised.
        head: name of the last Linear, such as "fc"; by default the last one registered.
        config: settings of the stages and the seed.
        progress: show a bar for each stage.
        on_event: called with every :class:`Event`.

    Returns:
        The augmenter, its controls, diagnostics and history.

    Raises:
        ValueError, TypeError: for a model or data that cannot be fitted, with what was expected, what came and what to
            do.
        ConvergenceError: if s_val could not be solved.
    """
    config = config if config is not None else FitConfig()
    _refuse_same(train, val)
    history: list[Event] = []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        bars = stack.enter_context(ProgressBars()) if progress else None

        def notify(event: Event) -> None:
            history.append(event)
            for listener in (bars, on_event):
                if listener is not None:
                    listener(event)

        layer = find_head(model, head)
        tap = stack.enter_context(HeadTap(stack.enter_context(borrowed(model)), layer))
        generator = torch.Generator().manual_seed(config.seed)

        def batches(data: Data, name: str, batch_size: int, *, augmented: bool = True, shuffle: bool = True) -> Batches:
            return Batches(
                data,
                name,
                batch_size=batch_size,
                device=layer.weight.device,
                dtype=layer.weight.dtype,
                baseline=baseline if augmented else None,
                shuffle=shuffle,
                generator=generator,
            )

        # Stage 2.
        reads = (
            batches(train, "train", config.batch_size, shuffle=False),
            batches(val, "val", config.batch_size, augmented=False, shuffle=False),
        )
        train_batch, val_batch = (collect(tap, _reported(read, notify)) for read in reads)
        if len(val_batch.labels) < SMALL_VAL:
            warnings.warn(
                f"val has {len(val_batch.labels)} images, about {SMALL_VAL} or more are needed for a gradient that "
                "resembles that of unseen images; use more",
                stacklevel=2,
            )
        problem, solution = solve_s_val(train_batch, val_batch, layer, config.influence)
        notify(Event("ihvp", 1, 1, {"residual": solution.residual, "steps": float(solution.steps)}))

        # The calibrated start.
        probe = list(_first(batches(train, "train", min(PROBE, 128)), PROBE))
        images = torch.cat([images for images, _ in probe])
        if augmenter is None:
            low, high = float(images.min()), float(images.max())
            if low < -0.05 or high > 1.05:
                raise ValueError(
                    f"images of train must be in [0, 1] unless their normalisation is stated, got [{low:.2f}, "
                    f"{high:.2f}]; pass augmenter=AugmenterConfig(channels=..., size=..., mean=..., std=...)"
                )
            augmenter = AugmenterConfig(channels=images.shape[1], size=max(images.shape[-2:]))
        network = Augmenter(augmenter, generator=generator).to(images.device)
        network.calibrate_(images, pixels=config.spread_pixels, color=config.spread_color, generator=generator)
        stages = {"untrained": copy.deepcopy(network)}

        # Stage 1.
        if baseline is None:
            warnings.warn(
                "stage 1 is skipped: baseline is None, so there is no augmentation to mimic; pass the one that the "
                "model was trained with as baseline=, and take it out of the data set's own transform",
                stacklevel=2,
            )
        else:
            size = config.pretrain.batch_size
            sources = batches(train, "train", (size + 1) // 2, augmented=False).forever()
            reals = batches(train, "train", size).forever()
            pretrain(network, tap, sources, reals, config.pretrain, generator=generator, on_event=notify)
        stages["pretrained"] = copy.deepcopy(network)

        # Stage 3.
        stream = batches(train, "train", config.maximize.batch_size).forever()
        ihvp = solution.value
        maximize(network, tap, stream, problem, ihvp, config.maximize, generator=generator, on_event=notify)
        stages["fitted"] = network

        def val_drop(images: Tensor, augmented: Tensor, labels: Tensor) -> Tensor:
            influence, _ = predicted_influence(tap, problem, ihvp, images, augmented, labels)
            return predicted_val_drop(influence, problem.n_train)

        # All three on the same images and masks.
        seed = config.seed + 1
        diagnostics = {
            name: measure(stage, tap, probe, val_drop=val_drop, generator=torch.Generator().manual_seed(seed))
            for name, stage in stages.items()
        }
    return FitResult(
        augmenter=network,
        pretrained=stages["pretrained"],
        untrained=stages["untrained"],
        diagnostics=diagnostics,
        solution=solution,
        history=history,
        config=config,
    )


def _refuse_same(train: Data, val: Data) -> None:
    one, two = (data.dataset if isinstance(data, DataLoader) else data for data in (train, val))
    if one is two:
        got = "the same object for both"
    elif isinstance(one, Subset) and isinstance(two, Subset) and one.dataset is two.dataset:
        shared = len(set(one.indices) & set(two.indices))
        got = f"{shared} images that are in both" if shared else ""
    else:
        got = ""
    if got:
        raise ValueError(
            f"val must hold images that are not in train, got {got}; split train, for example with "
            "torch.utils.data.random_split"
        )


def _reported(batches: Batches, notify: OnEvent) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        total = len(batches.loader)
    except TypeError:  # of an IterableDataset
        total = 0
    for step, batch in enumerate(batches, 1):
        yield batch
        notify(Event(f"{batches.name} features", step, max(step, total)))


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches until `count` images have come."""
    for batch in batches:
        yield batch
        count -= len(batch[1])
        if count <= 0:
            return
