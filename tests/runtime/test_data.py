import re

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

from learned_aug.runtime.data import hold_out
from learned_aug.runtime.stream import Stream

CPU = torch.device("cpu")
PICTURE = v2.functional.to_pil_image(torch.zeros(3, 4, 4))


class Listed(Dataset):
    """A data set of given items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Iterable(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 4, 4), 0


def batches(data, **options):
    """One pass."""
    return Stream(data, "train", "test", **{"seed": 0, "batch_size": 4, "device": CPU, **options}).once()


def test_dataset_and_loader_give_the_same_batches():
    data = TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6))
    own, theirs = list(batches(data)), list(batches(DataLoader(data, 4)))
    assert [len(labels) for _, labels in own] == [4, 2]
    assert all(torch.equal(a, b) for pair in zip(own, theirs, strict=True) for a, b in zip(*pair, strict=True))


def test_order_repeats_with_the_seed_and_differs_between_passes():
    data = TensorDataset(torch.rand(32, 1, 2, 2), torch.arange(32))
    orders = []
    for seed in (0, 0, 1):
        source = Stream(data, "train", "test", seed=seed, batch_size=32, device=CPU, shuffle=True)
        orders.append([next(source)[1].tolist() for _ in range(2)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == list(range(32))


def test_baseline_is_drawn_for_each_image_alone():
    data = TensorDataset(torch.rand(1, 1, 9, 9).repeat(8, 1, 1, 1), torch.zeros(8, dtype=torch.long))
    ((images, _),) = batches(data, batch_size=8, baseline=v2.RandomCrop(9, padding=4))
    assert len({bytes(i.numpy()) for i in images}) > 3


def test_iterable_data_is_read_through_a_loader():
    ((images, labels),) = batches(DataLoader(Iterable(), 4))
    assert images.shape == (1, 1, 4, 4)
    assert labels.tolist() == [0]


@pytest.mark.parametrize(
    ("data", "error", "expected", "got", "remedy"),
    [
        (Iterable(), TypeError, "map-style", "Iterable", "DataLoader"),
        (5, TypeError, "Dataset", "int", "TensorDataset"),
        (Listed([]), ValueError, "at least one", "empty", "empty"),
        (Listed([(PICTURE, 0)]), TypeError, "floating", "PIL", "ToDtype"),
        (Listed([{"img": torch.zeros(1, 4, 4), "fine": 0}]), ValueError, r"label", "dict of", "wrapper"),
        (Listed([torch.zeros(1, 4, 4)]), ValueError, r"\(images, labels\)", "Tensor", "wrapper"),
        (Listed([(torch.zeros(1, 4, 4), 0, 1)]), ValueError, r"\(images, labels\)", "of 3", "wrapper"),
        (Listed([(torch.zeros(1, 4, 4, dtype=torch.uint8), 0)]), TypeError, "floating", "uint8", "ToDtype"),
        (Listed([(torch.zeros(1, 4, 4, dtype=torch.int64), 0)]), TypeError, "floating", "int64", "255 for 8-bit data"),
        (Listed([(torch.zeros(4, 4), 0)]), ValueError, r"\(C, H, W\)", r"\(1, 4, 4\)", "batches"),
        (Listed([(torch.zeros(1, 4, 4), 0.5)]), ValueError, "integer", "float", "not a value to regress on"),
        (Listed([(torch.zeros(1, 4, 4), torch.eye(3)[0])]), ValueError, "integer", "float", "argmax"),
        (Listed([(torch.zeros(1, 4, 4), 1.0)]), ValueError, "integer", "float", "labels.long()"),
        (Listed([(torch.zeros(1, 4, 4), True)]), ValueError, "integer", "bool", "labels.long()"),
        (Listed([(torch.zeros(1, 4, 4), "cat")]), ValueError, "integer", "str", "map class names"),
        (Listed([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 4), 0)]), ValueError, "one size", "several", "crop"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_expected_got_and_remedy(data, error, expected, got, remedy):
    with pytest.raises(error, match=expected) as raised:
        list(batches(data))
    for part in ("train", got, remedy):
        assert part.replace("\\", "") in str(raised.value)


def test_image_that_is_not_finite_is_named():
    images = torch.zeros(10, 1, 2, 2)
    images[7, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="sample 7"):
        list(batches(TensorDataset(images, torch.zeros(10, dtype=torch.long))))


def test_loader_that_gives_nothing_is_refused():
    data = TensorDataset(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="got none of its loader"):
        list(batches(DataLoader(data, 4, drop_last=True)))


def test_other_errors_of_the_users_data_pass_unchanged():
    class Broken(Listed):
        def __getitem__(self, index):
            raise RuntimeError("theirs")

    with pytest.raises(RuntimeError, match=r"^theirs$"):
        list(batches(Broken([0])))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_integer_labels_of_any_kind_become_class_indices(dtype):
    ((_, labels),) = batches(TensorDataset(torch.zeros(3, 1, 2, 2), torch.arange(3).to(dtype)))
    assert labels.dtype == torch.int64


def test_shuffled_batches_are_full_unless_the_data_set_is_smaller():
    data = TensorDataset(torch.zeros(9, 1, 2, 2), torch.zeros(9, dtype=torch.long))
    assert [len(labels) for _, labels in batches(data, shuffle=True)] == [4, 4]
    assert [len(labels) for _, labels in batches(data)] == [4, 4, 1]
    assert [len(labels) for _, labels in batches(data, shuffle=True, batch_size=20)] == [9]


@pytest.mark.parametrize(
    ("baseline", "got"),
    [
        (v2.RandomCrop(2), r"\(1, 2, 2\)"),
        (v2.ToPILImage(), "Image"),
        (lambda image: image / 0, "NaN or infinite"),
        (lambda image: (image * 255).byte(), "uint8"),
    ],
)
def test_baseline_that_spoils_the_images_is_refused(baseline, got):
    data = TensorDataset(torch.zeros(4, 1, 4, 4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="baseline must return") as raised:
        list(batches(data, baseline=baseline))
    assert re.search(got, str(raised.value))


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "label"), ("pixel_values", "labels")])
def test_samples_that_are_dicts_are_read_by_their_keys(image, label):
    items = [{"id": k, image: torch.full((1, 4, 4), float(k)), label: k} for k in range(4)]
    ((images, labels),) = batches(Listed(items))
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [0, 1, 2, 3]


def unbalanced():
    labels = torch.cat([torch.zeros(1000), torch.ones(20)]).long()
    return TensorDataset(torch.rand(1020, 1, 2, 2), labels[torch.randperm(1020)])


def test_held_out_share_takes_its_part_of_each_class_once_and_repeats_with_its_seed():
    data = unbalanced()
    splits = [hold_out(data, 0.1, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    train, val = splits[0]
    assert sorted(train.indices + val.indices) == list(range(1020))
    assert data.tensors[1][val.indices].bincount().tolist() == [100, 2]
    assert splits[1][1].indices == val.indices != splits[2][1].indices


def test_held_out_share_of_data_without_known_labels_is_random():
    train, val = hold_out(Listed([(torch.zeros(1, 2, 2), k) for k in range(30)]), 0.2, torch.Generator())
    assert (len(train), len(val)) == (24, 6)
    assert val.indices != list(range(6))


def test_labels_of_subsets_and_of_torchvisions_data_sets_are_found():
    class Folder(Listed):
        targets = [0] * 90 + [1] * 10

    data = Subset(Folder([None] * 100), range(50, 100))
    _, val = hold_out(data, 0.5, torch.Generator().manual_seed(0))
    assert sum(Folder.targets[data.indices[k]] for k in val.indices) == 5


@pytest.mark.parametrize(
    ("data", "share", "error", "parts"),
    [
        (unbalanced(), 0.0, ValueError, ["share of train", "got 0.0", "0.1"]),
        (unbalanced(), 1.5, ValueError, ["share of train", "got 1.5", "0.1"]),
        (unbalanced(), 1e-6, ValueError, ["at least one", "1020 images", "give val"]),
        (DataLoader(unbalanced()), 0.1, TypeError, ["map-style", "DataLoader", "data set"]),
    ],
)
def test_shares_that_cannot_be_held_out_are_refused_with_expected_got_and_remedy(data, share, error, parts):
    with pytest.raises(error) as raised:
        hold_out(data, share, torch.Generator())
    assert all(part in str(raised.value) for part in parts)
