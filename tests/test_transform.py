"""LearnedAugment: every type a v2 pipeline carries, what it refuses, and what stays aligned."""

import copy
import functools
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment
from learned_aug.functional import flow_field, resize_field

HAS_KEY_POINTS = hasattr(tv_tensors, "KeyPoints")
FORMATS = [f.value for f in tv_tensors.BoundingBoxFormat]


@functools.cache
def prototype(config):
    generator = torch.Generator().manual_seed(0)
    augmenter = Augmenter(config, generator=generator)
    x = torch.rand(24, config.channels, config.size, config.size, generator=generator)
    return augmenter.calibrate_(x, generator=generator)


def transform(p=1.0, strength=1.0, warp=1 / 32, **config):
    strengths = {"affine": 0, "warp": warp, "color": 0.05}
    augmenter = prototype(AugmenterConfig(**{"tau_dim": 32, **strengths, **config}))
    return LearnedAugment(copy.deepcopy(augmenter), p=p, strength=strength)


def tensor(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def pil(height=32, width=32, mode="RGB"):
    return v2.functional.to_pil_image(tensor(3 if mode == "RGB" else 1, height, width), mode)


def seeded(function, *inputs, seed=0):
    torch.manual_seed(seed)
    return function(*inputs)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
@pytest.mark.parametrize("size", [(32, 32), (40, 57)])
def test_pil_comes_back_as_pil_with_the_values_of_the_tensor(mode, channels, size):
    aug, image = transform(channels=channels), pil(*size, mode)
    out = seeded(aug, image)
    assert isinstance(out, PIL.Image.Image)
    assert (out.mode, out.size) == (mode, image.size)
    expected = seeded(aug, v2.functional.pil_to_tensor(image))
    assert torch.equal(v2.functional.pil_to_tensor(out), expected)
    assert not torch.equal(expected, v2.functional.pil_to_tensor(image))


@given(
    dtype=st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    lead=st.sampled_from([(), (1,), (3,), (0,), (2, 2)]),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    wrap=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_tensors_keep_type_dtype_shape_and_range(dtype, lead, size, wrap):
    x = tensor(*lead, 3, *size)
    x = x if dtype == torch.uint8 else (x / 255).to(dtype)
    x = tv_tensors.Image(x) if wrap else x
    before = x.clone()
    out = transform()(x)
    assert type(out) is type(x)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert torch.equal(x, before)
    if out.numel():
        assert out.min() >= 0
        assert out.max() <= (255 if dtype == torch.uint8 else 1)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_uint8_agrees_with_floats_to_one_level(normalized, dtype):
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)} if normalized else {}
    aug, x = transform(**statistics), tensor(4, 3, 32, 32)
    out = seeded(aug, x).double()
    floats = seeded(aug, (x / 255).to(dtype)).double() * 255
    assert (out - floats).abs().max() <= 1


@pytest.mark.parametrize("size", [32, 43])
def test_an_augmenter_that_saw_a_pil_image_can_still_be_trained(size):
    aug = transform()
    aug(pil(size, size))
    x = torch.rand(2, 3, size, size, requires_grad=True)
    aug.augmenter.requires_grad_()(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None for name, p in aug.augmenter.named_parameters() if "keep" not in name)


def test_it_is_the_augmenter_between_normalize_and_denormalize():
    aug = transform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    x = torch.rand(5, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (aug.augmenter.config.mean, aug.augmenter.config.std))
    expected = seeded(aug.augmenter, (x - mean) / std) * std + mean
    torch.testing.assert_close(seeded(aug, x), expected.clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("aug", [transform(strength=0.0), transform(p=0.0)], ids=["strength 0", "p 0"])
def test_no_strength_or_no_chance_is_the_identity_to_the_last_bit(aug):
    image, x = pil(), torch.rand(2, 3, 33, 47)
    assert aug(image) is image
    assert torch.equal(aug(x), x)
    boxes = tv_tensors.BoundingBoxes([[1, 2, 30, 40]], format="XYXY", canvas_size=(32, 32))
    assert torch.equal(aug(image, boxes)[1], boxes)


def test_p_chooses_samples_of_a_batch_one_by_one_and_leaves_the_others_exact():
    aug, x = transform(p=0.3, mean=(0.5,), std=(0.2,)), torch.rand(400, 3, 8, 8)
    same = (aug(x) == x).flatten(1).all(1)
    assert abs(same.float().mean() - 0.7) < 0.1
    single = torch.stack([(aug(x[0]) == x[0]).all() for _ in range(200)])
    assert abs(single.float().mean() - 0.7) < 0.15


def test_batch_samples_differ_and_videos_share_one_draw():
    still = tensor(3, 32, 32).expand(5, 3, 32, 32)
    aug = transform()
    assert len(aug(tv_tensors.Image(still)).flatten(1).unique(dim=0)) == 5
    video = aug(tv_tensors.Video(still))
    assert isinstance(video, tv_tensors.Video)
    assert len(video.flatten(1).unique(dim=0)) == 1
    clips = aug(tv_tensors.Video(still.expand(4, 5, 3, 32, 32)))
    assert clips.shape == (4, 5, 3, 32, 32)
    assert len(clips.flatten(2).unique(dim=1)[0]) == 1
    assert len(clips[:, 0].flatten(1).unique(dim=0)) == 4
    chosen = transform(p=0.5)(tv_tensors.Video(still.expand(64, 5, 3, 32, 32)))
    same = (chosen == still).flatten(2).all(2)
    assert torch.equal(same.all(1), same.any(1))
    assert 10 < same.all(1).sum() < 54


def test_nested_samples_keep_their_structure_and_labels():
    aug, image = transform(), pil()
    sample = {"image": image, "more": [(image, 7), "text", None, np.float32(3)], "label": torch.tensor(4)}
    out = aug(sample)
    assert list(out) == list(sample)
    assert out["more"][1:] == ["text", None, np.float32(3)]
    assert out["more"][0][1] == 7
    assert out["label"] is sample["label"]
    first, second = (v2.functional.pil_to_tensor(i) for i in (out["image"], out["more"][0][0]))
    assert torch.equal(first, second)  # a pair of images shares the draw
    x, target = aug(torch.rand(3, 32, 32), torch.rand(10))
    assert x.shape == (3, 32, 32)
    assert target.shape == (10,)


def blob(height, width, cx, cy, rx, ry):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("variant", ["spatial", "parallel"])
def test_a_blob_its_mask_its_box_and_its_center_move_together(seed, variant):
    aug = transform(warp=3 / 64, variant=variant)
    inside = blob(96, 128, 66, 43, 24, 15)
    sample = {
        "image": tv_tensors.Image((inside * 255).to(torch.uint8).expand(3, -1, -1)),
        "mask": tv_tensors.Mask(inside),
        "boxes": tv_tensors.BoundingBoxes([[42.0, 28.0, 91.0, 59.0]], format="XYXY", canvas_size=(96, 128)),
        "label": 3,
    }
    if HAS_KEY_POINTS:
        sample["points"] = tv_tensors.KeyPoints([[[66.0, 43.0]]], canvas_size=(96, 128))
    out = seeded(aug, sample, seed=seed)
    assert {name: type(value) for name, value in out.items()} == {name: type(value) for name, value in sample.items()}
    assert out["mask"].dtype == torch.bool
    drawn = out["image"].float().mean(0)
    drawn = (drawn - drawn.min()) / (drawn.max() - drawn.min()) > 0.5
    assert (drawn ^ out["mask"]).sum() < 0.05 * inside.sum()
    y, x = torch.nonzero(out["mask"], as_tuple=True)
    tight = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
    box = out["boxes"][0]
    assert (box[:2] <= tight[:2] + 1).all()  # the box of a box contains the box of its content
    assert (box[2:] >= tight[2:] - 1).all()
    assert (box - tight).abs().max() < 12
    if HAS_KEY_POINTS:
        center = torch.stack([x.float().mean(), y.float().mean()])
        assert (out["points"][0, 0] - center).norm() < 2


class Constant(Augmenter):
    """Draws one given flow."""

    def draw(self, images, noise=None, *, strength=1.0, generator=None):
        drawn = super().draw(images, noise, strength=strength, generator=generator)
        return drawn._replace(coarse_flow=self.given.expand(len(images), -1, -1, -1), coarse_color=None)


def constant(flow):
    augmenter = Constant(AugmenterConfig(tau_dim=8))
    augmenter.given = flow
    return LearnedAugment(augmenter)


def as_boxes(corners, name, **kwargs):
    """Rectangles (N, 8), clockwise from the top left, in any format."""
    if name in ("XYXY", "XYWH", "CXCYWH"):
        low, high = corners.view(-1, 4, 2).amin(1), corners.view(-1, 4, 2).amax(1)
        old, values = "XYXY", torch.cat([low, high], dim=1)
    else:
        old, values = "XYXYXYXY", corners
    boxes = tv_tensors.BoundingBoxes(values, format=old, canvas_size=(60, 80), **kwargs)
    return v2.functional.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat[name])


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_of_every_format_follow_a_shift(name):
    flow = torch.tensor([-5.0, 3.0])[None, :, None, None].expand(1, 2, 4, 4)  # the picture moves right and up
    corners = torch.tensor([[20.0, 20.0, 44.0, 20.0, 44.0, 36.0, 20.0, 36.0]])
    boxes = as_boxes(corners, name)
    out = constant(flow)(tv_tensors.Image(tensor(3, 60, 80)), boxes)[1]
    expected = as_boxes(corners + torch.tensor([5.0, -3.0] * 4), name)
    assert (out.format, out.canvas_size) == (boxes.format, boxes.canvas_size)
    torch.testing.assert_close(out.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", [f for f in FORMATS if f not in ("XYXY", "XYWH", "CXCYWH")])
def test_rotated_boxes_follow_a_rotation(name):
    c, s = np.cos(0.4), np.sin(0.4)
    weight = torch.tensor([[c - 1, s, -s, c - 1]])[..., None, None].expand(1, 4, 4, 4)
    flow = flow_field(weight, torch.zeros(1, 2, 4, 4), (60, 80)).float()
    center = torch.tensor([40.0, 30.0])
    corners = torch.tensor([[-12.0, -6.0], [12.0, -6.0], [12.0, 6.0], [-12.0, 6.0]])
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float32)
    out = constant(flow)(tv_tensors.Image(tensor(3, 60, 80)), as_boxes((corners + center).view(1, 8), name))[1]
    back = v2.functional.convert_bounding_box_format(out, new_format=tv_tensors.BoundingBoxFormat["XYXYXYXY"])
    torch.testing.assert_close(back.as_subclass(torch.Tensor).view(4, 2), corners @ turn + center, atol=2e-3, rtol=0)


def test_boxes_that_leave_are_clamped_and_key_points_lie_outside_as_in_torchvision():
    flow = torch.full((1, 2, 4, 4), 15.0)
    aug, image = constant(flow), tv_tensors.Image(tensor(3, 60, 80))
    boxes = tv_tensors.BoundingBoxes([[10, 10, 30, 30], [2, 2, 9, 9]], format="XYXY", canvas_size=(60, 80))
    out = aug(image, boxes)[1]
    assert out.tolist() == [[0, 0, 15, 15], [0, 0, 0, 0]]
    assert out.dtype == boxes.dtype
    if HAS_KEY_POINTS:
        points = tv_tensors.KeyPoints([[10.0, 10.0], [30.0, 40.0]], canvas_size=(60, 80))
        expected = torch.tensor([[-5.0, -5.0], [15.0, 25.0]])
        torch.testing.assert_close(aug(image, points)[1].as_subclass(torch.Tensor), expected, atol=1e-4, rtol=0)
        assert torch.equal(v2.functional.clamp_keypoints(aug(image, points)[1])[0], torch.zeros(2))


@pytest.mark.skipif(not HAS_KEY_POINTS, reason="torchvision before 0.23 has no clamping modes")
def test_clamping_mode_none_leaves_boxes_outside():
    boxes = tv_tensors.BoundingBoxes([[2.0, 2, 9, 9]], format="XYXY", canvas_size=(60, 80), clamping_mode=None)
    out = constant(torch.full((1, 2, 4, 4), 15.0))(tv_tensors.Image(tensor(3, 60, 80)), boxes)[1]
    torch.testing.assert_close(out.as_subclass(torch.Tensor), torch.tensor([[-13.0, -13.0, -6.0, -6.0]]))


def test_no_boxes_no_points_and_empty_masks_pass():
    aug, image = transform(), tv_tensors.Image(tensor(3, 60, 80))
    for name in FORMATS:
        width = {"XYXYXYXY": 8, "XYWHR": 5, "CXCYWHR": 5}.get(name, 4)
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, width), format=name, canvas_size=(60, 80))
        assert aug(image, boxes)[1].shape == (0, width)
    assert aug(image, tv_tensors.Mask(torch.zeros(0, 60, 80)))[1].shape == (0, 60, 80)


def test_batched_masks_follow_their_own_images():
    aug = transform(variant="spatial", warp=3 / 64)
    inside = blob(64, 64, 30, 34, 14, 9).expand(4, -1, -1)
    images = tv_tensors.Image((inside[:, None] * 255).to(torch.uint8).expand(-1, 3, -1, -1))
    for masks in (tv_tensors.Mask(inside), tv_tensors.Mask(inside[:, None])):
        out, warped = aug(images, masks)
        assert warped.shape == masks.shape
        assert ((out[:, 0] > 127) ^ warped.view(4, 64, 64)).sum() < 60
    assert len(warped.flatten(1).unique(dim=0)) == 4


def test_masks_of_any_shape_follow_one_image():
    aug, image = transform(variant="spatial"), tv_tensors.Image(tensor(3, 60, 80))
    plane = torch.arange(60 * 80).view(60, 80)
    _, flat, stacked, deep = seeded(
        aug, image, *(tv_tensors.Mask(plane.expand(*k, 60, 80)) for k in [(), (7,), (2, 3)])
    )
    assert stacked.shape == (7, 60, 80)
    assert deep.shape == (2, 3, 60, 80)
    assert torch.equal(stacked, flat.expand(7, 60, 80))
    assert torch.equal(deep, flat.expand(2, 3, 60, 80))


def test_appearance_alone_leaves_labels_where_they_are():
    boxes = tv_tensors.BoundingBoxes([[1, 2, 30, 40]], format="XYXY", canvas_size=(32, 32))
    assert transform(variant="appearance")(pil(), boxes)[1] is boxes


def test_pretrained_folders_load_with_the_same_draws(tmp_path):
    aug = transform()
    aug.augmenter.save_pretrained(tmp_path)
    loaded = LearnedAugment.from_pretrained(tmp_path, p=0.5, strength=0.3)
    assert (loaded.p, loaded.strength) == (0.5, 0.3)
    x = tensor(3, 32, 32)
    assert torch.equal(seeded(LearnedAugment.from_pretrained(tmp_path), x), seeded(aug, x))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_give_the_same_draws(copier):
    aug, x = transform(p=0.9), tensor(3, 32, 32)
    assert torch.equal(seeded(copier(aug), x), seeded(aug, x))


def test_results_never_require_gradients_even_while_the_augmenter_trains():
    aug = transform()
    aug.augmenter.requires_grad_()
    assert not aug(torch.rand(3, 32, 32)).requires_grad


def test_repr_is_one_line():
    assert repr(transform(p=0.5)) == "LearnedAugment(p=0.5, strength=1.0, channels=3, size=32)"


def test_an_augmenter_on_a_gpu_raises_a_hint_in_workers(monkeypatch):
    aug = transform()
    monkeypatch.setattr(Augmenter, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    with pytest.raises(RuntimeError, match="keep LearnedAugment on the CPU"):
        aug(pil())
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: None)
    with pytest.raises(ValueError, match="image is on cpu, the augmenter on cuda"):
        aug(pil())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_a_gpu_stay_there():
    aug = transform().to("cuda")
    out, mask = aug(tv_tensors.Image(tensor(3, 32, 32).cuda()), tv_tensors.Mask(torch.zeros(32, 32)))
    assert out.device.type == "cuda"
    assert mask.device.type == "cpu"
    with pytest.raises(ValueError, match="move one"):
        aug(pil())


def test_masks_follow_the_dense_flow_pixel_by_pixel():
    coarse = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    numbers = torch.arange(60 * 80).view(60, 80)
    out = constant(coarse)(tv_tensors.Image(tensor(3, 60, 80)), tv_tensors.Mask(numbers))[1]
    d = resize_field(coarse, (60, 80))[0]
    for i, j in [(5, 5), (30, 40), (59, 79), (0, 70)]:
        y = int((i + d[1, i, j]).round().clamp(0, 59))
        x = int((j + d[0, i, j]).round().clamp(0, 79))
        assert out[i, j] == y * 80 + x


def test_hooks_of_subclasses_are_called_for_a_lone_pil_image():
    calls = []

    class Logged(LearnedAugment):
        def check_inputs(self, flat_inputs):
            calls.append("check_inputs")
            super().check_inputs(flat_inputs)

        def make_params(self, flat_inputs):
            calls.append("make_params")
            return super().make_params(flat_inputs)

        def transform(self, inpt, params):
            calls.append("transform")
            return super().transform(inpt, params)

    aug = transform()
    assert seeded(Logged(aug.augmenter), pil()) == seeded(aug, pil())
    assert calls == ["check_inputs", "make_params", "transform"]


def test_a_configuration_is_no_augmenter():
    with pytest.raises(TypeError, match=r"learned_aug\.prior"):
        LearnedAugment(AugmenterConfig())


def test_a_buffer_that_is_filled_again_gives_the_new_frame():
    aug, buffer, new = transform(), tensor(3, 32, 32), tensor(3, 32, 32, seed=1)
    params = aug.make_params([buffer])
    buffer.copy_(new)
    assert torch.equal(aug.transform(buffer, params), aug.transform(new, params))


@pytest.mark.parametrize("lead", [(), (2,)])
def test_subclasses_of_tensors_come_back_with_their_attributes(lead):
    class Tagged(torch.Tensor):
        pass

    aug, x = transform(), tensor(*lead, 3, 32, 32)
    tagged = x.as_subclass(Tagged)
    tagged.tag = ["a"]
    out = seeded(aug, tagged)
    assert type(out) is Tagged
    assert out.tag is tagged.tag
    assert torch.equal(out.as_subclass(torch.Tensor), seeded(aug, x))
    mask = tv_tensors.Mask(torch.zeros(*lead, 32, 32))
    assert type(aug(tagged, mask)[0]) is Tagged
    assert aug(pil(), tagged)[1] is tagged


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_that_are_not_finite_stay_as_they_came(name):
    width = {"XYXYXYXY": 8, "XYWHR": 5, "CXCYWHR": 5}.get(name, 4)
    good = as_boxes(torch.tensor([[20.0, 20.0, 44.0, 20.0, 44.0, 36.0, 20.0, 36.0]]), name).as_subclass(torch.Tensor)
    bad = torch.full((2, width), 7.0)
    bad[0, 1], bad[1, 2] = torch.nan, torch.inf
    aug, image = constant(torch.full((1, 2, 4, 4), 5.0)), tv_tensors.Image(tensor(3, 60, 80))
    alone, mixed = (
        aug(image, tv_tensors.BoundingBoxes(v, format=name, canvas_size=(60, 80)))[1].as_subclass(torch.Tensor)
        for v in (good, torch.cat([bad, good]))
    )
    torch.testing.assert_close(mixed, torch.cat([bad, alone]), equal_nan=True)
    assert not torch.equal(alone, good)


@pytest.mark.skipif(not HAS_KEY_POINTS, reason="torchvision before 0.23 has no key points")
def test_key_points_that_are_not_finite_stay_as_they_came():
    points = torch.tensor([[[10.0, torch.nan], [30.0, 40.0]], [[-torch.inf, 3.0], [torch.nan, torch.nan]]])
    aug = constant(torch.full((1, 2, 4, 4), 5.0))
    out = aug(tv_tensors.Image(tensor(3, 60, 80)), tv_tensors.KeyPoints(points, canvas_size=(60, 80)))[1]
    expected = points.clone()
    expected[0, 1] -= 5
    torch.testing.assert_close(out.as_subclass(torch.Tensor), expected, atol=1e-4, rtol=0, equal_nan=True)


def test_a_batch_of_one_image_takes_the_labels_of_an_image():
    aug, image = transform(), tv_tensors.Image(tensor(3, 60, 80))
    boxes = tv_tensors.BoundingBoxes([[10.0, 12, 40, 50]], format="XYXY", canvas_size=(60, 80))
    masks = tv_tensors.Mask(tensor(5, 60, 80))
    one = seeded(aug, image, boxes, masks)
    batch = seeded(aug, tv_tensors.Image(image[None]), boxes, masks)
    assert torch.equal(batch[0][0], one[0])
    assert all(torch.equal(a, b) for a, b in zip(batch[1:], one[1:], strict=True))
    single = seeded(aug, tv_tensors.Image(image[None]), tv_tensors.Mask(masks[:1]))[1]
    assert torch.equal(single, one[2][:1])
