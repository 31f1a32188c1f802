"""Settings of an augmenter: numbers of any library are taken, and what is none is named."""

import json

import numpy as np
import pytest
import torch

from learned_aug import AugmenterConfig


def test_a_number_as_mean_or_std_is_that_of_all_channels():
    assert AugmenterConfig(mean=0.5, std=np.float64(0.25)) == AugmenterConfig(mean=(0.5,), std=(0.25,))
    assert AugmenterConfig(mean=torch.tensor([0.5, 0.25, 0.5])).mean == (0.5, 0.25, 0.5)


def test_numbers_of_numpy_are_those_of_python():
    given = AugmenterConfig(
        size=np.int64(32),
        encoder_size=np.int32(8),
        layers=np.int64(3),
        affine=np.float32(0.25),
        tau_dropout=np.float32(0.5),
    )
    assert given == AugmenterConfig(size=32, encoder_size=8, layers=3, affine=0.25, tau_dropout=0.5)
    assert AugmenterConfig.from_dict(json.loads(json.dumps(given.to_dict()))) == given


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": "123"}, "mean must be 1 or 3 finite numbers, got '123'; give one"),
        ({"std": None}, "std must be 1 or 3 finite numbers, got None"),
        ({"mean": ("0.5",)}, "mean must be 1 or 3 finite numbers"),
        ({"mean": 10**400}, "mean must be 1 or 3 finite numbers"),
        ({"tau_dropout": "0.5"}, r"tau_dropout must be a number in \[0, 1\), got '0.5'"),
        ({"tau_dropout": None}, r"tau_dropout must be a number in \[0, 1\), got None"),
        ({"size": 32.0}, "size must be an integer >= 4, got 32.0"),
        ({"size": True}, "size must be an integer >= 4, got True"),
        ({"layers": "3"}, "layers must be an integer >= 1, got '3'"),
        ({"warp": "0.1"}, "warp must be a strength >= 0"),
        ({"warp": 10**400}, "warp must be a strength >= 0"),
    ],
)
def test_what_is_no_number_of_its_range_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        AugmenterConfig(**changed)
