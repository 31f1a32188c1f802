"""The packaged digits and the 4-layer classifier that the demo, the examples, the tests and the benchmarks share."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

__all__ = ["all_conv", "digits"]


def all_conv(width: int = 16, channels: int = 1, classes: int = 10) -> nn.Sequential:
    """Build TANDA's classifier for MNIST.

    It has 5x5 convolutions of stride 2, LeakyReLU 0.2, batch norm from the second on, and one Linear.

    Args:
        width: channels of the first of four layers, doubled by each (TANDA: 64; 16 here, for the CPU).
        channels: number of channels of the 28x28 images.
        classes: number of classes K.
    """
    layers: list[nn.Module] = []
    for k in range(4):
        source, target = channels if k == 0 else width << (k - 1), width << k
        layers += [nn.Conv2d(source, target, 5, stride=2, padding=2), nn.BatchNorm2d(target), nn.LeakyReLU(0.2)]
    del layers[1]  # no batch norm on the first
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * (width << 3), classes))


def digits() -> dict[str, TensorDataset]:
    """Return this package's class-balanced MNIST sample: "train" 600, "val" 2,000, "test" 2,000 images in [0, 1]."""
    with as_file(files("learned_aug") / "data" / "mnist-sample.npz") as path, np.load(path) as arrays:
        return {
            part: TensorDataset(
                torch.from_numpy(arrays[f"{part}_images"])[:, None].float() / 255,
                torch.from_numpy(arrays[f"{part}_labels"]).long(),
            )
            for part in ("train", "val", "test")
        }
