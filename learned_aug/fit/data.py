"""Batches of the user's data: checked, on the model's device, with the baseline augmentation where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

__all__ = ["Batches", "Data"]

Data = Dataset[Any] | DataLoader[Any]


class Batches:
    """Iterates (images, labels) of a data set or loader.

    Args:
        data: a map-style Dataset of (image, label), image a floating tensor (C, H, W), or a DataLoader that yields such
            batches, which then keeps its own batch size, order and workers.
        name: of the data in errors, "train" or "val".
        batch_size: for a Dataset.
        device: where the batches go.
        dtype: of the images, by default as they come.
        baseline: applied to each image alone, so that each gets its own draw; None leaves them as they come.
        shuffle: for a Dataset.
        generator: of the order.

    Raises:
        TypeError: if `data` is neither.
        ValueError: if it is empty.
    """

    def __init__(
        self,
        data: Data,
        name: str,
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        baseline: Callable[[Tensor], Tensor] | None = None,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.name, self.device, self.dtype, self.baseline = name, device, dtype, baseline
        if isinstance(data, DataLoader):
            self.loader = data
        elif isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise TypeError(
                f"{name} must be a map-style Dataset or a DataLoader, got {type(data).__name__}; "
                "wrap an IterableDataset in a DataLoader, tensors in torch.utils.data.TensorDataset"
            )
        else:
            if not len(data):
                raise ValueError(f"{name} must hold at least one sample, got an empty {type(data).__name__}")
            # In training a last batch of one image would break batch norm, and weigh as much as a full one.
            drop_last = shuffle and len(data) >= batch_size
            self.loader = DataLoader(data, batch_size, shuffle=shuffle, generator=generator, drop_last=drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass."""
        start = 0
        for batch in self._fetch():
            images, labels = self._check(batch, start)
            start += len(images)
            if self.baseline is not None:
                images = self._draw(self.baseline, images)
            yield images.to(self.device, self.dtype), labels.to(self.device, torch.long)
        if not start:
            raise ValueError(f"{self.name} must hold at least one sample, its loader gave none")

    def forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass after pass."""
        while True:
            yield from self

    def _fetch(self) -> Iterator[Any]:
        try:
            yield from self.loader
        except RuntimeError as error:
            if "equal size" not in str(error):
                raise
            raise ValueError(
                f"images of {self.name} must have one size within a batch, got several ({error}); "
                "resize or crop them in the data set's transform"
            ) from error

    def _draw(self, baseline: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        drawn = [baseline(image) for image in images]
        shapes = {tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__ for image in drawn}
        if shapes != {tuple(images.shape[1:])}:
            raise ValueError(
                f"baseline must return images like those of {self.name}, {tuple(images.shape[1:])}, got "
                f"{sorted(map(str, shapes))}; resize or crop in the data set, and let baseline keep the size"
            )
        out = torch.stack(drawn)
        if not out.is_floating_point() or not out.isfinite().all():
            raise ValueError(
                f"baseline must return finite floating images, got {out.dtype} with "
                f"{int((~out.isfinite()).sum())} NaN or infinite values; apply it alone to find the cause"
            )
        return out

    def _check(self, batch: Any, start: int) -> tuple[Tensor, Tensor]:
        name = self.name
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            got = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else "")
            raise ValueError(f"{name} must yield (images, labels), got {got}; adapt it with a small Dataset wrapper")
        images, labels = batch
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(
                f"images of {name} must be floating tensors, got {_kind(images)}; end the data set's transform with "
                "v2.ToImage(), v2.ToDtype(torch.float32, scale=True)"
            )
        if images.ndim != 4:
            raise ValueError(f"images of {name} must be (C, H, W), batches (B, C, H, W), got {tuple(images.shape)}")
        integers = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
        if not integers or labels.ndim != 1:
            raise ValueError(
                f"labels of {name} must be integer class indices (B,), got {_kind(labels)}; turn one-hot labels into "
                "indices with labels.argmax(1)"
            )
        if not (finite := images.isfinite().flatten(1).all(1)).all():
            index = start + int(finite.logical_not().nonzero()[0])
            raise ValueError(f"images of {name} must be finite, got NaN or infinity first in sample {index}; mend it")
        return images, labels


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
