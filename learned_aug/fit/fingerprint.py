"""What a fit's checkpoint depends on, by name: settings, data, model and versions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from learned_aug.fit.checkpoint import digest
from learned_aug.fit.data import Data, apply_baseline
from learned_aug.fit.ihvp import Solver
from learned_aug.fit.rng import forked
from learned_aug.fit.stream import Stream

__all__ = ["digest_of", "fingerprint"]

GLANCE = 16  # images of a data set that stand for all of them


def fingerprint(
    model: nn.Module,
    data: dict[str, Data],
    baseline: Callable[[Tensor], Tensor] | None,
    seed: int,
    **settings: Any,
) -> dict[str, str]:
    """Name to value, all as text.

    Args:
        model: all its parameters and buffers count.
        data: by name; the number of images and some of them count.
        baseline: what it makes of some images of "train" counts.
        seed: of what is drawn for that.
        settings: configurations, each of whose fields counts, and plain values.
    """
    out = {"learned-aug": version("learned-aug"), "torch": torch.__version__}
    for name, value in settings.items():
        out.update(_fields(name, value))
    for name, source in data.items():
        images, labels = _glance(source, name, seed)
        out[f"number of {name} images"] = _length(source)
        out[f"{name} images (digest of some)"] = digest(images, labels)
        if name == "train":
            out["baseline (digest of some images)"] = "none"
            if baseline is not None:
                with forked() as reseed:
                    drawn = apply_baseline(baseline, images, name, lambda k: reseed(seed, "glance", k))
                out["baseline (digest of some images)"] = digest(drawn)
    out["model (digest of its state)"] = digest_of(model)
    return out


def digest_of(model: nn.Module) -> str:
    """Of its parameters and buffers."""
    return digest(*(value for value in model.state_dict().values() if isinstance(value, Tensor)))


def _fields(name: str, value: Any) -> dict[str, str]:
    if not dataclasses.is_dataclass(value) or isinstance(value, (type, Solver)):
        return {name: repr(value)}
    parts = (_fields(f"{name}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    return {key: text for part in parts for key, text in part.items()}


def _glance(data: Data, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """A few (images, labels): spread over a Dataset, the first ones of a loader."""
    if not isinstance(data, DataLoader):
        size: int = len(data)  # type: ignore[arg-type]
        data = Subset(data, [size * k // GLANCE for k in range(GLANCE)] if size > GLANCE else range(size))
    batches = Stream(data, name, "glance", seed=seed, batch_size=GLANCE, device=torch.device("cpu")).once()
    images, labels = next(batches)
    return images[:GLANCE], labels[:GLANCE]


def _length(data: Data) -> str:
    try:
        return str(len(data.dataset if isinstance(data, DataLoader) else data))  # type: ignore[arg-type]
    except TypeError:  # of an IterableDataset
        return "unknown"
