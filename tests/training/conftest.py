"""What the tests of trainings share."""

import pytest

import learned_aug


@pytest.fixture
def augmenter(data):
    return learned_aug.prior(data["train"].tensors[0][:64])


@pytest.fixture
def batch(data):
    return tuple(t[:40] for t in data["train"].tensors)
