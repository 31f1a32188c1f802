"""What the tests of trainings share."""

import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig


@pytest.fixture
def augmenter(data):
    generator = torch.Generator().manual_seed(0)
    network = Augmenter(AugmenterConfig(channels=1, size=28), generator=generator)
    return network.calibrate_(data["train"].tensors[0][:64], warp=0.0625, generator=generator)


@pytest.fixture
def batch(data):
    return tuple(t[:40] for t in data["train"].tensors)
