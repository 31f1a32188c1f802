"""The residual networks of the CIFAR benchmarks."""

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, source, target, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(source, target, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(target, target, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(target), nn.BatchNorm2d(target)
        self.shortcut = nn.Identity()
        if stride > 1 or source != target:
            self.shortcut = nn.Sequential(nn.Conv2d(source, target, 1, stride, bias=False), nn.BatchNorm2d(target))

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


class WideBlock(nn.Module):
    """The same with batch norm and ReLU before each convolution."""

    def __init__(self, source, target, stride):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(source), nn.BatchNorm2d(target)
        self.conv1 = nn.Conv2d(source, target, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(target, target, 3, 1, 1, bias=False)
        self.shortcut = nn.Identity()
        if stride > 1 or source != target:
            self.shortcut = nn.Conv2d(source, target, 1, stride, bias=False)

    def forward(self, x):
        active = F.relu(self.norm1(x))
        shortcut = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + shortcut


def residual_network(depth, width=16, classes=10):
    """For 32x32 images: three stages of `width`, twice and four times that, n blocks each.

    Of depth 6n + 2 it is He et al.'s ResNet for CIFAR; of depth 6n + 4 Zagoruyko and Komodakis's Wide-ResNet, whose
    widening factor is width / 16.
    """
    blocks, rest = divmod(depth, 6)
    if rest == 2:
        block, layers, tail = Block, [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()], []
        source = width
    elif rest == 4:
        block, layers, tail = WideBlock, [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], [nn.BatchNorm2d(4 * width), nn.ReLU()]
        source = 16
    else:
        raise ValueError(f"depth must be 6n + 2 (ResNet) or 6n + 4 (Wide-ResNet), got {depth}")
    for stage in range(3):
        for k in range(blocks):
            target = width << stage
            layers.append(block(source, target, 2 if stage and not k else 1))
            source = target
    return nn.Sequential(*layers, *tail, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(source, classes))
