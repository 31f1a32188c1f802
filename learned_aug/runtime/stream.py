"""The batches of a fit: the same for the same seed, from any position, in one process or several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from learned_aug.runtime.checks import SLACK
from learned_aug.runtime.data import (
    LOOKED_AT,
    Data,
    apply_baseline,
    as_pair,
    check_batch,
    check_source,
    collate_errors_named,
    spread,
)
from learned_aug.runtime.rng import forked, generator

__all__ = ["Stream", "check_alike", "glance"]

ROUNDING = 0.1  # how far images in [0, 1] leave that range when they are resized


class Stream:
    """Endless (images, labels) of a data set or loader, pass after pass.

    All that is drawn (the order, the data set's own transforms, the baseline) is a function of the seed, the use, the
    pass and the image's place in it. Data is read in this process, unless a loader brings its workers. A loader's own
    order and workers draw from generators that are seeded for the pass.

    Several processes share each batch: `batch_size` is that of all of them together, of which each reads its part, and
    draws what one process would. A loader gives each process its own part, by a DistributedSampler.

    Args:
        data: data set or loader of (images, labels).
        name: name of the data in errors, "train" or "val".
        use: what the batches are for; each use has draws of its own.
        seed: seed of the fit, from which all draws follow.
        batch_size: images per batch of a Dataset, over all processes; a loader has its own.
        device: where the batches go.
        dtype: floating dtype of the images; by default as they come.
        baseline: applied to each image alone; None leaves them as they come.
        shuffle: whether to draw the order of a Dataset; last images that fill no batch are then left out.
        soft: whether labels may be probabilities (B, K), in place of class indices.
        rank: number of this process, from 0.
        world: number of processes.

    Attributes:
        position: (pass, batches of it given); set it to go on from there.
    """

    def __init__(
        self,
        data: Data,
        name: str,
        use: str,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        baseline: Callable[[Tensor], Tensor] | None = None,
        shuffle: bool = False,
        soft: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_source(data, name)
        self.data, self.name, self.device, self.dtype, self.baseline = data, name, device, dtype, baseline
        self.batch_size, self.shuffle, self.soft, self.rank, self.world = batch_size, shuffle, soft, rank, world
        # What a loader gives differs between processes; of a Dataset, the place in the pass says all.
        self._place = (seed, use, rank) if isinstance(data, DataLoader) else (seed, use)
        self._position = (0, 0)
        self._pass: Generator[tuple[Tensor, Tensor], None, None] | None = None

    @property
    def position(self) -> tuple[int, int]:
        """(pass, batches of it given)."""
        return self._position

    @position.setter
    def position(self, value: tuple[int, int]) -> None:
        self.close()
        self._position = value

    def close(self) -> None:
        """End a loader's workers; the next batch starts them again."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        while True:
            number, done = self._position
            if self._pass is None:
                self._pass = self.once(number, done)
            batch = next(self._pass, None)
            if batch is not None:
                self._position = (number, done + 1)
                return batch
            self.position = (number + 1, 0)

    @property
    def batches(self) -> int:
        """How many make a pass, on this process; 0 if a loader does not say."""
        if not isinstance(self.data, DataLoader):
            return len(self._parts())
        try:
            return len(self.data)
        except TypeError:  # of an IterableDataset
            return 0

    @property
    def images(self) -> int:
        """How many are in a pass, on this process, at most; 0 if a loader does not say."""
        if not isinstance(self.data, DataLoader):
            return sum(map(len, self._parts()))
        return self.batches * (self.data.batch_size or 0)

    def once(self, number: int = 0, skip: int = 0) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield the batches of one pass, without the first `skip`."""
        read = self._read_loader if isinstance(self.data, DataLoader) else self._read_dataset
        with collate_errors_named(self.name):
            for start, images, labels in read(number, skip):
                if self.baseline is not None:
                    images = self._draw(self.baseline, images, number, start)
                yield images.to(self.device, self.dtype), labels.to(self.device)

    def _draw(self, baseline: Callable[[Tensor], Tensor], images: Tensor, number: int, start: int) -> Tensor:
        with forked() as reseed:
            return apply_baseline(
                baseline, images, self.name, lambda k: reseed(*self._place, "baseline", number, start + k)
            )

    def _parts(self) -> list[range]:
        """Return, for each batch of a Dataset's pass, the places of the images that this process reads."""
        samples: int = len(self.data)  # type: ignore[arg-type]
        if not self.shuffle:  # read once, in order: each process has a stretch of the pass
            stretch = range(samples * self.rank // self.world, samples * (self.rank + 1) // self.world)
            size = max(1, self.batch_size // self.world)
            return [stretch[k : k + size] for k in range(0, len(stretch), size)]
        # In training a last batch of one image would break batch norm, and weigh as much as a full one.
        size = min(self.batch_size, samples // self.world * self.world)
        part = size // self.world
        return [range(k + part * self.rank, k + part * (self.rank + 1)) for k in range(0, samples - size + 1, size)]

    def _read_dataset(self, number: int, skip: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield this process's part of the batches from the `skip`-th on, each with the place of its first image."""
        order: Sequence[int] = range(len(self.data))  # type: ignore[arg-type]
        if self.shuffle:
            source = generator(*self._place, "order", number)
            order = torch.randperm(len(order), generator=source, device="cpu").tolist()
        for places in self._parts()[skip:]:
            samples = []
            with forked() as reseed:
                for place in places:
                    reseed(*self._place, "data", number, place)
                    samples.append(as_pair(self.data[order[place]], self.name))  # type: ignore[index]
            yield places.start, *check_batch(default_collate(samples), self.name, places.start, soft=self.soft)

    def _read_loader(self, number: int, skip: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Do as :meth:`_read_dataset`; a loader can only be read from the start of the pass.

        Raises:
            ValueError: if the loader gives no sample.
        """
        # A copy, since workers that persist are one iterator for all who read the loader, and keep the state of their
        # generators from pass to pass.
        loader: DataLoader[Any] = copy.copy(self.data)  # type: ignore[arg-type]
        vars(loader).update(persistent_workers=False, _iterator=None)
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        own = {g for g in (loader.generator, getattr(sampler, "generator", None)) if g is not None}
        start = 0
        with _at_epoch(sampler, number):
            with forked(own) as reseed:
                reseed(*self._place, "loader", number)
                batches = iter(loader)
            for k in count():
                with forked(own) as reseed:
                    reseed(*self._place, "loader", number, k)
                    batch = next(batches, None)
                if batch is None:
                    break
                images, labels = check_batch(batch, self.name, start, soft=self.soft)
                if loader.batch_size is None or loader.collate_fn is not default_collate:
                    images = images.clone()  # which may be the user's own memory, and a model may write to
                if k >= skip:
                    yield start, images, labels
                start += len(images)
        if not start:
            raise ValueError(f"{self.name} must hold at least one sample, got none of its loader; check its sampler")


@contextmanager
def _at_epoch(sampler: Any, number: int) -> Iterator[None]:
    """Set a sampler to the epoch of a pass, and then back to that of the user's own training."""
    if not hasattr(sampler, "set_epoch"):
        yield
        return
    epoch = getattr(sampler, "epoch", None)
    sampler.set_epoch(number)
    try:
        yield
    finally:
        if epoch is not None:
            sampler.set_epoch(epoch)


def glance(data: Data, name: str, seed: int = 0, *, soft: bool = False) -> tuple[Tensor, Tensor]:
    """Return a few (images, labels): spread over a Dataset, the first ones of a loader; `soft` as of a `Stream`."""
    if not isinstance(data, DataLoader):
        check_source(data, name)
        data = Subset(data, spread(len(data)))  # type: ignore[arg-type]
    stream = Stream(data, name, "glance", seed=seed, batch_size=LOOKED_AT, device=torch.device("cpu"), soft=soft)
    batches = stream.once()
    images, labels = next(batches)
    batches.close()
    return images[:LOOKED_AT], labels[:LOOKED_AT]


def check_alike(*, soft: bool = False, **sources: Data) -> dict[str, tuple[Tensor, Tensor]]:
    """Refuse data sets of which some hold images in [0, 1] and others normalized ones.

    Args:
        soft: whether labels may be soft.
        sources: name to data.

    Returns:
        Name to the few (images, labels) that were looked at.

    Raises:
        ValueError: with the value ranges of a few images of each.
    """
    seen = {name: glance(data, name, soft=soft) for name, data in sources.items()}
    ranges = {name: tuple(map(float, images.aminmax())) for name, (images, _) in seen.items()}
    plain = [low >= -ROUNDING and high <= 1 + ROUNDING for low, high in ranges.values()]
    normalized = [low < -SLACK or high > 1 + SLACK for low, high in ranges.values()]
    if any(plain) and any(normalized):
        got = " and ".join(f"[{low:.2f}, {high:.2f}] of {name}" for name, (low, high) in ranges.items())
        raise ValueError(
            f"{' and '.join(ranges)} must be normalized alike, got values in {got}; give all of them the same Normalize"
        )
    return seen
