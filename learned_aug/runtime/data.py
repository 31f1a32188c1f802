"""Batches of the user's data: checked, on the model's device, with the baseline augmentation where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from learned_aug.runtime.checks import LARGEST, check_labels, check_targets

__all__ = [
    "LOOKED_AT",
    "Data",
    "apply_baseline",
    "as_pair",
    "check_batch",
    "check_source",
    "collate_errors_named",
    "hold_out",
    "labels_of",
    "spread",
]

Data = Dataset[Any] | DataLoader[Any]

LOOKED_AT = 16  # images of a data set that stand for all of them

# Of samples and batches that are dicts, as Hugging Face's data sets give them.
IMAGE_KEYS = ("image", "img", "pixel_values")
LABEL_KEYS = ("label", "labels")
TO_TENSOR = "end the data set's transform with v2.ToImage(), v2.ToDtype(torch.float32, scale=True)"


def check_source(data: object, name: str) -> None:
    """Refuse what is neither a DataLoader nor a map-style Dataset with at least one sample.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is empty.
    """
    if isinstance(data, DataLoader):
        return
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(
            f"{name} must be a map-style Dataset or a DataLoader, got {type(data).__name__}; "
            "wrap an IterableDataset in a DataLoader, tensors in torch.utils.data.TensorDataset"
        )
    if not len(data):
        raise ValueError(f"{name} must hold at least one sample, got an empty {type(data).__name__}")


def hold_out(train: Data, share: float, generator: torch.Generator) -> tuple[Subset[Any], Subset[Any]]:
    """Split `train` into the rest and `share` of it, at random; by class if its labels can be had without its images.

    Raises:
        TypeError: if `train` is no map-style Dataset.
        ValueError: if `share` is not in (0, 1), or leaves one side empty.
    """
    check_source(train, "train")
    if isinstance(train, DataLoader):
        raise TypeError(
            f"train must be a map-style Dataset where val is a share of it, got a {type(train).__name__}; "
            "pass its data set, or split it yourself"
        )
    if not 0 < share < 1:
        raise ValueError(f"val must be data, or a share of train in (0, 1), got {share}; use 0.1 for a tenth")
    order = torch.randperm(len(train), generator=generator, device="cpu")  # type: ignore[arg-type]
    labels = labels_of(train)
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]  # class after class, each in random order
    # Spread evenly over that order: each class gives its share.
    held = torch.diff((torch.arange(len(order) + 1, dtype=torch.float64, device="cpu") * share).floor()) > 0
    if not held.any() or held.all():
        raise ValueError(f"val={share} of {len(order)} images must leave at least one on either side; give val itself")
    return Subset(train, order[~held].tolist()), Subset(train, order[held].tolist())


def spread(count: int) -> list[int]:
    """Return the indices of the samples that stand for a data set of `count`."""
    return sorted({count * k // LOOKED_AT for k in range(LOOKED_AT)})


def labels_of(data: Any) -> Tensor | None:
    """Return the class indices of a map-style Dataset, as torchvision's and torch's own keep them; else None."""
    if isinstance(data, Subset):
        inner = labels_of(data.dataset)
        return None if inner is None else inner[torch.as_tensor(data.indices, device="cpu")]
    values = data.tensors[-1] if isinstance(data, TensorDataset) else getattr(data, "targets", None)
    if values is None or len(values) != len(data):
        return None
    try:
        labels = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels if labels.ndim == 1 and not labels.is_floating_point() else None


def as_pair(sample: Any, name: str) -> tuple[Any, Any]:
    """Return image and label of a sample, or of a batch: of a pair, or of a dict by its keys.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(sample, Mapping):
        found = [next((key for key in keys if key in sample), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if None not in found:
            return sample[found[0]], sample[found[1]]
        got = f"a dict of {sorted(map(str, sample))}"
    elif isinstance(sample, (tuple, list)):
        if len(sample) == 2:
            return sample[0], sample[1]
        got = f"{type(sample).__name__} of {len(sample)}"
    else:
        got = type(sample).__name__
    raise ValueError(
        f"{name} must yield (images, labels), or dicts with one of {IMAGE_KEYS} and one of {LABEL_KEYS}, got {got}; "
        "adapt it with a small Dataset wrapper"
    )


@contextmanager
def collate_errors_named(name: str) -> Iterator[None]:
    """Say what is wrong with images that torch cannot put into one batch; other errors pass unchanged.

    Raises:
        ValueError: for images of several sizes.
        TypeError: for PIL images, or None.
        RuntimeError: whatever else the body raises.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if isinstance(error, RuntimeError) and "equal size" in str(error):
            raise ValueError(
                f"images of {name} must have one size within a batch, got several ({error}); "
                "resize or crop them in the data set's transform"
            ) from error
        if isinstance(error, TypeError) and "NoneType" in str(error) and "collate" in str(error):
            raise TypeError(
                f"samples of {name} must be (image, label), got None in one of them; leave those without a label out"
            ) from error
        if isinstance(error, TypeError) and "PIL" in str(error) and "collate" in str(error):
            raise TypeError(f"images of {name} must be floating tensors, got PIL images; " + TO_TENSOR) from error
        raise


def check_batch(batch: Any, name: str, start: int, *, soft: bool = False) -> tuple[Tensor, Tensor]:
    """Return images and labels of a batch whose first sample is the `start`-th, checked.

    Args:
        batch: what a loader gives.
        name: of the data, in errors.
        start: index of the first sample.
        soft: whether labels may be probabilities (B, K) as well.

    Raises:
        TypeError: if images are no floating tensor.
        ValueError: if images or labels do not fit, or are not finite.
    """
    images, labels = as_pair(batch, name)
    if not isinstance(images, Tensor) or not images.is_floating_point():
        what = TO_TENSOR
        if isinstance(images, Tensor) and images.dtype not in (torch.uint8, torch.uint16):
            what = f"divide them by {LARGEST}"
        raise TypeError(f"images of {name} must be floating tensors, got {_kind(images)}; {what}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images of {name} must be (C, H, W), batches (B, C, H, W), got {tuple(images.shape)}")
    if soft and isinstance(labels, Tensor) and labels.ndim == 2 and labels.is_floating_point():
        labels = check_targets(labels, images.shape[0])
    else:
        labels = check_labels(labels, images.shape[0], f"labels of {name}")
    if not (finite := images.isfinite().flatten(1).all(1)).all():
        index = start + int(finite.logical_not().nonzero()[0])
        raise ValueError(f"images of {name} must be finite, got NaN or infinity first in sample {index}; fix it")
    return images, labels


def apply_baseline(
    baseline: Callable[[Tensor], Tensor], images: Tensor, name: str, before: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Apply `baseline` to each image alone, so that each gets its own draw; `before` gets the image's index first.

    Raises:
        ValueError: if it changes the size, or gives values that are not finite.
    """
    drawn = []
    for k, image in enumerate(images):
        before(k)
        drawn.append(baseline(image))
    shapes = {tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__ for image in drawn}
    if shapes != {tuple(images.shape[1:])}:
        raise ValueError(
            f"baseline must return images like those of {name}, {tuple(images.shape[1:])}, got "
            f"{sorted(map(str, shapes))}; resize or crop in the data set, and let baseline keep the size"
        )
    out = torch.stack(drawn)
    if not out.is_floating_point() or not out.isfinite().all():
        raise ValueError(
            f"baseline must return finite floating images, got {out.dtype} with "
            f"{int((~out.isfinite()).sum())} NaN or infinite values; apply it alone to find the cause"
        )
    return out


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
