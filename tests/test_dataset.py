"""AugmentedDataset."""

import importlib.util
import json

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, tv_tensors

from learned_aug import AugmentedDataset, Augmenter, AugmenterConfig, LearnedAugment
from tests.test_detection import Scan


def pixels(k, size=32):
    return (np.random.default_rng(k).random((size, size, 3)) * 255).astype("uint8")


class Pictures(Dataset):
    classes = ("a", "b")

    def __init__(self, kind="tuple", n=24, size=32):
        self.kind, self.n, self.size = kind, n, size

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        image = PIL.Image.fromarray(pixels(k, self.size if k % 5 or self.kind != "sizes" else 40))
        if self.kind == "dict":
            boxes = tv_tensors.BoundingBoxes([[8.0, 8, 20, 24]], format="XYXY", canvas_size=(32, 32))
            mask = tv_tensors.Mask(torch.zeros(32, 32, dtype=torch.uint8))
            mask[8:24, 8:20] = 1
            return {"image": image, "mask": mask, "boxes": boxes, "label": k, "name": str(k)}
        if self.kind == "tensor":
            return torch.from_numpy(pixels(k)).permute(2, 0, 1) / 255, k
        if self.kind == "tv":
            return tv_tensors.Image(torch.from_numpy(pixels(k)).permute(2, 0, 1)), k
        return image, k


@pytest.fixture(scope="module")
def augment():
    generator = torch.Generator().manual_seed(0)
    augmenter = Augmenter(AugmenterConfig(affine=0.03, warp=0.03, color=0.1), generator=generator)
    return LearnedAugment(augmenter.calibrate_(torch.rand(24, 3, 32, 32, generator=generator), generator=generator))


@pytest.mark.parametrize("kind", ["tuple", "tensor", "tv"])
def test_a_batch_is_what_the_transform_makes_of_the_stacked_images(augment, kind):
    data = Pictures(kind)
    torch.manual_seed(1)
    samples = AugmentedDataset(data, augment).__getitems__(range(6))
    torch.manual_seed(1)
    plain = [data[k][0] for k in range(6)]
    stack = torch.stack(
        [torch.from_numpy(pixels(k)).permute(2, 0, 1) if kind == "tuple" else plain[k] for k in range(6)]
    )
    expected = augment(stack)
    for k, (image, label) in enumerate(samples):
        assert label == k
        assert torch.equal(image, expected[k])
        assert type(image) is (tv_tensors.Image if kind == "tv" else torch.Tensor)
        assert not torch.equal(image, stack[k])


def test_masks_and_boxes_go_with_their_image(augment):
    torch.manual_seed(1)
    for sample in AugmentedDataset(Pictures("dict"), augment).__getitems__(range(8)):
        i, j = sample["mask"].nonzero(as_tuple=True)
        around = torch.tensor([j.min(), i.min(), j.max() + 1, i.max() + 1]).float()
        assert (sample["boxes"][0] - around).abs().max() <= 1.01
        assert isinstance(sample["boxes"], tv_tensors.BoundingBoxes)
        assert isinstance(sample["name"], str)


def test_sizes_may_differ_and_single_samples_work(augment):
    data = AugmentedDataset(Pictures("sizes"), augment)
    assert {tuple(image.shape) for image, _ in data.__getitems__(range(10))} == {(3, 32, 32), (3, 40, 40)}
    image, label = data[3]
    assert image.dtype == torch.uint8
    assert label == 3
    assert len(data) == 24
    assert data.classes == ("a", "b")
    assert AugmentedDataset(Pictures(), augment, dtype=torch.float32)[0][0].max() <= 1


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_differ_epochs_differ_and_the_seed_repeats(augment, context):
    class_ = Same()

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            AugmentedDataset(class_, augment),
            4,
            num_workers=2,
            multiprocessing_context=context,
            persistent_workers=True,
            generator=generator,
        )
        return torch.cat([x for _ in range(2) for x, _ in loader])

    one, two, other = run(5), run(5), run(6)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert len({bytes(x.numpy().tobytes()) for x in one}) == len(one)  # one image, all draws differ


class Same(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, k):
        return PIL.Image.fromarray(pixels(0)), k


def test_subsets_both_ways(augment):
    inner = AugmentedDataset(Subset(Pictures(), [3, 1, 2]), augment)
    outer = Subset(AugmentedDataset(Pictures(), augment), [3, 1, 2])
    for data in (inner, outer):
        torch.manual_seed(2)
        ((x, y),) = list(DataLoader(data, 3))
        assert y.tolist() == [3, 1, 2]
        assert x.shape == (3, 3, 32, 32)
        torch.manual_seed(2)
        torch.empty((), dtype=torch.int64).random_()  # the loader's base seed
        expected = augment(torch.stack([torch.from_numpy(pixels(k)).permute(2, 0, 1) for k in (3, 1, 2)]))
        assert torch.equal(x, expected)


def test_torchvision_datasets_wrapped_for_v2(augment, tmp_path):
    fake = datasets.FakeData(8, (3, 32, 32), 10)
    x, _ = next(iter(DataLoader(AugmentedDataset(fake, augment), 4)))
    assert x.shape == (4, 3, 32, 32)
    assert x.dtype == torch.uint8
    (tmp_path / "i").mkdir()
    for k in range(3):
        PIL.Image.fromarray(pixels(k)).save(tmp_path / "i" / f"{k}.png")
    notes = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 32, "width": 32} for k in range(3)],
        "annotations": [
            {
                "id": k,
                "image_id": k,
                "bbox": [4, 5, 10, 12],
                "category_id": 1,
                "area": 1,
                "iscrowd": 0,
                "segmentation": [[4, 5, 14, 5, 14, 17, 4, 17]],
            }
            for k in range(3)
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(notes))
    if importlib.util.find_spec("pycocotools") is None:
        pytest.skip("needs pycocotools, which no extra brings")
    coco = datasets.wrap_dataset_for_transforms_v2(
        datasets.CocoDetection(tmp_path / "i", tmp_path / "a.json"), target_keys=("boxes", "labels", "masks")
    )
    for image, target in AugmentedDataset(coco, augment).__getitems__(range(3)):
        assert image.shape == (3, 32, 32)
        assert target["boxes"].shape == (1, 4)
        assert target["masks"].shape == (1, 32, 32)


def test_overridden_hooks_work(augment):
    class Louder(LearnedAugment):
        def transform(self, inpt, params):
            return inpt if not isinstance(inpt, torch.Tensor) else super().transform(inpt, params) * 0 + 7

    assert (AugmentedDataset(Pictures(), Louder(augment.augmenter))[0][0] == 7).all()


def test_boxes_of_a_sample_follow_its_own_draw_and_repeat_with_the_seed(augment):
    data = AugmentedDataset(Pictures("dict"), augment)
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        runs.append([sample["boxes"] for sample in data.__getitems__(range(4))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert len({tuple(boxes[0].tolist()) for boxes in runs[0]}) == 4


def test_without_chance_samples_pass_as_tensors(augment):
    image, label = AugmentedDataset(Pictures(), LearnedAugment(augment.augmenter, p=0.0))[2]
    assert label == 2
    assert torch.equal(image, torch.from_numpy(pixels(2)).permute(2, 0, 1))


def test_bad_data_is_refused(augment):
    with pytest.raises(TypeError, match="length"):
        AugmentedDataset(iter([1]), augment)
    with pytest.raises(TypeError, match="must be a LearnedAugment, got Augmenter"):
        AugmentedDataset([1], augment.augmenter)
    with pytest.raises(TypeError, match=r"floating, got torch\.uint8"):
        AugmentedDataset([1], augment, dtype=torch.uint8)
    with pytest.raises(TypeError, match="expected an image"):
        AugmentedDataset([(1, 2)], augment)[0]
    with pytest.raises(ValueError, match=r"convert\('RGB'\)"):
        AugmentedDataset([PIL.Image.new("L", (8, 8))], augment)[0]
    with pytest.raises(AttributeError, match="nothing"):
        AugmentedDataset(Pictures(), augment).nothing  # noqa: B018


class Pairs(Dataset):
    """A stereo pair, or one image twice, as PIL images or as torchvision's tensors."""

    def __init__(self, kind, twice):
        self.kind, self.twice = kind, twice

    def __len__(self):
        return 4

    def __getitem__(self, k):
        images = [PIL.Image.fromarray(pixels(k + 9 * other)) for other in range(2)]
        if self.kind == "tv":
            images = [tv_tensors.Image(np.array(image).transpose(2, 0, 1)) for image in images]
        return {"left": images[0], "right": images[0 if self.twice else 1], "label": k}


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("kind", ["PIL", "tv"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_both_images_of_a_pair_come_augmented_alike_and_in_the_dtype(augment, kind, twice, dtype):
    pairs = Pairs(kind, twice)
    samples = AugmentedDataset(pairs, augment, dtype=dtype).__getitems__(range(4))
    for k, sample in enumerate(samples):
        left, right = sample["left"], sample["right"]
        assert left.dtype == right.dtype == (dtype or torch.uint8)
        assert torch.equal(left, right) == twice
        assert float(right.max()) > (0.5 if dtype else 1)
        plain = torch.from_numpy(np.array(pairs[k]["right"])) if kind == "PIL" else pairs[k]["right"]
        plain = plain.permute(2, 0, 1) if kind == "PIL" else plain
        assert not torch.allclose(right * (255 if dtype else 1.0), plain.float(), atol=1)
    assert len(next(iter(DataLoader(AugmentedDataset(pairs, augment, dtype=dtype), 4)))["right"]) == 4


def test_what_a_loader_sets_on_it_is_set_on_the_data_set(augment):
    data = Pictures()
    data.transform = None
    wrapped = AugmentedDataset(data, augment)
    wrapped.transform = "theirs"
    assert data.transform == "theirs"
    wrapped.note = "mine"
    assert wrapped.note == "mine"
    assert not hasattr(data, "note")


def test_a_sample_that_is_kept_does_not_keep_its_batch(augment):
    samples = AugmentedDataset(Pictures(), augment).__getitems__(range(8))
    for image, _ in samples:
        assert image.untyped_storage().nbytes() == image.numel() * image.element_size()


class Scans(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        return Scan(torch.full((3, 9, 9), k / 4), meta={"number": k}), k


def test_tensors_with_metadata_keep_them(augment):
    for k, (scan, label) in enumerate(AugmentedDataset(Scans(), augment).__getitems__(range(4))):
        assert isinstance(scan, Scan)
        assert (scan.meta, label) == ({"number": k}, k)
