import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset
from torchvision.transforms import v2

from learned_aug.runtime.rng import derived, forked
from learned_aug.runtime.stream import Stream, check_alike, glance

CPU = torch.device("cpu")
CROP = v2.RandomCrop(4, padding=2)


class Noisy(Dataset):
    """Each image is drawn anew, from each of the global generators."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return torch.rand(1, 4, 4) + random.random() + np.random.rand(), index  # noqa: NPY002


class Iterable(IterableDataset):
    def __iter__(self):
        return (Noisy()[k] for k in range(23))


def loader(**options):
    return DataLoader(Noisy(), 4, **options)


SOURCES = {
    "data set": Noisy,
    "loader": loader,
    "shuffled loader": lambda: loader(shuffle=True),
    "loader with its own generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(3)),
    "loader with workers": lambda: loader(shuffle=True, num_workers=2),
    "loader with persistent workers": lambda: loader(shuffle=True, num_workers=1, persistent_workers=True),
    "iterable": lambda: DataLoader(Iterable(), 4),
}


STREAMS = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while STREAMS:
        STREAMS.pop().close()


def stream(data, *, use="test", seed=0, shuffle=True, **options):
    options = {"batch_size": 4, "device": CPU, "baseline": CROP, **options}
    STREAMS.append(Stream(data, "train", use, seed=seed, shuffle=shuffle, **options))
    return STREAMS[-1]


def take(source, count):
    return [next(source) for _ in range(count)]


def equal(one, two):
    assert len(one) == len(two)
    return all(torch.equal(a, b) for pair in zip(one, two, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("kind", SOURCES)
def test_stream_repeats_and_goes_on_from_any_position_whatever_was_drawn_elsewhere(kind):
    whole = stream(SOURCES[kind]())
    batches = take(whole, 9)  # into the second pass
    for start in (0, 3, 6, 7):
        torch.manual_seed(start)
        random.seed(start)
        np.random.seed(start)  # noqa: NPY002
        other = stream(SOURCES[kind]())
        take(other, start)
        resumed = stream(SOURCES[kind]())
        resumed.position = other.position
        assert equal(take(resumed, 9 - start), batches[start:])
    assert resumed.position == whole.position


@pytest.mark.parametrize("kind", SOURCES)
def test_generators_of_the_user_are_left_as_they_were(kind):
    data = SOURCES[kind]()
    own = getattr(data, "generator", None) or torch.Generator()

    def states():
        return torch.get_rng_state(), own.get_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    before = states()
    take(stream(data), 8)
    after = states()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_seeds_uses_and_passes_draw_differently():
    first = take(stream(Noisy()), 10)
    for other in (stream(Noisy(), seed=1), stream(Noisy(), use="other")):
        assert not torch.equal(next(other)[0], first[0][0])
    assert first[0][1].tolist() != first[5][1].tolist()  # five batches of four make a pass


def test_two_streams_of_one_loader_do_not_disturb_each_other():
    data = SOURCES["loader with persistent workers"]()
    one, two = stream(data, use="one"), stream(data, use="two")
    mixed = [batch for _ in range(4) for batch in (next(one), next(two))]
    assert equal(mixed[::2], take(stream(data, use="one"), 4))
    assert equal(mixed[1::2], take(stream(data, use="two"), 4))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_read_and_draw_what_one_does(world):
    alone = take(stream(Noisy()), 7)
    parts = [take(stream(Noisy(), rank=rank, world=world), 7) for rank in range(world)]
    together = [tuple(torch.cat(column) for column in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)]
    assert equal(together, alone)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_read_a_data_set_once_in_its_order(world):
    alone = stream(Noisy(), shuffle=False, batch_size=6)
    parts = [stream(Noisy(), shuffle=False, batch_size=6, rank=rank, world=world) for rank in range(world)]
    assert sum(part.images for part in parts) == alone.images == 23
    for column in (0, 1):
        whole = torch.cat([batch[column] for batch in alone.once()])
        assert torch.equal(torch.cat([batch[column] for part in parts for batch in part.once()]), whole)
    assert len(list(parts[0].once())) == parts[0].batches


def test_shuffled_batches_are_full_unless_the_data_set_is_smaller():
    data = TensorDataset(torch.zeros(9, 1, 4, 4), torch.zeros(9, dtype=torch.long))
    assert [len(labels) for _, labels in stream(data).once()] == [4, 4]
    assert [len(labels) for _, labels in stream(data, shuffle=False).once()] == [4, 4, 1]
    assert [len(labels) for _, labels in stream(data, batch_size=20).once()] == [9]
    assert [len(labels) for _, labels in stream(data, batch_size=20, rank=1, world=2).once()] == [4]


def test_loader_that_gives_nothing_is_refused():
    with pytest.raises(ValueError, match="got none of its loader"):
        next(stream(DataLoader(Noisy(), 30, drop_last=True)))


def test_images_of_several_sizes_are_refused_with_the_remedy():
    class Sizes(Noisy):
        def __getitem__(self, index):
            return torch.zeros(1, 4, 4 + index), 0

    with pytest.raises(ValueError, match=r"one size.*got several.*crop"):
        next(stream(Sizes()))


def test_fork_gives_back_the_generators_when_its_body_raises():
    def draw():
        with forked() as reseed:
            reseed(1, "x")
            torch.rand(3)
            raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_derived_seeds_depend_on_every_part_of_the_place():
    places = [(0,), (1,), (0, 0), (0, "0"), ("0", 0), (0, "a", 1), (0, "a1")]
    assert len({derived(*place) for place in places}) == len(places)


def test_a_seed_of_numpy_draws_as_python_s():
    assert derived(np.int64(3), "order") == derived(3, "order")


# A look at the data


def test_a_glance_takes_images_from_all_over_a_data_set():
    data = TensorDataset(torch.rand(160, 1, 2, 2), torch.arange(160))
    assert glance(data, "train")[1].tolist() == list(range(0, 160, 10))
    assert glance(DataLoader(data, 7), "train")[1].tolist() == list(range(7))


PLAIN = torch.linspace(0, 1, 48).view(4, 3, 2, 2)
LABELS = torch.arange(4)


@pytest.mark.parametrize("count", [1, 4])
def test_data_of_which_some_are_normalized_are_refused(count):
    plain, normalized = (TensorDataset(x[-count:], torch.zeros(count).long()) for x in (PLAIN, (PLAIN - 0.5) / 0.25))
    for train, val in ((plain, normalized), (DataLoader(normalized), plain)):
        with pytest.raises(
            ValueError, match=r"train and val must be normalized alike, got values in \[.* of val; give all"
        ):
            check_alike(train=train, val=val)
    check_alike(train=normalized, test=normalized)


@pytest.mark.parametrize("other", [PLAIN / 2, PLAIN * 1.2 - 0.1, PLAIN * 1.8 - 0.4])
def test_dark_images_and_those_that_resizing_left_outside_the_range_are_no_normalized_ones(other):
    check_alike(train=TensorDataset(PLAIN, LABELS), val=TensorDataset(other, LABELS))


class Sampled(DistributedSampler):
    """Keeps what it was told."""

    told = ()

    def set_epoch(self, epoch):
        self.told = (*self.told, epoch)
        super().set_epoch(epoch)


class Wrapping:
    """A batch sampler around another one, as accelerate's, whose sampler cannot be set."""

    def __init__(self, batches):
        self.batches = batches

    @property
    def sampler(self):
        return self.batches.sampler

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("batched", [False, True])
def test_a_loader_s_own_sampler_stays_at_its_epoch(batched):
    sampler = Sampled(Noisy(), num_replicas=2, rank=0)
    sampler.set_epoch(7)
    wrapped = Wrapping(BatchSampler(sampler, 4, False))
    options = {"batch_sampler": wrapped} if batched else {"batch_size": 4, "sampler": sampler}
    read = stream(DataLoader(Noisy(), **options))
    one, two = ([labels.tolist() for _, labels in read.once(number)] for number in (0, 1))
    assert one != two
    assert sampler.epoch == 7
    assert sampler.told == (7, 0, 7, 1, 7)
