"""The cells of the panel: data, images per class, classifier and schedule, fixed once for all arms."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from resnets import residual_network
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from learned_aug import RetrainConfig
from learned_aug.cli.folder import list_folders
from learned_aug.cli.images import read_image
from learned_aug.digits import all_conv
from learned_aug.weights.files import write_atomic

MODELS = "resnet8", "all-conv", "wrn-16-2"
HELD_OUT = 5000  # hyper-validation images at most, of those that are not trained on


@dataclasses.dataclass(frozen=True)
class Cell:
    """One column of the panel."""

    data: str
    """A folder of class folders below the root, train/, val/ (or none) and test/; or "mnist", torchvision's layout; or
    "color", digits x red or blue ink on random gray, made of MNIST."""
    per_class: int
    """Labeled training images of each class, at most; another choice for each seed."""
    steps: int = 1000
    batch_size: int = 64
    lr: float = 0.1
    flip: bool = False
    """Whether a mirror image keeps its label; if so all arms flip at random. All arms crop."""
    model: str = "resnet8"
    """"resnet8" or "all-conv", both of width 16, or "wrn-16-2", a Wide-ResNet."""
    side: int = 32
    gray: bool = False

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        for name, least in (("per_class", 1), ("steps", 1), ("batch_size", 2), ("side", 8)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be a number above 0, got {self.lr}")

    @property
    def pad(self) -> int:
        """Pixels by which crops move."""
        return max(1, self.side // 8 if self.side > 28 else 2)

    @property
    def baseline(self) -> v2.Transform:
        """What all arms do to single images."""
        crop = v2.RandomCrop(self.side, padding=self.pad)
        return v2.Compose([crop, v2.RandomHorizontalFlip()]) if self.flip else crop

    @property
    def schedule(self) -> RetrainConfig:
        """The schedule of its trainings."""
        return RetrainConfig(steps=self.steps, batch_size=self.batch_size, lr=self.lr)


CELLS = {
    "mnist-50": Cell("mnist", 50, batch_size=50, lr=0.05, model="all-conv", side=28, gray=True),
    "cifar10-100": Cell("cifar10", 100, steps=2000, flip=True),
    "cifar10-500": Cell("cifar10", 500, steps=4000, flip=True),
    "cifar10-1000": Cell("cifar10", 1000, steps=4000, flip=True),
    "sign-10": Cell("sign-digits", 10, flip=True),
    "omniglot": Cell("omniglot", 10, steps=2000, gray=True),
    "cells-30": Cell("bccd-cells", 30, flip=True),
    "color-10": Cell("color", 10),
    "color-60": Cell("color", 60),
}
# Is the gain a property of a tiny network? And with how many labels does a choice that reads some of them pay?
BESIDE = {
    "color-10-wrn": dataclasses.replace(CELLS["color-10"], model="wrn-16-2"),
    "sign-10-wrn": dataclasses.replace(CELLS["sign-10"], model="wrn-16-2"),
    "color-200": Cell("color", 200),
    "color-500": Cell("color", 500),
}


class Pixels(Dataset):
    """Images (N, C, H, W) in uint8, read as floats in [0, 1]; cropped and flipped at random if `pad` or `flip` say so.

    An index may be a list of them, for a whole batch at once.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, pad: int = 0, flip: bool = False) -> None:
        self.images, self.labels, self.pad, self.flip = images, labels, pad, flip
        self.padded = nn.functional.pad(images, (pad,) * 4)

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: Tensor) -> Pixels:
        """Some of the images."""
        return Pixels(self.images[chosen], self.labels[chosen], pad=self.pad, flip=self.flip)

    def plain(self) -> Pixels:
        """The images as they are."""
        return Pixels(self.images, self.labels)

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(index)
        rows = at.reshape(-1)
        height, width = self.images.shape[-2:]
        down, across = torch.randint(2 * self.pad + 1, (2, len(rows), 1))
        columns = torch.arange(width).expand(len(rows), -1)
        if self.flip:
            columns = torch.where(torch.rand(len(rows), 1) < 0.5, width - 1 - columns, columns)
        y, x = (down + torch.arange(height))[:, None, :, None], (across + columns)[:, None, None, :]
        channels = torch.arange(self.images.shape[1])[None, :, None, None]
        images = self.padded[rows[:, None, None, None], channels, y, x].float() / 255
        return images.reshape(*at.shape, *images.shape[1:]), self.labels[at]


def batches(data: Pixels, size: int, *, shuffle: bool) -> DataLoader:
    """A loader that reads a batch at once; if it shuffles, all batches are full."""
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    return DataLoader(data, sampler=BatchSampler(order, min(size, len(data)), drop_last=shuffle), batch_size=None)


@dataclasses.dataclass(frozen=True)
class Fold:
    """The images of one seed: labeled ones, hyper-validation and test images."""

    train: Pixels
    val: Pixels
    test: Pixels
    classes: int

    def model(self, kind: str) -> nn.Module:
        """A fresh classifier, its weights drawn from the global generator."""
        channels = self.train.images.shape[1]
        if kind == "all-conv":
            return BFloat16(all_conv(16, channels, self.classes))
        depth, width = (16, 32) if kind == "wrn-16-2" else (8, 16)
        network = residual_network(depth, width, self.classes)
        if channels != 3:
            network[0] = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        return BFloat16(network)


class BFloat16(nn.Module):
    """A classifier that runs under autocast, which saves a third of the time of these trainings on a CPU."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.model(images.contiguous(memory_format=torch.channels_last))
        return logits.float()


def fold(root: Path, cell: Cell, seed: int) -> Fold:
    """Read a cell's data and take the labeled images of a seed from its training part.

    Raises:
        ValueError: if there are none, or the folder is no data set.
    """
    parts = load(root, cell)
    images, labels = parts["train"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = int(labels.max()) + 1
    chosen = torch.cat([order[labels[order] == k][: cell.per_class] for k in range(classes)])
    if len(chosen) < 2:
        raise ValueError(f"{cell.data} must have two labeled images or more, got {len(chosen)}")
    taken = torch.zeros(len(labels), dtype=torch.bool)
    taken[chosen] = True
    rest = order[~taken[order]][:HELD_OUT]
    val = images[rest], labels[rest]
    if "val" in parts:
        val = torch.cat([val[0], parts["val"][0]]), torch.cat([val[1], parts["val"][1]])
    train = Pixels(images[chosen], labels[chosen], pad=cell.pad, flip=cell.flip)
    return Fold(train, Pixels(*val), Pixels(*parts["test"]), classes)


_read: dict[tuple[Path, str, int, bool], dict[str, tuple[Tensor, Tensor]]] = {}


def load(root: Path, cell: Cell) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (N, C, side, side) in uint8 and labels of each part; a copy beside the data makes the next start fast."""
    key = root, cell.data, cell.side, cell.gray
    if key in _read:
        return _read[key]
    _read.clear()  # one data set at a time
    if cell.data in ("mnist", "color"):
        read = {p: MNIST(root, train=p == "train") for p in ("train", "test")}
        parts = {p: (d.data[:, None], d.targets) for p, d in read.items()}
        if cell.data == "color":
            parts = {p: colored(*pair, seed) for seed, (p, pair) in enumerate(parts.items(), 1)}
    else:
        parts = folder(root / cell.data, cell.side, gray=cell.gray)
    _read[key] = parts
    return parts


def folder(path: Path, side: int, *, gray: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Read class folders in train/, val/ (or none) and test/, each image stretched to a square.

    Raises:
        ValueError: if there are no such folders, their classes differ, or a file is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which say of the layout what may not be meant
        _, samples = list_folders(path, needs_val=False)
    if "test" not in samples:
        raise ValueError(f"{path} has no test/, on which arms are compared; add it")
    cache = path / f".panel-{side}{'-gray' if gray else ''}.npz"
    state = hashlib.sha256()
    for part, pairs in samples.items():
        for file, label in pairs:
            found = os.stat(file)
            state.update(f"{part} {os.path.relpath(file, path)} {label} {found.st_size} {found.st_mtime_ns}\n".encode())
    arrays = _cached(cache, state.hexdigest())
    if arrays is None:
        arrays = {"state": np.array(state.hexdigest())}
        for part, pairs in samples.items():
            arrays[f"{part}_images"] = np.stack([_square(file, side, gray=gray) for file, _ in pairs])
            arrays[f"{part}_labels"] = np.array([label for _, label in pairs])
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with contextlib.suppress(OSError):  # of a folder that cannot be written
            write_atomic(cache, buffer.getvalue())
    return {p: (torch.from_numpy(arrays[f"{p}_images"]), torch.from_numpy(arrays[f"{p}_labels"])) for p in samples}


def _cached(cache: Path, state: str) -> dict[str, np.ndarray] | None:
    """The arrays of the copy beside the data, where it is of the files as they are."""
    try:
        with np.load(cache) as arrays:
            return dict(arrays) if str(arrays["state"]) == state else None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):  # none, of an earlier form, or cut off
        return None


def _square(file: str, side: int, *, gray: bool) -> np.ndarray:
    square = read_image(file, gray=gray).resize((side, side), Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(square)).transpose(2, 0, 1)


def colored(digits: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Digits (N, 1, 28, 28) in red or blue ink on random gray, (N, 3, 32, 32); the class is 10 x red + the digit."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(digits), 1, 1, 1, generator=generator)

    ink_share = nn.functional.pad(digits, (2,) * 4).float() / 255
    paper, bright, dark, darker = uniform(0, 1), uniform(0.6, 1), uniform(0, 0.3), uniform(0, 0.3)
    red = torch.randint(2, (len(digits), 1, 1, 1), generator=generator)
    ink = torch.where(red == 1, torch.cat([bright, dark, darker], 1), torch.cat([dark, darker, bright], 1))
    images = ink_share * ink + (1 - ink_share) * paper
    return (255 * images).round().to(torch.uint8), labels + 10 * red.flatten()
