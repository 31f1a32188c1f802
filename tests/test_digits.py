"""The packaged digits, and the classifier that examples, tests and benchmarks share."""

import pytest
import torch
from torch import nn

from learned_aug.digits import all_conv, digits


def test_sample_is_balanced_real_and_disjoint():
    data = digits()
    for part, count in (("train", 600), ("val", 2000), ("test", 2000)):
        images, labels = data[part].tensors
        assert images.shape == (count, 1, 28, 28)
        assert labels.bincount().tolist() == [count // 10] * 10
        assert images.min() == 0
        assert images.max() == 1
    rows = [{bytes(i.numpy()) for i in (data[p].tensors[0] * 255).byte().flatten(1)} for p in ("train", "val", "test")]
    assert len(rows[0] | rows[1] | rows[2]) == sum(map(len, rows))


@pytest.mark.parametrize(("width", "channels", "classes"), [(2, 1, 10), (4, 3, 7)])
def test_classifier_has_four_convolutions_and_ends_in_a_linear(width, channels, classes):
    model = all_conv(width, channels, classes)
    assert model(torch.rand(5, channels, 28, 28)).shape == (5, classes)
    assert sum(isinstance(layer, nn.Conv2d) for layer in model) == 4
    assert isinstance(model[-1], nn.Linear)
