"""Whether two of a user's data sets share samples, as far as subsets, concatenations and samplers tell."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from learned_aug.runtime.data import Data

__all__ = ["check_disjoint"]


def check_disjoint(**data: Data) -> None:
    """Refuse data of which two share samples. No sample is read; copies of a data set count as other ones.

    Args:
        data: data by the names that the error gives them, the training data first.

    Raises:
        ValueError: with which share how many.
    """
    found = {name: _samples(given) for name, given in data.items()}
    for (one, mine), (two, theirs) in combinations(found.items(), 2):
        first, second = (d.dataset if isinstance(d, DataLoader) else d for d in (data[one], data[two]))
        shared = sum(int(torch.isin(theirs[base], kept).sum()) for base, kept in mine.items() if base in theirs)
        if shared or data[one] is data[two]:
            counts = {sum(map(len, samples.values())) for samples in (mine, theirs)}
            got = (
                "the same object for both"
                if data[one] is data[two] or (first is second and counts == {shared})
                else f"{shared} images that are in both"
            )
            raise ValueError(
                f"{two} must hold images that are not in {one}, got {got}; split the data, for example with "
                "torch.utils.data.random_split"
            )


def _samples(data: Any) -> dict[int, Tensor]:
    """Return the indices of the samples by the identity of the data set that they belong to; none if unknown."""
    where = _places(data)
    if where is None:
        return {}
    bases, indices = where
    return {int(base): indices[bases == base] for base in bases.unique()}


def _places(data: Any) -> tuple[Tensor, Tensor] | None:
    """Return for each sample its data set's identity and its index there, (N,) each; None if that is unknown.

    An iterable data set, or one without a length, counts as one sample. A sampler's `indices` are those that it gives.
    """
    if isinstance(data, DataLoader):
        places = _places(data.dataset)
        sampler = getattr(data.batch_sampler, "sampler", None) if data.batch_sampler is not None else data.sampler
        if places is None or isinstance(data.dataset, IterableDataset):
            return places
        if isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
            return places
        if isinstance(sampler, WeightedRandomSampler):
            return _taken(places, sampler.weights.nonzero().flatten())
        return _taken(places, getattr(sampler, "indices", None))
    if isinstance(data, Subset):
        places = _places(data.dataset)
        return None if places is None else _taken(places, data.indices)
    if isinstance(data, ConcatDataset):
        parts = [_places(part) for part in data.datasets]
        if None in parts:
            return None
        return torch.cat([p[0] for p in parts if p]), torch.cat([p[1] for p in parts if p])
    try:
        count = 1 if isinstance(data, IterableDataset) else len(data)
    except TypeError:
        count = 1
    return torch.full((count,), id(data), device="cpu"), torch.arange(count, device="cpu")


def _taken(places: tuple[Tensor, Tensor], indices: Any) -> tuple[Tensor, Tensor] | None:
    """Return the places at `indices`; None if they are none of these, which the data's own reading names."""
    if not (hasattr(indices, "__len__") and hasattr(indices, "__getitem__")):  # an iterator would be used up
        return None
    try:
        at = torch.as_tensor(indices if hasattr(indices, "dtype") else list(indices), dtype=torch.long, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    if at.numel() and not -len(places[0]) <= int(at.min()) <= int(at.max()) < len(places[0]):
        return None
    return places[0][at], places[1][at]
