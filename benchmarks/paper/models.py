"""The classifiers of the paper's tables, by name, and what they share: normalization, channels last, bfloat16.

`PUBLISHED` are the numbers of parameters that their authors state, in millions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from learned_aug.digits import all_conv

sys.path.append(str(Path(__file__).parents[1] / "accuracy"))
from resnets import residual_network


def shaken(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """Multiply x by one factor on the way forward, and its gradient by another on the way back."""
    return backward * x + ((forward - backward) * x).detach()


def per_image(x: Tensor, low: float = 0.0) -> Tensor:
    """Return a number for each image of x, uniform in [low, 1], as (B, 1, 1, 1)."""
    return low + (1 - low) * torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)


class HalfShortcut(nn.Module):
    """Halves the sides by two grids that are a pixel apart, each with half of the channels (Gastaldi)."""

    def __init__(self, source: int, target: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convs = nn.ModuleList(nn.Conv2d(source, target // 2, 1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(target)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        moved = F.pad(x[..., 1:, 1:], (0, 1, 0, 1))
        grids = zip(self.convs, (x, moved), strict=True)
        return self.norm(torch.cat([conv(grid[..., :: self.stride, :: self.stride]) for conv, grid in grids], 1))


class ShakeBlock(nn.Module):
    """Two residual branches, mixed at random for each image (Shake-Shake-Image)."""

    def __init__(self, source: int, target: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(source, target, 3, stride, 1, bias=False),
                nn.BatchNorm2d(target),
                nn.ReLU(),
                nn.Conv2d(target, target, 3, 1, 1, bias=False),
                nn.BatchNorm2d(target),
            )
            for _ in range(2)
        )
        self.shortcut = nn.Identity() if source == target else HalfShortcut(source, target, stride)

    def forward(self, x: Tensor) -> Tensor:
        one, two = (branch(x) for branch in self.branches)
        if not self.training:
            return self.shortcut(x) + (one + two) / 2
        a, b = per_image(one), per_image(one)
        return self.shortcut(x) + shaken(one, a, b) + shaken(two, 1 - a, 1 - b)


def shake_shake(classes: int, depth: int = 26, width: int = 96) -> nn.Module:
    """Build Gastaldi's network of two branches, for 32x32 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)]
    source = 16
    for stage in range(3):
        for k in range((depth - 2) // 6):
            layers.append(ShakeBlock(source, width << stage, 2 if stage and not k else 1))
            source = width << stage
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(source, classes))


class PyramidBlock(nn.Module):
    """A bottleneck whose output has more channels than its input, with ShakeDrop on its residual (Yamada et al.)."""

    def __init__(self, source: int, width: int, stride: int, dropped: float) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(source),
            nn.Conv2d(source, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.added, self.dropped = 4 * width - source, dropped
        self.shortcut = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.residual(x)
        if self.training:  # one gate for the batch, a factor for each image
            gate = (torch.rand((), device=x.device) >= self.dropped).to(residual.dtype)
            a, b = per_image(residual, -1.0), per_image(residual)
            residual = shaken(residual, gate + (1 - gate) * a, gate + (1 - gate) * b)
        else:
            residual = (1 - self.dropped) * residual
        return residual + F.pad(self.shortcut(x), (0, 0, 0, 0, 0, self.added))


def pyramid_net(classes: int, depth: int = 272, alpha: int = 200) -> nn.Module:
    """Build Han et al.'s additive PyramidNet with bottlenecks, for 32x32 images, with ShakeDrop up to 0.5."""
    blocks = (depth - 2) // 9
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)]
    source = 16
    for k in range(3 * blocks):
        width = round(16 + alpha * (k + 1) / (3 * blocks))
        stride = 2 if k in (blocks, 2 * blocks) else 1
        layers.append(PyramidBlock(source, width, stride, 0.5 * (k + 1) / (3 * blocks)))
        source = 4 * width
    layers += [nn.BatchNorm2d(source), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(source, classes)]
    return nn.Sequential(*layers)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "4-layer CNN": lambda classes: all_conv(64, 1, classes),
    "ResNet-56": lambda classes: residual_network(56, classes=classes),
    "Wide-ResNet-28-10": lambda classes: residual_network(28, 160, classes),
    "Shake-Shake 26 2x96d": shake_shake,
    "PyramidNet-272 + ShakeDrop": pyramid_net,
    "ResNet-50": lambda classes: ResNet(Bottleneck, [3, 4, 6, 3], classes),
    "ResNet-200": lambda classes: ResNet(Bottleneck, [3, 24, 36, 3], classes),
}
PUBLISHED = {
    "ResNet-56": 0.85,
    "Wide-ResNet-28-10": 36.5,
    "Shake-Shake 26 2x96d": 26.2,
    "PyramidNet-272 + ShakeDrop": 26.0,
    "ResNet-50": 25.6,
    "ResNet-200": 64.7,
}


class Classifier(nn.Module):
    """A network for images in [0, 1]: normalizes them, and runs in channels last and under autocast.

    Args:
        name: a name of `MODELS`.
        classes: number of classes.
        mean: of the normalization, by channel; None standardizes each image.
        std: likewise.
        amp: whether the network runs in bfloat16 where that pays.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        amp: bool = True,
    ) -> None:
        super().__init__()
        network = MODELS[name](classes)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.network = network.to(memory_format=torch.channels_last)
        self.mean, self.std, self.amp = mean, std, amp

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is None or self.std is None:
            x = F.layer_norm(images, images.shape[1:])
        else:
            mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
            x = (images - mean) / std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            logits: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits.float()
