"""Classifiers by name, their checkpoints, and images in folders: what the command line works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from learned_aug.runtime.data import hold_out

__all__ = ["BASELINES", "ImageFolders", "build_model", "load_checkpoint", "open_folders"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BASELINES = ("crop", "crop-flip", "none")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def build_model(name: str, classes: int, channels: int = 3) -> nn.Module:
    """A fresh classifier of torchvision, such as "resnet18", or of timm, as "timm:resnet18".

    Args:
        name: see there.
        classes: outputs.
        channels: of the images; other than 3, the first convolution is made anew for them.

    Raises:
        ValueError: if there is no such classifier.
        ImportError: for one of timm where that is not installed.
    """
    if name.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"{name} needs timm; install it with pip install timm") from error
        try:
            model: nn.Module = timm.create_model(name.removeprefix("timm:"), num_classes=classes, in_chans=channels)
        except RuntimeError as error:
            raise ValueError(f"timm has no classifier {name!r} ({error}); see timm.list_models()") from error
        return model
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; it has {', '.join(known)}; timm's are timm:NAME")
    model = torchvision.models.get_model(name, num_classes=classes)
    if channels != 3:
        conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        conv.in_channels = channels
        conv.weight = nn.Parameter(conv.weight.new_empty(conv.out_channels, channels, *conv.kernel_size))
        conv.reset_parameters()
    return model


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state_dict of this very architecture, from torch.save or safetensors.

    A dictionary around it, under "state_dict" or "model", and the prefixes of DataParallel and torch.compile are taken
    off. Pickled code is never run.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no state_dict of the model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; give the file that holds the classifier's state_dict")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, by the damage
        text = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} holds no plain state_dict ({text}); save one with torch.save(model.state_dict(), ...)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__} that is no state_dict; save model.state_dict()")
    for prefix in WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    expected = model.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in state.keys() & expected.keys()
        if state[name].shape != expected[name].shape
    ]
    for what, names in (
        ("lacks", sorted(expected.keys() - state.keys())),
        ("has unknown", sorted(state.keys() - expected.keys())),
        ("has", sorted(shapes)),
    ):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            raise ValueError(
                f"{path} does not fit: it {what} {', '.join(names[:2])}{more}; check the model's name, its number of "
                "classes (the folders) and of channels"
            )
    model.load_state_dict(state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolders:
    """Data sets of (image, label), the image (C, size, size), normalized.

    Attributes:
        train: for the fit.
        val: the hyper-validation set.
        test: None without such a folder.
        classes: names, in the order of the labels.
        mean: per channel, of what was subtracted, in [0, 1].
        std: per channel, of what was divided by.
        baseline: on normalized images, as the classifier was trained with; None for none.
    """

    train: ImageFolder | Subset[Any]
    val: ImageFolder | Subset[Any]
    test: ImageFolder | Subset[Any] | None
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    baseline: Callable[[Tensor], Tensor] | None


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
) -> ImageFolders:
    """Open train/, val/ and test/ under `root`, each with a folder of images for each class.

    Args:
        root: that has them; or, with `val`, the folders of the classes.
        size: the shorter side is resized to it, and the middle square is taken; pixels.
        val: share of the training images to hold out, where there is no val/.
        gray: read one channel.
        mean: 1 or C numbers, by default those of ImageNet, 0 for gray images.
        std: by default those of ImageNet, 1 for gray images.
        baseline: "crop" (zero padding by an eighth), "crop-flip" (mirrored every second time as well) or "none".
        seed: of what is held out.

    Raises:
        ValueError: if there are no such folders, or they hold other classes.
    """
    channels = 1 if gray else 3
    defaults = ((0.0,), (1.0,)) if gray else IMAGENET
    mean, std = (
        tuple(default if values is None else values) for default, values in zip(defaults, (mean, std), strict=True)
    )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} must be 1 or {channels} numbers, got {len(values)}; leave it out for the default")
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    transform = v2.Compose(
        [
            *([v2.Grayscale()] if gray else []),  # ImageFolder reads RGB
            v2.Resize(size),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.ToPureTensor(),
        ]
    )

    def read(folder: Path) -> ImageFolder:
        try:
            return ImageFolder(str(folder), transform)
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} must hold a folder of images for each class ({_first_line(error)}); see --help"
            ) from error

    where = root / "train" if (root / "train").is_dir() else root
    if not where.is_dir():
        raise ValueError(f"no folder {where}; give one with train/ and val/, or with a folder for each class")
    folders = {name: read(root / name) for name in ("val", "test") if where != root and (root / name).is_dir()}
    folders["train"] = whole = read(where)
    for name, data in folders.items():
        if data.classes != whole.classes:
            differ = sorted(set(data.classes) ^ set(whole.classes))
            raise ValueError(f"train/ and {name}/ must have the same classes, only one has {differ[:5]}; move them")
    if val is None:
        if "val" not in folders:
            raise ValueError(
                f"{root} has no train/ and val/; make them, or hold out a share with --val 0.1, which the classifier "
                "must then not have been trained on"
            )
        train, held = whole, folders["val"]
    elif "val" in folders:
        raise ValueError(f"{root} has a folder val/ already, got val={val} as well; leave one out")
    else:
        train, held = hold_out(whole, val, torch.Generator().manual_seed(seed))
    return ImageFolders(
        train=train,
        val=held,
        test=folders.get("test"),
        classes=whole.classes,
        mean=mean,
        std=std,
        baseline=_baseline(baseline, size, mean, std),
    )


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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
