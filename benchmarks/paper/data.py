"""The data sets of the paper's tables: where they lie, how they are split, and their usual augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, ImageFolder
from torchvision.transforms import v2

from learned_aug.runtime.distributed import rank, world_size
from learned_aug.runtime.rng import generator

FLOAT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
Labeled = tuple[Dataset[Any], Tensor]  # (image, label) pairs, the image PIL or uint8 (C, H, W); and all labels


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set."""

    read: Callable[[Path, bool], Labeled]
    """From the root folder and whether the training images are wanted."""
    classes: int
    channels: int
    side: int
    held_out: int
    """Hyper-validation images, of the training images; a fifth of those where there are few."""
    first: bool = False
    """Whether these are the first ones (TANDA on MNIST), or drawn once for all seeds."""
    crop: Sequence[Any] = ()
    """Heuristic augmentation of the image as it is stored, before a policy; `fixed` stands for it in testing."""
    fixed: Sequence[Any] = ()
    shift: Sequence[Any] = ()
    """Heuristic augmentation of the floating image, after a policy."""
    mean: tuple[float, ...] | None = None
    """Of the classifier's normalization; None standardizes each image."""
    std: tuple[float, ...] | None = None

    def transform(self, policy: str = "", *, heuristic: bool = False) -> Any:
        """Return what is done to an image: a policy of torchvision, and the heuristic augmentation."""
        kinds = {
            "": [],
            "AutoAugment": [v2.AutoAugment(v2.AutoAugmentPolicy("cifar10" if self.side <= 64 else "imagenet"))],
            "TrivialAugmentWide": [v2.TrivialAugmentWide()],
        }
        before, after = (self.crop, self.shift) if heuristic else (self.fixed, ())
        return v2.Compose([*before, *kinds[policy], *FLOAT, *after])

    @property
    def baseline(self) -> Any:
        """The heuristic augmentation, from a floating image (C, side, side) to one, as `fit` takes it."""
        return v2.Compose([*self.crop, *self.shift])


def mnist(root: Path, train: bool) -> Labeled:
    data = MNIST(root, train=train)
    return TensorDataset(data.data[:, None], data.targets), data.targets


def cifar(kind: type[CIFAR10], name: str) -> Callable[[Path, bool], Labeled]:
    """Read torchvision's layout, or class folders in ROOT/NAME/train and test."""

    def read(root: Path, train: bool) -> Labeled:
        folder = root / name / ("train" if train else "test")
        if folder.is_dir():
            pairs = ImageFolder(folder, transform=v2.PILToTensor())
            images, labels = torch.stack([image for image, _ in pairs]), torch.tensor(pairs.targets)
        else:
            data = kind(root, train=train)
            images, labels = torch.from_numpy(data.data).movedim(3, 1), torch.tensor(data.targets)
        return TensorDataset(images, labels), labels

    return read


def imagenet(root: Path, train: bool) -> Labeled:
    """Read class folders in ROOT/train and ROOT/val, as torchvision.datasets.ImageNet lays them out."""
    data = ImageFolder(root / ("train" if train else "val"))
    return data, torch.tensor(data.targets)


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR_SHIFT = [v2.RandomCrop(32, padding=4, fill=list(CIFAR_MEAN)), v2.RandomHorizontalFlip()]
INCEPTION = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ColorJitter(32 / 255, 0.5, 0.5, 0.2)]
FIXED = [v2.Resize(256), v2.CenterCrop(224)]
SMALL: dict[str, Any] = {"side": 32, "channels": 3, "held_out": 10_000, "shift": CIFAR_SHIFT}
SMALL |= {"mean": CIFAR_MEAN, "std": CIFAR_STD}
DATA = {
    "mnist": Source(
        read=mnist, classes=10, channels=1, side=28, held_out=5000, first=True, shift=[v2.RandomCrop(28, padding=2)]
    ),
    "cifar10": Source(read=cifar(CIFAR10, "cifar10"), classes=10, **SMALL),
    "cifar100": Source(read=cifar(CIFAR100, "cifar100"), classes=100, **SMALL),
    "imagenet": Source(
        read=imagenet,
        classes=1000,
        channels=3,
        side=224,
        held_out=50_000,
        crop=INCEPTION,
        fixed=FIXED,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}


class Images(Dataset):
    """Some images of a data set in [0, 1]: an index gives one as it is, (index, True) an augmented one."""

    def __init__(self, data: Dataset[Any], places: Sequence[int], plain: Any, augment: Any = None) -> None:
        self.data, self.places, self.plain, self.augment = data, places, plain, augment

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | tuple[int, bool]) -> tuple[Tensor, int]:
        place, augmented = index if isinstance(index, tuple) else (index, False)
        image, label = self.data[self.places[place]]
        return (self.augment if augmented else self.plain)(image), int(label)


def split(source: Source, labels: Tensor, per_class: int | None, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of the labeled training images of a seed, and of the hyper-validation images of all seeds."""
    count = len(labels)
    held = min(source.held_out, count // 5)
    order = torch.arange(count) if source.first else torch.randperm(count, generator=generator(0, "held out"))
    val, pool = order[:held], order[held:]
    pool = pool[torch.randperm(len(pool), generator=generator(seed, "labeled"))]
    if per_class is not None:
        pool = torch.cat([pool[labels[pool] == k][:per_class] for k in range(source.classes)])
    return pool.tolist(), val.tolist()


class Plan:
    """The batches of a whole training: for each image of this process its index, and whether it is augmented.

    A single pass of a loader, so that its workers start once.
    """

    def __init__(self, images: int, batch: int, steps: int, augmented: int, seed: int) -> None:
        self.images, self.steps, self.augmented, self.seed = images, steps, augmented, seed
        self.share = min(batch, images) // world_size()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        step, batch = 0, self.share * world_size()
        for epoch in range(self.steps):
            order = torch.randperm(self.images, generator=generator(self.seed, "order", epoch)).tolist()
            for k in range(0, self.images - batch + 1, batch):
                if step == self.steps:
                    return
                start = k + self.share * rank()
                yield [(place, step < self.augmented) for place in order[start : start + self.share]]
                step += 1
