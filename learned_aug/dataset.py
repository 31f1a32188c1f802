"""AugmentedDataset: augments in the worker of a loader, a batch at a time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from learned_aug.transform import IMAGES, LABELS, LearnedAugment, as_type_of, check_companions, image_of

__all__ = ["AugmentedDataset"]


class AugmentedDataset(Dataset[Any]):
    """A map-style data set whose samples come augmented, with their labels, at the speed of batches.

        loader = DataLoader(AugmentedDataset(data, augment), batch_size=128, shuffle=True, num_workers=4)

    ``DataLoader`` asks it for all samples of a batch at once: they are read one by one, their images augmented as one
    batch, each with its own draw, and given back one by one, for any ``collate_fn``.

    A sample may be any structure that torchvision's v2 transforms take, in tuples, lists and dictionaries: masks, boxes
    and key points follow their image; all else passes. PIL images come back as tensors (C, H, W) in uint8, so that they
    can be collated. Images of a batch may differ in size; those of one size are augmented together.

    Randomness comes from torch's global generator, as in transforms: workers and epochs differ, and the `generator` of
    the loader repeats them. Put the wrapper outermost, or under ``Subset``: ``ConcatDataset`` asks for single samples.

    Args:
        dataset: has ``__len__`` and ``__getitem__``, or ``__getitems__``; its own transforms come first, and leave
            images in uint8 or in [0, 1].
        augment: what is done with the samples.
        dtype: of the images; a floating one scales bytes to [0, 1]; by default they keep theirs.

    Raises:
        TypeError: if `dataset` has no length and indices, or `augment` is no :class:`LearnedAugment`; for a sample
            without an image.
        ValueError: for samples that `augment` refuses.
    """

    def __init__(self, dataset: Any, augment: LearnedAugment, *, dtype: torch.dtype | None = None) -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError(
                f"dataset must have a length and indices, got {type(dataset).__name__}; augment what an iterable data "
                "set gives in its collate_fn"
            )
        if not isinstance(augment, LearnedAugment):
            raise TypeError(
                f"augment must be a LearnedAugment, got {type(augment).__name__}; LearnedAugment(augmenter)"
            )
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, got {dtype}; leave it out to keep that of the images")
        self.dataset, self.augment, self.dtype = dataset, augment, dtype

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        """Return what else the data set has, such as its classes.

        Raises:
            AttributeError: if it has no such attribute.
        """
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what the data set has there, such as the transform that timm's loaders set."""
        own = name in ("dataset", "augment", "dtype") or not hasattr(self.dataset, name)
        super().__setattr__(name, value) if own else setattr(self.dataset, name, value)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples of these indices, augmented as a batch."""
        if callable(read := getattr(self.dataset, "__getitems__", None)):
            samples = read(list(indices))
        else:
            samples = [self.dataset[index] for index in indices]
        flats, specs = [], []
        alike: dict[Hashable, list[int]] = {}
        for k, sample in enumerate(samples):
            flat, spec = tree_flatten(sample)
            self.augment.check_inputs(flat)
            flats.append(flat)
            specs.append(spec)
            alike.setdefault(_kind(image_of(flat)), []).append(k)
        for members in alike.values():
            self._augment([flats[k] for k in members])
        return [tree_unflatten(flat, spec) for flat, spec in zip(flats, specs, strict=True)]

    def _augment(self, flats: list[list[Any]]) -> None:
        """Augment samples whose images are of one kind, in place in their lists."""
        augment = self.augment
        images = [image_of(flat) for flat in flats]
        batch = self._stacked(images)
        with torch.no_grad():
            params = augment.make_params([batch])
            out = self._converted(cast(Tensor, augment.transform(batch, params)).as_subclass(Tensor))
            for k, (flat, image) in enumerate(zip(flats, images, strict=True)):
                value = out[k] if len(out) == 1 else out[k].clone()  # which would keep the whole batch in memory
                place = next(i for i, item in enumerate(flat) if item is image)
                # A sample may hold one image twice.
                rest = [i for i, item in enumerate(flat) if i != place and isinstance(item, (*IMAGES, *LABELS))]
                if rest:
                    check_companions(flat, image, tuple(value.shape[-2:]), ())
                    own = augment.params_of(params, k)
                    for i in rest:
                        moved = augment.transform(flat[i], own)
                        flat[i] = self._converted(moved) if isinstance(moved, IMAGES) else moved
                flat[place] = as_type_of(image, value) if isinstance(image, Tensor) else value

    def _converted(self, image: Any) -> Any:
        """Return an image as a tensor of the dtype that was asked for."""
        values: Tensor = tv.pil_to_tensor(image) if isinstance(image, PIL.Image.Image) else image.as_subclass(Tensor)
        if self.dtype is not None and values.dtype != self.dtype:
            as_bytes = values.dtype == torch.uint8
            values = values.to(self.dtype)
            values = values.div_(255) if as_bytes else values
        return tv_tensors.wrap(values, like=image) if isinstance(image, tv_tensors.TVTensor) else values

    def _stacked(self, images: list[Any]) -> Tensor:
        """(B, ..., C, H, W), of the type of the first one if that is one of torchvision's."""
        first = images[0]
        if isinstance(first, PIL.Image.Image):
            self.augment.check_mode(first)
            flat = torch.frombuffer(bytearray(b"".join([image.tobytes() for image in images])), dtype=torch.uint8)
            return flat.view(len(images), first.height, first.width, -1).permute(0, 3, 1, 2)
        batch = torch.stack([image.as_subclass(Tensor) for image in images])
        return cast(Tensor, tv_tensors.wrap(batch, like=first)) if isinstance(first, tv_tensors.TVTensor) else batch


def _kind(image: Any) -> Hashable:
    """Images of one kind can be stacked."""
    if isinstance(image, PIL.Image.Image):
        return image.mode, image.size
    return type(image), image.dtype, image.shape, image.device
