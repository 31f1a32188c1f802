"""What LearnedAugment takes and what it refuses: types, ranges and modes of images."""

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment
from tests.test_transform import pil, transform


def test_unknown_tensor_types_pass():
    class Depth(tv_tensors.TVTensor):
        pass

    depth = torch.rand(32, 32).as_subclass(Depth)
    assert transform()(pil(), depth)[1] is depth


@pytest.mark.parametrize(
    "images", [torch.zeros(0, 3, 32, 32), tv_tensors.Video(torch.zeros(0, 3, 32, 32, dtype=torch.uint8))]
)
def test_batches_and_videos_without_images_come_back(images):
    out = transform()(images)
    assert type(out) is type(images)
    assert out.shape == images.shape


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((), TypeError, "expected an image"),
        (("a", 3), TypeError, r"expected an image.*\['int', 'str'\]"),
        ((np.zeros((32, 32, 3), np.uint8),), TypeError, r"\(32, 32, 3\).*ToImage"),
        ((pil(), np.zeros((32, 32))), TypeError, "Mask"),
        ((torch.tensor(3), torch.rand(3, 32, 32)), TypeError, "label"),
        ((torch.rand(32, 32),), TypeError, "at least 3 dimensions"),
        ((pil(mode="L"),), ValueError, r"got a PIL image L; use image.convert\('RGB'\)"),
        ((pil().convert("RGBA"),), ValueError, "RGBA"),
        ((pil().convert("P"),), ValueError, "PIL image P"),
        ((torch.rand(1, 32, 32),), ValueError, r"\(..., 3, H, W\), got \(1, 32, 32\)"),
        ((torch.zeros(3, 32, 32, dtype=torch.int64),), TypeError, "int64; divide them by the largest value"),
        ((torch.rand(3, 32, 32) * 255,), ValueError, "before Normalize"),
        ((torch.randn(3, 32, 32),), ValueError, "before Normalize"),
        ((torch.full((3, 32, 32), torch.nan),), ValueError, "nan"),
        ((pil(), tv_tensors.Mask(torch.zeros(30, 30))), ValueError, r"\(32, 32\) and \(30, 30\) \(Mask\)"),
        ((pil(), pil(20, 20)), ValueError, "one size"),
        (
            (
                tv_tensors.Image(torch.rand(2, 3, 32, 32)),
                tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(32, 32)),
            ),
            ValueError,
            "collated",
        ),
        ((tv_tensors.Image(torch.rand(2, 3, 8, 8)), tv_tensors.Mask(torch.zeros(3, 8, 8))), ValueError, "collated"),
        ((tv_tensors.Image(torch.rand(2, 3, 8, 8)), tv_tensors.Image(torch.rand(3, 8, 8))), ValueError, "collated"),
        ((torch.rand(3, 8, 8, device="meta"),), ValueError, "meta, the augmenter on cpu"),
    ],
)
def test_bad_inputs_are_refused_with_a_remedy(inputs, error, message):
    with pytest.raises(error, match=message):
        transform()(inputs)


@pytest.mark.parametrize("bad", [{"p": -0.1}, {"p": 1.5}, {"strength": float("nan")}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        transform(**bad)


@pytest.mark.parametrize("statistics", [{}, {"mean": (0.5,), "std": (0.2,)}])
def test_what_lies_outside_0_and_1_is_kept_at_tiny_strength(statistics):
    x = torch.linspace(-0.4, 1.4, 3 * 32 * 32).view(3, 32, 32)
    torch.testing.assert_close(transform(strength=1e-6, **statistics)(x), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_pil_images_are_refused_with_a_remedy_that_keeps_them(mode, channels):
    with pytest.raises(ValueError, match=r"of 8 bits, got .*1/257") as info:
        transform(channels=channels)(PIL.Image.new(mode, (32, 32)))
    assert "convert('L')" not in str(info.value)
    assert "floats in [0, 1] by 255" in str(info.value)
    image = PIL.Image.fromarray(np.full((32, 32), 65535, np.uint16))
    scaled = PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    assert (scaled.mode, scaled.getextrema()) == ("L", (255, 255))


def test_without_any_family_of_changes_images_pass():
    image = pil()
    aug = LearnedAugment(Augmenter(AugmenterConfig(affine=0, warp=0, color=0, tau_dim=8)))
    assert aug(image) is image


@pytest.mark.parametrize("statistics", [(0.5, 0.5), (0.5, 0.25), (0.0, 1 / 255)])
def test_a_data_set_is_refused_at_its_first_image_and_never_in_the_middle(statistics):
    mean, std = statistics
    images = (torch.rand(6, 3, 16, 16) - mean) / std
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (0 - mean) / std, (1 - mean) / std
    with pytest.raises(ValueError, match="put LearnedAugment before Normalize"):
        transform()(images[0])
    one = transform(strength=1e-6)
    images[0] = 0.5
    one(images[0] + torch.rand(3, 16, 16) / 10)
    with pytest.warns(UserWarning, match="earlier images were in it") as told:
        out = torch.stack([one(image) for image in images[1:]])
    assert len(told) == 1
    assert (out - images[1:]).abs().max() < 1e-3 * images.abs().max()
    with pytest.raises(ValueError, match="nan"):
        one(torch.full((3, 16, 16), torch.nan))


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (torch.linspace(0, 255, 768), "divide them by 255 if they are bytes"),
        (torch.linspace(-2, 2.6, 768), "got -2 to 2.6; put LearnedAugment before Normalize"),
        (torch.full((768,), torch.nan), "check the source of NaN"),
        (torch.linspace(0, 255, 768).int(), "int32; divide them by the largest .* 255 for 8-bit data"),
    ],
)
def test_the_remedy_for_values_out_of_range_is_that_for_what_came(image, remedy):
    with pytest.raises((TypeError, ValueError), match=remedy):
        transform()(image.view(3, 16, 16))


def test_a_tensor_made_of_a_pil_image_inside_is_no_inference_tensor():
    class AsTensor(LearnedAugment):
        def transform(self, inpt, params):
            return v2.functional.pil_to_tensor(super().transform(inpt, params))

    assert not AsTensor(transform().augmenter)(pil()).is_inference()


@pytest.mark.parametrize("mode", ["L", "P", "1", "I", "I;16"])
@pytest.mark.parametrize("first", [True, False])
def test_a_pil_mask_beside_the_image_is_told_from_it(mode, first):
    mask = PIL.Image.new(mode, (32, 32))
    sample = {"mask": mask, "image": pil()} if first else {"image": pil(), "mask": mask}
    with pytest.raises(ValueError, match=r"if one is a mask, wrap it: tv_tensors.Mask"):
        transform()(sample)
    wrapped = tv_tensors.Mask(v2.functional.pil_to_tensor(mask))
    assert transform()({**sample, "mask": wrapped})["mask"].shape == wrapped.shape


def test_a_slight_overshoot_of_a_bicubic_resize_is_no_error():
    x = v2.functional.resize(torch.rand(3, 16, 16).round(), [40, 40], interpolation=v2.InterpolationMode.BICUBIC)
    assert x.max() > 1
    out = transform()(x)  # stays in its own range, and is not cut to [0, 1]
    assert out.max() <= x.max()
    assert out.min() >= x.min()


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_what_is_refused_is_refused_whatever_chance_says(p):
    for bad in (pil().convert("CMYK"), torch.rand(3, 16, 16) * 255, torch.ones(3, 16, 16).long()):
        with pytest.raises((TypeError, ValueError)):
            transform(p=p)(bad)
