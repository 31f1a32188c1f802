"""Images in folders, one for each class: found, checked before the work, and read as data sets."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from learned_aug.cli.images import check_headers, image_files, is_hidden, note_sizes, read_image
from learned_aug.runtime.data import hold_out
from learned_aug.runtime.events import OnEvent

__all__ = ["BASELINES", "ImageFolders", "LabeledFiles", "class_roots", "list_folders", "open_folders"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BASELINES = ("crop", "crop-flip", "none")
PARTS = ("train", "val", "test")
# Names that people give to the parts of a data set; only the first of each is taken, the others are named.
ALIASES = {
    **dict.fromkeys(("train", "training", "trainset", "train_set", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "val_set", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "test_set", "tst"), "test"),
}
# What lies beside the images of a data set for segmentation or detection.
KINDS = {"images", "imgs", "masks", "labels", "annotations", "jpegimages", "segmentationclass"}
UNREAD = {".heic", ".heif", ".avif", ".jxl", ".svg", ".dcm", ".nii", ".npy", ".npz", ".raw", ".cr2", ".nef", ".dng"}


class LabeledFiles(Dataset[tuple[Tensor, int]]):
    """Image files with the index of their class.

    Args:
        samples: pairs of path and label.
        classes: names of the classes, in the order of the labels.
        transform: function from a picture to a tensor (C, H, W).
        gray: read one channel.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        classes: Sequence[str],
        transform: Callable[[PIL.Image.Image], Tensor],
        *,
        gray: bool = False,
    ) -> None:
        self.paths = [path for path, _ in samples]
        self.targets = [label for _, label in samples]
        self.classes, self.transform, self.gray = list(classes), transform, gray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_image(self.paths[index], gray=self.gray)), self.targets[index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolders:
    """Data sets of (image, label), the image (C, size, size), normalized."""

    train: LabeledFiles | Subset[Any]
    """Images of the fit."""
    val: LabeledFiles | Subset[Any]
    """The hyper-validation set; empty where it is not needed and there is none."""
    test: LabeledFiles | None
    """None without such a folder."""
    classes: list[str]
    """Names, in the order of the labels."""
    mean: tuple[float, ...]
    """By channel, what was subtracted, in [0, 1]."""
    std: tuple[float, ...]
    """By channel, what was divided by."""
    baseline: Callable[[Tensor], Tensor] | None
    """Augmentation of normalized images that the classifier was trained with; None for none."""


def open_folders(
    root: Path,
    *,
    size: int,
    val: float | None = None,
    gray: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    baseline: str = "crop-flip",
    seed: int = 0,
    needs_val: bool = True,
    say: Callable[[str], None] | None = None,
    on_event: OnEvent | None = None,
) -> ImageFolders:
    """Open train/, val/ and test/ under `root`, each with a folder of images for each class.

    The header of every file is read, so that what is no image is found before the work.

    Args:
        root: folder that holds them; or, with `val`, the folders of the classes.
        size: side of the images, pixels; the shorter side is resized to it, and the middle square is taken.
        val: share of the training images to hold out, where there is no val/.
        gray: read one channel.
        mean: 1 or C numbers, by default those of ImageNet, 0 for gray images.
        std: 1 or C numbers, by default those of ImageNet, 1 for gray images.
        baseline: "crop" (zero padding by an eighth), "crop-flip" (mirrored every second time as well) or "none".
        seed: seed of what is held out.
        needs_val: whether to refuse data without a hyper-validation set.
        say: tells a note on the images' size; without it sizes are not looked at.
        on_event: gets an event for each header.

    Raises:
        ValueError: if there are no such folders, they hold other classes, or a file is no image.
    """
    mean, std = _normalization(mean, std, gray)
    steps = [v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize(mean, std), v2.ToPureTensor()])
    augment = _baseline(baseline, size, mean, std)
    classes, samples = list_folders(root, val=val, needs_val=needs_val)
    sides = check_headers([path for part in samples.values() for path, _ in part], on_event)
    if say is not None:
        note_sizes(sides, size, say)
    data = {part: LabeledFiles(pairs, classes, transform, gray=gray) for part, pairs in samples.items()}
    train: LabeledFiles | Subset[Any] = data["train"]
    held: LabeledFiles | Subset[Any]
    if val is None:
        held = data["val"] if "val" in data else Subset(train, [])
    else:
        train, held = hold_out(train, val, torch.Generator().manual_seed(seed))
    return ImageFolders(
        train=train, val=held, test=data.get("test"), classes=classes, mean=mean, std=std, baseline=augment
    )


def list_folders(
    root: Path, *, val: float | None = None, needs_val: bool = True
) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """Find the images of train/, val/ and test/ under `root`, which are not opened.

    Args:
        root: as :func:`open_folders` takes it.
        val: whether `root` may hold the folders of the classes, or train/ and no val/.
        needs_val: whether to refuse data without a hyper-validation set.

    Returns:
        The names of the classes, in the order of the labels; and for each part pairs of path and label.

    Raises:
        ValueError: if there are no such folders, or they hold other classes.
    """
    listed = {part: _listed(folder) for part, folder in _parts(root, val, needs_val).items()}
    classes = sorted(listed["train"])
    for part, files in listed.items():
        if files.keys() != listed["train"].keys():
            only = {"train": sorted(set(classes) - set(files)), part: sorted(set(files) - set(classes))}
            text = "; ".join(f"only {p}/ has {_named(names)}" for p, names in only.items() if names)
            raise ValueError(f"train/ and {part}/ under {root} must have the same classes: {text}; move or rename them")
    samples = {
        part: [(str(path), label) for label, name in enumerate(classes) for path in files[name]]
        for part, files in listed.items()
    }
    _refuse_shared(samples)
    return classes, samples


def _normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, gray: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return one number for each channel.

    Raises:
        ValueError: if there are too many or too few, or they are not of images in [0, 1].
    """
    channels = 1 if gray else 3
    found = []
    for name, values, default in zip(("mean", "std"), (mean, std), ((0.0,), (1.0,)) if gray else IMAGENET, strict=True):
        numbers = default if values is None else tuple(values)
        if len(numbers) not in (1, channels):
            raise ValueError(
                f"{name} must be 1 or {channels} numbers, got {len(numbers)}; leave it out for the default"
            )
        low = 0.0 if name == "mean" else 1e-6
        if not all(math.isfinite(v) and low <= v <= 1 for v in numbers):
            raise ValueError(
                f"{name} must be of images in [0, 1], so at least {low:g} and at most 1, got {list(numbers)}; divide "
                "those of images in [0, 255] by 255"
            )
        found.append(numbers * channels if len(numbers) == 1 else numbers)
    return found[0], found[1]


def _parts(root: Path, val: float | None, needs_val: bool) -> dict[str, Path]:
    """Find the folders of train, val and test.

    Raises:
        ValueError: if the layout would be read as other classes than it has.
    """
    if not root.is_dir():
        raise ValueError(f"no folder {root}; give one with train/ and val/, or with a folder for each class")
    names = _subfolders(root)
    if parts := _part_names(root, names):
        return _named_parts(root, parts, val, needs_val)
    if inner := [n for n in names if any(ALIASES.get(s.casefold()) == "train" for s in _subfolders(root / n))]:
        if len(inner) == len(names) > 1:
            raise ValueError(
                f"each of the folders {_named(names)} in {root} holds parts of a data set: if they are classes, make "
                f"train/{inner[0]} of {inner[0]}/train and so on; if they are data sets, give one, {root / inner[0]}"
            )
        raise ValueError(f"{root} has no train/, {_named(inner)} does; give --data {root / inner[0]}")
    if val is None:
        _refuse_parts(root, names)
        if not needs_val:
            raise ValueError(f"{root} has no train/ and test/, each with a folder for each class; make them")
        raise ValueError(
            f"{root} has no train/ and val/; make them, or hold out a share with --val 0.1, which the classifier "
            "must then not have been trained on"
        )
    return {"train": root}


def _part_names(root: Path, names: list[str]) -> list[str]:
    """Return which of the folders `names` are parts of a data set, in their order; none where `root` holds classes."""
    parts = [name for name in names if name.casefold() in ALIASES]
    # A folder of such a name that holds images itself, beside others, is a class: trains among vehicles.
    return parts if parts == names or any(_subfolders(root / name) for name in parts) else []


def class_roots(root: Path) -> list[Path]:
    """Return the folders whose folders are read as classes: those of the parts, or `root` itself."""
    if not root.is_dir():
        return []
    return [root / name for name in _part_names(root, _subfolders(root))] or [root]


def _refuse_parts(folder: Path, names: Sequence[str]) -> None:
    """Refuse classes that are parts by a word of their names, such as train_data/ and val2017/, with classes in them.

    Raises:
        ValueError: naming them.
    """
    words = {name: [ALIASES[w] for w in re.findall("[a-z]+", name.casefold()) if w in ALIASES] for name in names}
    found = {name: parts[0] for name, parts in words.items() if parts and _subfolders(folder / name)}
    if len(set(found.values())) > 1:
        wanted = ", ".join(f"{name}/ to {part}/" for name, part in found.items())
        raise ValueError(f"{folder} holds {_named(list(found))}, parts of a data set and no classes; rename {wanted}")


def _named_parts(root: Path, names: list[str], val: float | None, needs_val: bool) -> dict[str, Path]:
    """Return the folders of the parts.

    Raises:
        ValueError: if they have other names, or one is missing or too much.
    """
    if misnamed := [name for name in names if name not in PARTS]:
        wanted = ", ".join(f"{name}/ to {ALIASES[name.casefold()]}/" for name in misnamed)
        raise ValueError(f"{root} holds {_named(names)}, parts of a data set and no classes; rename {wanted}")
    if "train" not in names:
        raise ValueError(f"{root} holds {_named(names)} and no train/; add it, or give the folder that has it")
    if val is not None and "val" in names:
        raise ValueError(f"{root} has a folder val/ already, got val={val} as well; leave one out")
    if needs_val and val is None and "val" not in names:
        raise ValueError(
            f"{root} has train/ and no val/; add it, or hold out a share with --val 0.1, which the classifier must "
            "then not have been trained on"
        )
    return {name: root / name for name in PARTS if name in names}


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class.

    Raises:
        ValueError: if the folders are no classes.
    """
    names = _subfolders(folder)
    if not names:
        what = "holds images itself" if any(map(_is_image, folder.iterdir())) else "has none"
        raise ValueError(f"{folder} must hold a folder of images for each class, and {what}; see --help")
    if len(names) == 1:
        deeper = _subfolders(folder / names[0])
        remedy = f"move {_named(deeper)} up to {folder}" if len(deeper) > 1 else "one class needs no classifier"
        raise ValueError(f"{folder} must hold two class folders or more, got one, {names[0]}/; {remedy}")
    _refuse_parts(folder, names)
    if all(name.casefold() in KINDS for name in names):
        raise ValueError(
            f"{folder} must hold a folder of images for each class, got {_named(names)}, kinds of files; sort the "
            "images by their class"
        )
    below = {name: _subfolders(folder / name) for name in names}
    for name, deeper in below.items():
        if parts := [part for part in deeper if part.casefold() in ALIASES]:
            raise ValueError(
                f"{folder / name} must hold the images of one class, got the parts {_named(parts)} of a data set; make "
                f"{parts[0]}/{name} of {name}/{parts[0]} and so on"
            )
    files = {name: image_files(folder / name) for name in names}
    if empty := [name for name, found in files.items() if not found]:
        others = sorted({p.suffix.lower() for n in empty for p in (folder / n).rglob("*") if p.is_file() and p.suffix})
        got = f", only {', '.join(others[:5])} files" if others else ""
        raise ValueError(
            f"{folder} holds class folders without images, {_named(empty)}{got}; fill or delete them (images are "
            f"{', '.join(IMG_EXTENSIONS)})"
        )
    _warn_of_layout(folder, files, below)
    return files


def _warn_of_layout(folder: Path, files: dict[str, list[Path]], below: dict[str, list[str]]) -> None:
    """Say what a user may not have meant, where it can be meant."""
    deep = [name for name, found in files.items() if below[name] and all(p.parent != folder / name for p in found)]
    if deep:
        warnings.warn(
            f"{folder}: the classes are {_named(list(files))}; images of {_named(deep)} lie in folders below, such as "
            f"{below[deep[0]][0]}/, which are read as one class",
            stacklevel=2,
        )
    beside = sum(map(_is_image, folder.iterdir()))
    if beside:
        warnings.warn(f"{folder}: {beside} images beside the class folders are not read", stacklevel=2)
    kinds = UNREAD | (set(PIL.Image.registered_extensions()) - set(IMG_EXTENSIONS) - {".pdf", ".ps"})
    unread = Counter(
        path.suffix.lower() for name in files for path in (folder / name).rglob("*") if path.suffix.lower() in kinds
    )
    if unread:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in unread.most_common(3))
        warnings.warn(
            f"{folder}: files of kinds that are not read: {counts}; convert them to PNG or JPEG", stacklevel=2
        )


def _refuse_shared(samples: dict[str, list[tuple[str, int]]]) -> None:
    """Refuse one file in two parts, or in two classes of one, as links bring about.

    Raises:
        ValueError: naming both.
    """
    seen: dict[tuple[int, int], tuple[str, str, int]] = {}
    for part, pairs in samples.items():
        for path, label in pairs:
            try:
                found = os.stat(path)
            except OSError:  # a link that leads nowhere, which its header's reading names
                continue
            other, first, kind = seen.setdefault((found.st_dev, found.st_ino), (part, path, label))
            if (other, kind) != (part, label) and found.st_ino:
                what = f"{other}/ and {part}/" if other != part else f"the classes of {part}/"
                raise ValueError(f"{what} must hold different images, {first} and {path} are one file; give another")


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)) if folder.is_dir() else []


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS and not is_hidden(path.name) and path.is_file()


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"{name}/" for name in names[:4]) + more


def _baseline(
    name: str, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Tensor], Tensor] | None:
    if name not in BASELINES:
        raise ValueError(f"baseline must be one of {BASELINES}, got {name!r}")
    if name == "none":
        return None
    black = [-m / s for m, s in zip(mean, std, strict=True)]
    steps = [v2.RandomCrop(size, padding=max(1, size // 8), fill=black)]
    steps += [v2.RandomHorizontalFlip()] if name == "crop-flip" else []
    baseline: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return baseline
