"""The pipelines of torchvision's detection references, rebuilt, with LearnedAugment in them: all of 120 forms."""

import importlib.util
import itertools

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from learned_aug import LearnedAugment, prior

SIDE = 48
FILL = {tv_tensors.Image: (123, 117, 104), tv_tensors.Video: (123, 117, 104), "others": 0}
# As references/detection/presets.py has them, at a size for tests.
PRESETS = {
    "hflip": lambda: [v2.RandomHorizontalFlip(p=0.5)],
    "lsj": lambda: [
        v2.ScaleJitter(target_size=(SIDE, SIDE), antialias=True),
        v2.FixedSizeCrop(size=(SIDE, SIDE), fill=FILL) if hasattr(v2, "FixedSizeCrop") else v2.CenterCrop(SIDE),
        v2.RandomHorizontalFlip(p=0.5),
    ],
    "multiscale": lambda: [
        v2.RandomShortestSize(min_size=(40, 48, 56), max_size=80),
        v2.RandomHorizontalFlip(p=0.5),
    ],
    "ssd": lambda: [
        v2.RandomPhotometricDistort(),
        v2.RandomZoomOut(fill=FILL),
        v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(p=0.5),
    ],
    "ssdlite": lambda: [v2.RandomIoUCrop(), v2.RandomHorizontalFlip(p=0.5)],
}
BACKENDS = ("pil", "tensor", "tv_tensor", "batch of one")
CONTAINERS = ("dict", "tuple")
OBJECTS = (0, 1, 4)
CASES = [*itertools.product(PRESETS, BACKENDS, CONTAINERS, OBJECTS)]


@pytest.fixture(scope="module")
def augmenter():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 5, 5, generator=generator)
    return prior(torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear"))


def target_of(objects, size):
    height, width = size
    left, top = torch.rand(2, objects) * 20
    boxes = torch.stack([left, top, left + 12, top + 9], 1).reshape(-1, 4)
    masks = torch.zeros(objects, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.arange(objects),
        "image_id": 7,
    }


def image_of(backend, size):
    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), size=size, mode="bilinear")[0]
    pixels = (pixels * 255).to(torch.uint8)
    if backend == "pil":
        return v2.functional.to_pil_image(pixels)
    return {"tensor": pixels, "tv_tensor": tv_tensors.Image(pixels)}.get(backend, tv_tensors.Image(pixels[None]))


@pytest.mark.parametrize(("preset", "backend", "container", "objects"), CASES)
def test_detection_pipelines_take_it_with_boxes_and_masks(augmenter, preset, backend, container, objects):
    torch.manual_seed(len(preset) + objects)
    size = (50, 60)
    image, target = image_of(backend, size), target_of(objects, size)
    steps = [*PRESETS[preset](), LearnedAugment(augmenter), *FINISH[backend], v2.SanitizeBoundingBoxes()]
    pipeline = v2.Compose(steps)
    if container == "dict":
        out = pipeline({"image": image, **target})
        new = out.pop("image")
    else:
        new, out = pipeline(image, target)
    height, width = new.shape[-2:]
    assert new.dtype == torch.float32
    assert 0 <= new.min() <= new.max() <= 1
    assert out["image_id"] == 7
    kept = len(out["labels"])
    assert out["boxes"].shape == (kept, 4)
    assert out["masks"].shape == (kept, height, width)
    assert set(out["labels"].tolist()) <= set(range(objects))
    assert out["boxes"].canvas_size == (height, width)
    # A box is the one around its mask, but for what lies at the border or is a pixel or two wide.
    for box, mask in zip(out["boxes"].tolist(), out["masks"], strict=True):
        y, x = mask.nonzero().unbind(1)
        if len(x) > 40 and x.min() > 1 and y.min() > 1 and x.max() < width - 2 and y.max() < height - 2:
            around = [float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1]
            assert max(abs(a - b) for a, b in zip(box, around, strict=True)) < 3


FINISH = {
    backend: [*([v2.PILToTensor()] if backend == "pil" else []), v2.ToDtype(torch.float32, scale=True)]
    for backend in BACKENDS
}


def test_there_are_as_many_forms_as_torchvisions_own_suite_has():
    assert len(CASES) == 120


class Scan(torch.Tensor):
    """A tensor with metadata that follow it, as MONAI's MetaTensor."""

    @staticmethod
    def __new__(cls, values, meta=None):
        return torch.as_tensor(values).as_subclass(cls)

    def __init__(self, values, meta=None):
        self.meta = dict(meta or {})
        self.applied = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        source = next((a for a in args if isinstance(a, Scan)), None)
        if isinstance(out, Scan) and source is not None:
            out.meta, out.applied = dict(getattr(source, "meta", {})), list(getattr(source, "applied", []))
        return out


def flip(scan):
    out = scan.flip(-1) if torch.rand(()) < 0.5 else scan.clone()
    out.applied.append("flip")
    return out


@pytest.mark.parametrize("form", ["image", "mapping", "batch"])
def test_metadata_of_tensors_follow_them_through_it_between_random_flips(augmenter, form):
    torch.manual_seed(0)
    augment = LearnedAugment(augmenter)
    scan = Scan(torch.rand(*([2] if form == "batch" else []), 3, 32, 32), {"spacing": 0.7})
    if form == "mapping":
        out = augment({"image": flip(scan), "label": 3})
        assert out["label"] == 3
        out = flip(out["image"])
    else:
        out = flip(augment(flip(scan)))
    assert type(out) is Scan
    assert out.meta == {"spacing": 0.7}
    assert out.applied == ["flip", "flip"]
    assert out.shape == scan.shape


def test_monais_compose_takes_it_between_random_flips(augmenter):
    if importlib.util.find_spec("monai") is None:
        pytest.skip("MONAI caps torch: it needs an environment of its own")
    transforms, data = importlib.import_module("monai.transforms"), importlib.import_module("monai.data")
    pipeline = transforms.Compose([transforms.RandFlip(0.5, 1), LearnedAugment(augmenter), transforms.RandFlip(0.5, 0)])
    out = pipeline(data.MetaTensor(torch.rand(3, 32, 32), meta={"spacing": 0.7}))
    assert isinstance(out, data.MetaTensor)
    assert out.meta["spacing"] == 0.7
