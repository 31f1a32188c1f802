"""Data that share samples are refused, however subsets, concatenations and samplers hide it."""

import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from learned_aug.runtime.overlap import check_disjoint

FULL = TensorDataset(torch.rand(100, 2), torch.arange(100))
OTHER = TensorDataset(torch.rand(100, 2), torch.arange(100))


def part(*ends):
    return Subset(FULL, range(*ends))


def loader(*ends):
    return DataLoader(FULL, sampler=SubsetRandomSampler(range(*ends)))


class Own(Sampler):
    """A user's sampler, that reads nothing here."""

    def __init__(self, **known):
        vars(self).update(known)

    def __iter__(self):
        raise AssertionError("samplers are not to be read")


def weighted(*ends):
    weights = torch.zeros(100)
    weights[slice(*ends)] = 1
    return DataLoader(FULL, sampler=WeightedRandomSampler(weights, 8))


class Endless(IterableDataset):
    def __iter__(self):
        yield from OTHER


ENDLESS = Endless()
UNKNOWN = DataLoader(FULL, sampler=Own())
SHARED = {
    "a part of all": (FULL, part(32), "32 images"),
    "nested subsets": (Subset(part(80), range(60)), part(40, 96), "20 images"),
    "negative indices": (part(10), Subset(FULL, [-100, -99, -1]), "2 images"),
    "a concatenation": (ConcatDataset([OTHER, part(50)]), part(45, 60), "5 images"),
    "a sampler": (loader(64), part(60, 80), "4 images"),
    "two samplers": (loader(64), loader(60, 80), "4 images"),
    "a sampler of the user's own": (DataLoader(FULL, sampler=Own(indices=range(9))), part(5, 80), "4 images"),
    "a sampler by weight": (weighted(9), part(5, 80), "4 images"),
    "the same loader of an unknown order": (UNKNOWN, UNKNOWN, "the same object"),
    "the same": (FULL, FULL, "the same object"),
    "the same in loaders": (DataLoader(FULL, shuffle=True), DataLoader(FULL), "the same object"),
    "the same stream": (ENDLESS, DataLoader(ENDLESS), "the same object"),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_samples_are_refused_with_their_number(name):
    one, two, message = SHARED[name]
    with pytest.raises(ValueError, match=f"val must hold images that are not in train, got ({message})"):
        check_disjoint(train=one, val=two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (part(50), part(50, 100)),
        (loader(50), loader(50, 100)),
        (FULL, OTHER),
        (ConcatDataset([part(50), OTHER]), part(50, 60)),
        (DataLoader(FULL, batch_sampler=[[0, 1]]), DataLoader(FULL, batch_sampler=[[2, 3]])),
        (DataLoader(FULL, sampler=Own(indices=range(9))), part(9, 80)),
        (DataLoader(FULL, sampler=Own(indices=iter("ab"))), DataLoader(FULL, sampler=Own(indices=["a"]))),
        (weighted(9), weighted(9, 20)),
        (UNKNOWN, FULL),
        (part(0), FULL),
        (FULL, Subset(FULL, [1000])),
    ],
)
def test_disjoint_data_and_those_of_an_unknown_order_pass_unread(one, two):
    check_disjoint(train=one, val=two)
