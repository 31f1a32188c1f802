"""Strengths: calibration to units, ranges drawn for each image, and changing them later."""

import copy
import itertools

import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.config import FAMILIES, UNITS
from learned_aug.functional import recolor
from tests.test_augmenter import OLD, build, images, seeded

FORMS = [
    {},
    {"variant": "serial"},
    {"pooled": True},
    {"fields": "pixel"},
    {"fields": "pixel", "variant": "serial", "pooled": True},
    {"channels": 1},
    {"channels": 5, "fields": "pixel"},
    {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)},
    {"tau_dropout": 0.2, "control_points": 7, "size": 28},
    {"dropout": "fixed", "color_points": None},
]
OFF = {"affine": 0.0, "warp": 0.0, "color": 0.0}


def difference(augmenter, x, seeds=(10, 11)):
    """Mean distance of two draws, without the clamp: (share of the side, share of the range on gray pixels)."""
    one, two = (augmenter.draw(x, generator=seeded(s)) for s in seeds)
    mean, std = (torch.tensor(v)[:, None, None] for v in (augmenter.config.mean, augmenter.config.std))
    gray = torch.linspace(0, 1, x[0, 0].numel()).view_as(x[:1, :1]).expand_as(x)
    flow = 0.0 if one.coarse_flow is None else float((one.flow() - two.flow()).norm(dim=1).mean())
    colors = [None if d.coarse_color is None else recolor((gray - mean) / std, d.coarse_color) for d in (one, two)]
    color = 0.0 if colors[0] is None else float(((colors[0] - colors[1]) * std).abs().mean())
    return flow / max(x.shape[-2:]), color


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_two_draws_differ_by_the_strength_they_are_drawn_at_on_other_images(form, family):
    serial = form.get("variant") == "serial"
    if serial:  # which needs a filter, and whose second encoder sees the warped image
        form = {**form, "color": 1e-9, "warp": UNITS["warp"] if family == "color" else 0.0}
    augmenter = build(**{**OFF, **form, family: UNITS[family]})
    x = images(200, augmenter.config, seed=9)
    flow, color = difference(augmenter, x)
    reached, other = (color, flow) if family == "color" else (flow, color)
    assert reached == pytest.approx(UNITS[family], rel=0.25)
    assert other < 1e-6 or serial


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_difference_grows_with_the_strength(family, factor):
    augmenter = build(**{**OFF, family: UNITS[family]})
    x = images(100, augmenter.config, seed=9)
    before = max(difference(augmenter, x))
    augmenter.set_strengths_(**{family: factor * UNITS[family]})
    assert max(difference(augmenter, x)) == pytest.approx(factor * before, rel=0.05)


@pytest.mark.parametrize("centered", [True, False])
def test_the_draws_of_an_image_are_spread_around_the_image_itself(centered):
    augmenter = build(**{**OFF, "warp": UNITS["warp"], "centered": centered})
    x = images(32, augmenter.config, seed=9)
    flows = torch.stack([augmenter.augment(x, generator=seeded(k)).flow for k in range(16)])
    constant = flows.mean(0).norm(dim=1).mean() / flows.norm(dim=2).mean()
    assert constant < 0.4 if centered else constant > 0.55


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_calibrated_augmenter_has_no_constant_warp(form):
    augmenter = build(**{"affine": 0.0, "warp": 0.0625, **form})
    x = images(200, augmenter.config, seed=9)
    flow = augmenter.augment(x, generator=seeded(10)).flow
    assert flow.mean(0).norm(dim=0).mean() < 0.3 * flow.norm(dim=1).mean()


def test_strengths_of_a_range_are_drawn_uniformly_for_each_image_and_family():
    augmenter = build(affine=(0.0, 0.1), warp=(0.05, 0.15), color=0.2)
    noise = augmenter.draw_noise(2000, generator=seeded())
    assert noise.shape == (2000, 1, 67)
    strengths = augmenter.strengths(noise)
    assert strengths.shape == (2000, 3)
    for k, (low, high) in enumerate([(0.0, 0.1), (0.05, 0.15), (0.2, 0.2)]):
        column = strengths[:, k]
        assert column.min() >= low - 1e-6
        assert column.max() <= high + 1e-6
        assert float(column.mean()) == pytest.approx((low + high) / 2, abs=0.003)
        assert float(column.std()) == pytest.approx((high - low) / 12**0.5, abs=0.003)
    assert abs(torch.corrcoef(strengths[:, :2].T)[0, 1]) < 0.1


def test_a_strength_is_where_the_noise_places_it_and_scales_that_draw_alone():
    augmenter = build(affine=0.0, warp=(0.0, 0.2), color=0.0)
    x, noise = images(3, augmenter.config), augmenter.draw_noise(3, generator=seeded())
    noise[:, :, -2] = torch.tensor([0.0, 0.5, 0.999999])[:, None]
    trace = augmenter.trace(x, noise)
    torch.testing.assert_close(trace.strengths[:, 1], torch.tensor([0.0, 0.1, 0.2]), atol=1e-5, rtol=0)
    flow = trace.draw.flow()
    assert not flow[0].any()
    noise[:, :, -2] = 0.5
    torch.testing.assert_close(augmenter.augment(x, noise).flow[2], flow[2] / 2, atol=1e-4, rtol=1e-4)


def test_without_ranges_the_noise_has_no_columns_for_strengths():
    augmenter = build(affine=0.0, warp=0.1, color=0.2)
    noise = augmenter.draw_noise(2)
    assert noise.shape == (2, 1, 64)
    torch.testing.assert_close(augmenter.strengths(noise), torch.tensor([[0.0, 0.1, 0.2]]).expand(2, 3))


def test_of_two_pairs_the_first_warps_and_the_second_recolors_by_the_strengths_of_the_trace():
    augmenter = build(variant="serial", affine=0.0, warp=(0.0, 0.2), color=(0.0, 0.4))
    x, noise = images(2, augmenter.config), augmenter.draw_noise(2, generator=seeded())
    noise[0, 0, -2], noise[1, 1, -1] = 0.0, 0.0  # no warp of the first image, no color of the second
    trace = augmenter.trace(x, noise)
    assert trace.strengths[0, 1] == trace.strengths[1, 2] == 0
    assert not trace.draw.flow()[0].any()
    assert trace.draw.flow()[1].any()
    assert not trace.draw.coarse_color[1].any()
    assert trace.draw.coarse_color[0].any()


def test_strengths_given_with_masks_have_gradients_and_are_by_default_the_middle():
    augmenter = build()
    x, noise = images(3, augmenter.config), augmenter.draw_noise(3, generator=seeded())
    masks = augmenter.trace(x, noise).masks
    middle = augmenter.trace(x, masks=masks).strengths
    torch.testing.assert_close(middle, torch.tensor([[0.03125, 0.0625, 0.2]]).expand(3, 3))
    strengths = middle.clone().requires_grad_()
    augmenter.trace(x, masks=masks, strengths=strengths).draw.apply(x).square().sum().backward()
    assert (strengths.grad != 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_switched_off_can_be_switched_on_later_at_its_unit(family):
    augmenter = build(**OFF)
    x = images(200, augmenter.config, seed=9)
    assert torch.equal(augmenter(x, generator=seeded()), x)
    augmenter.set_strengths_(**{family: UNITS[family]})
    assert max(difference(augmenter, x)) == pytest.approx(UNITS[family], rel=0.2)
    augmenter.set_strengths_(**{family: 0})
    assert torch.equal(augmenter(x, generator=seeded()), x)


def test_set_strengths_leaves_what_it_is_not_asked_for_and_the_weights(tmp_path):
    augmenter = build()
    before = copy.deepcopy(augmenter.state_dict())
    assert augmenter.set_strengths_(warp=(0, 0.06), color=0) is augmenter
    assert augmenter.config.strengths == ((0.0, 0.0625), (0.0, 0.06), 0.0)
    assert all(torch.equal(before[name], t) for name, t in augmenter.state_dict().items())
    augmenter.save_pretrained(tmp_path)
    loaded = Augmenter.from_pretrained(tmp_path, affine=0.01)
    assert loaded.config.strengths == (0.01, (0.0, 0.06), 0.0)


@pytest.mark.parametrize("asked", [{"warp": -1.0}, {"color": (0.4, 0.1)}, {"affine": float("nan")}])
def test_bad_strengths_are_refused_by_name_and_change_nothing(asked):
    augmenter = build()
    before = augmenter.config
    with pytest.raises(ValueError, match=next(iter(asked))):
        augmenter.set_strengths_(**asked)
    assert augmenter.config is before


def test_weights_of_version_1_keep_their_strength_and_say_so():
    augmenter = build(**OLD)
    assert augmenter.strengths(augmenter.draw_noise(2)) is None
    assert augmenter.trace(images(2, augmenter.config), augmenter.draw_noise(2)).strengths is None
    with pytest.raises(ValueError, match="version 1"):
        augmenter.set_strengths_(warp=0.1)
    with pytest.raises(ValueError, match="version 1"):
        augmenter.calibrate_(images(2, augmenter.config))
    assert augmenter.set_strengths_(warp=0).draw(images(2, augmenter.config)).coarse_flow is None
    assert not any("gain" in name for name in augmenter.state_dict())


@pytest.mark.parametrize(
    ("form", "count", "message"),
    [({"tau_dropout": 0.0}, 20, "two draws must differ"), ({}, 0, "image"), ({}, -1, "not constant")],
)
def test_a_calibration_that_cannot_succeed_says_so_and_changes_nothing(form, count, message):
    augmenter = build(calibrated=False, **form)
    before, config = copy.deepcopy(augmenter.state_dict()), augmenter.config
    x = torch.full((20, 3, 32, 32), 0.3) if count < 0 else images(count, augmenter.config)
    with pytest.raises(ValueError, match=message):
        augmenter.calibrate_(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in augmenter.state_dict().items())
    assert augmenter.config is config


def test_calibration_of_large_images_uses_a_bounded_number_of_them(monkeypatch):
    monkeypatch.setattr("learned_aug.calibration.CALIBRATION", 33 * 32**2)
    one, two = build(calibrated=False), build(calibrated=False)
    x = images(40, one.config)
    one.calibrate_(x, generator=seeded(1))
    two.calibrate_(x[:33], generator=seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (40, 56)])
def test_strengths_are_shares_of_the_side_at_any_size(size):
    augmenter = build(**{**OFF, "warp": 0.0625})
    small = torch.nn.functional.interpolate(images(100, augmenter.config, (6, 6)), size, mode="bilinear")
    flow, _ = difference(augmenter, small)
    assert flow == pytest.approx(0.0625, rel=0.3)  # E sees other blurs than it was calibrated on


def test_warps_of_control_points_have_no_kinks_and_those_of_version_1_are_linear_between_them():
    bends = []
    for form in ({"affine": 0.0, "warp": 0.1}, OLD):
        augmenter = build(**form)
        x = images(2, augmenter.config, (193, 193))
        flow = augmenter.augment(x, generator=seeded()).flow
        bends.append(float(flow.diff(n=2, dim=-1).abs().amax() / flow.diff(dim=-1).abs().amax()))
    assert bends[0] < 0.1 < bends[1]


def test_an_affine_draw_is_one_affine_map_of_the_whole_image():
    augmenter = build(**{**OFF, "affine": 0.1})
    flow = augmenter.augment(images(3, augmenter.config), generator=seeded()).flow
    assert all(flow.diff(n=2, dim=dim).abs().max() < 1e-4 for dim in (-1, -2))
    assert flow.abs().max() > 0.5


def test_families_add_up_in_one_warp():
    parts = []
    for strengths in itertools.product((0.0, 0.05), repeat=2):
        augmenter = build(affine=strengths[0], warp=strengths[1], color=0.0)
        parts.append(augmenter.augment(images(3, augmenter.config), generator=seeded()).flow)
    none, warp, affine, both = parts
    assert not none.any()
    torch.testing.assert_close(both, warp + affine, atol=1e-4, rtol=0)


def test_default_config_draws_all_three_families():
    assert AugmenterConfig().draws_strength
    assert all(isinstance(strength, tuple) for strength in AugmenterConfig().strengths)


@pytest.mark.parametrize("form", [{}, {"tau_dim": 16}, {"tau_dropout": 0.2}, {"control_points": 8}], ids=str)
def test_dark_images_calibrate_the_filter_that_bright_ones_do(form):
    config = AugmenterConfig(affine=0.0, warp=0.0, color=0.1, **form)
    x = images(40, config) / 10
    augmenter = Augmenter(config, generator=seeded()).calibrate_(x, generator=seeded(1))
    gray = torch.linspace(0, 1, x[0, 0].numel()).view_as(x[:1, :1]).expand_as(x)
    one, other = (recolor(gray, augmenter.draw(x, generator=seeded(s)).coarse_color) for s in (2, 3))  # not clamped
    assert (one - other).abs().mean() == pytest.approx(0.1, rel=0.2)
