"""The data and the classifiers that a command works on: options, checks before the work, training and reading."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from learned_aug.cli.classifier import build_model, check_model
from learned_aug.cli.folder import BASELINES, ImageFolders, class_roots, open_folders
from learned_aug.cli.main import note
from learned_aug.influence.head import HeadTap, borrowed
from learned_aug.influence.layer import find_head, first_tensor
from learned_aug.runtime.events import Event, ProgressBars
from learned_aug.runtime.lock import FolderLock, lock_folder
from learned_aug.training.retrain import RetrainConfig, retrain
from learned_aug.training.steer import SteeredDraws

__all__ = [
    "Work",
    "add_data_arguments",
    "check_device",
    "check_head",
    "keep_folder",
    "refuse_among_classes",
    "refuse_foreign",
]

SPARE = 32 * 2**20  # bytes that must be free beside a classifier's: weights, pictures, figures


def add_data_arguments(group: Any) -> None:
    """Add the options that say which images are read, and how."""
    group.add_argument("--data", type=Path, required=True, metavar="DIR", help="with train/, val/ and maybe test/")
    group.add_argument("--val", type=float, metavar="SHARE", help="hold out a share of train/ where there is no val/")
    text = "side of the images, pixels: that of the classifier's training (%(default)s)"
    group.add_argument("--size", metavar="PIXELS", type=int, default=224, help=text)
    group.add_argument("--gray", action="store_true", help="read one channel")
    text = "of the classifier's normalization, for images in [0, 1] (ImageNet's; 0 if gray)"
    group.add_argument("--mean", metavar="X", type=float, nargs="+", help=text)
    group.add_argument("--std", metavar="X", type=float, nargs="+", help="the same (ImageNet's; 1 if gray)")
    group.add_argument("--baseline", choices=BASELINES, default="crop-flip", help="of its training (%(default)s)")
    group.add_argument("--workers", metavar="N", type=int, default=0, help="processes that read images (%(default)s)")


def refuse_among_classes(data: Path, folder: Path | None) -> None:
    """Refuse a folder for results that would be read as a class of images, before it is made.

    Raises:
        ValueError: if `folder` is one whose folders are the classes, or lies anywhere in it.
    """
    if folder is not None and any(folder.resolve().is_relative_to(root.resolve()) for root in class_roots(data)):
        raise ValueError(f"{folder} lies among the class folders of {data}; give a folder outside of it for results")


def refuse_foreign(out: Path, mark: str, command: str) -> None:
    """Refuse a folder whose augmenter/ another command or a person made, for the new one takes its place.

    Args:
        out: folder for results.
        mark: file that the command leaves beside its augmenter/; fit.json of a fit goes before compare.txt.
        command: what the command does, as the message calls it.

    Raises:
        ValueError: if it has such a folder.
    """
    own = "fit.json" if (out / "fit.json").exists() else "compare.txt"
    if (out / "augmenter").exists() and not (own == mark and (out / mark).exists()):
        raise ValueError(f"{out} holds an augmenter/ that no {command} wrote; give another folder as --out")


def keep_folder(folder: Path, needed: int = 0) -> FolderLock:
    """Make a folder, keep it for this process, and see that it can be written, before the work.

    Args:
        folder: folder for results.
        needed: bytes of what will be written, beside some pictures.

    Raises:
        OSError: if it cannot be made or written, is nearly full, or another process works in it.
    """
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder} is a file; give a folder for results")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    if (free := shutil.disk_usage(folder).free) < needed + SPARE:
        raise OSError(
            f"{folder} has {free / 2**20:.0f} MiB free, {(needed + SPARE) / 2**20:.0f} MiB are needed; free space, or "
            "give another folder"
        )
    return lock_folder(folder)


def check_device(name: str) -> None:
    """Refuse a device that torch does not have.

    Raises:
        ValueError: with the beginning of torch's reason.
    """
    try:
        torch.zeros(1, device=name).item()  # reading it back is what "meta" cannot
    except Exception as error:  # of many types, by the device
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"--device must be one that torch has here, got {name} ({text}); give cpu") from error


def check_head(model: nn.Module, head: str | None, *, channels: int, size: int) -> None:
    """See before the work that the logits are those of the model's last Linear.

    Raises:
        ValueError: if they are not, or there is none.
    """
    images = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0), device="cpu")
    with torch.no_grad(), borrowed(model), HeadTap(model, find_head(model, head)) as tap:
        tap(images.to(next(model.parameters()).device))


class Work:
    """Images in folders, and classifiers that are trained on them from the same start.

    Args:
        args: options of :func:`add_data_arguments`, and model, seed, device and batch_size.
        schedule: settings of the trainings; None where nothing is trained.
        needs_val: whether to refuse data without a hyper-validation set.
    """

    def __init__(self, args: argparse.Namespace, schedule: RetrainConfig | None, *, needs_val: bool = True) -> None:
        if args.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {args.workers}")
        if args.size < 1:
            raise ValueError(f"--size must be the side of the images in pixels, got {args.size}; give one such as 224")
        check_device(args.device)
        self.args, self.schedule = args, schedule
        self.channels = 1 if args.gray else 3
        with ProgressBars() as bars:
            self.data: ImageFolders = open_folders(
                args.data,
                size=args.size,
                val=args.val,
                gray=args.gray,
                mean=args.mean,
                std=args.std,
                baseline=args.baseline,
                seed=args.seed,
                needs_val=needs_val,
                say=note,
                on_event=bars,
            )

    def fresh(self) -> nn.Module:
        """Build the classifier, with the same first weights each time."""
        torch.manual_seed(self.args.seed)
        return build_model(self.args.model, len(self.data.classes), self.channels)

    def check(self, model: nn.Module) -> None:
        """See that the classifier takes the images.

        Raises:
            ValueError: if it does not.
        """
        args = self.args
        check_model(model, args.model, classes=len(self.data.classes), channels=self.channels, size=args.size)

    def trained(self, arm: str, augment: Callable[[nn.Module], SteeredDraws | None] = lambda model: None) -> nn.Module:
        """Train the classifier from that start, on the same order of images.

        Args:
            arm: name for the progress bar.
            augment: function from the fresh classifier to what augments its batches; None for the baseline alone.
        """
        model = self.fresh().to(self.args.device)
        order = torch.Generator().manual_seed(self.args.seed)
        data: Dataset[Any] | DataLoader[Any] = self.data.train
        if self.args.workers:
            size = min(RetrainConfig().batch_size, len(self.data.train))
            workers = self.args.workers
            data = DataLoader(self.data.train, size, shuffle=True, drop_last=True, num_workers=workers, generator=order)
        with ProgressBars() as bars:
            retrain(
                model,
                data,
                self.schedule,
                baseline=self.data.baseline,
                augment=augment(model),
                seed=self.args.seed,
                on_event=lambda event: bars(dataclasses.replace(event, stage=f"train: {arm}")),
            )
        return model.eval()

    @torch.no_grad()
    def predict(self, model: nn.Module, data: Dataset[Any], stage: str) -> tuple[Tensor, Tensor]:
        """Return predicted classes and labels, (N,) each, in the order of the data, with a bar called `stage`."""
        model.eval()
        loader = DataLoader(data, self.args.batch_size, num_workers=self.args.workers)
        predicted, labels = [], []
        with ProgressBars() as bars:
            for step, (images, part) in enumerate(loader, 1):
                predicted.append(first_tensor(model(images.to(self.args.device))).argmax(1).cpu())
                labels.append(part)
                bars(Event(stage, step, len(loader)))
        return torch.cat(predicted), torch.cat(labels)
