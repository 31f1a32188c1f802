"""E, G and their configuration."""

import dataclasses
import json

import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.nets import Encoder, Generator

VARIANTS = ["parallel", "serial", "spatial", "appearance"]


@pytest.mark.parametrize(("size", "layers"), [(28, 4), (32, 5), (224, 8), (96, 7)])
def test_paper_form_has_the_paper_depths(size, layers):
    config = AugmenterConfig.paper(size=size)
    assert (config.depth, config.encoder_side) == (layers, size)


def test_paper_form_has_full_fields_fixed_dropout_one_strength_and_no_affine_family():
    config = AugmenterConfig.paper(std=(0.5,), warp=0.03)
    assert (config.fields, config.dropout, config.color_points, config.affine) == ("pixel", "fixed", None, 0.0)
    assert config.encoder == "conv"
    assert (config.warp, config.color, config.std) == (0.03, 0.1, (0.5,))
    assert AugmenterConfig.paper(channels=1).color == 0.0  # the paper's filter is of RGB images
    assert not AugmenterConfig.paper().draws_strength


@pytest.mark.parametrize("size", [8, 28, 32, 224])
def test_by_default_the_encoder_is_two_linear_layers_on_8_pixels_whatever_the_size(size):
    encoder = Encoder(AugmenterConfig(size=size))
    assert encoder.convs is None
    assert [layer.weight.shape for layer in encoder.layers] == [(128, 3 * 8**2), (128, 128)]
    conv = AugmenterConfig(size=size, encoder="conv")
    assert (conv.encoder_side, conv.depth, Encoder(conv).layers) == (8, 3, None)
    assert AugmenterConfig(size=224, encoder_size=224).depth == 8


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_linear_encoder_is_the_product_it_states(channels):
    config = AugmenterConfig(channels=channels, tau_dim=16)
    encoder = Augmenter(config).stages[0].encoder
    torch.nn.init.normal_(encoder.keep[-1].weight)
    x = torch.rand(5, channels, 8, 8)
    flat = x.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0)
    for part, (one, two) in zip(encoder(x), (encoder.layers, encoder.keep), strict=True):
        expected = torch.nn.functional.leaky_relu(flat @ one.weight.T + one.bias, 0.2) @ two.weight.T + two.bias
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", range(1, 9))
@pytest.mark.parametrize("fields", ["grid", "pixel"])
def test_any_number_of_layers_works(layers, fields):
    config = AugmenterConfig(layers=layers, fields=fields, size=20, tau_dim=16, encoder="conv")
    tau, keep = Encoder(config)(torch.rand(2, 3, 8, 8))
    side = 4 if fields == "grid" else 20
    made = Generator(config, warp=True, color=True)(tau)
    assert tau.shape == keep.shape == (2, 16)
    assert made.affine.shape == (2, 6, 1, 1)
    assert made.warp.shape == (2, 6, side, side)
    assert made.color.shape == (2, 12, 1, 1)
    local = Generator(dataclasses.replace(config, color_points=None), warp=True, color=True)(tau)
    assert local.color.shape == (2, 12, side, side)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channels_than_three_have_a_gain_and_an_offset_each(channels):
    config = AugmenterConfig(channels=channels, tau_dim=16)
    made = Generator(config, warp=True, color=True)(torch.randn(2, 16))
    assert made.color.shape == (2, 2 * channels, 1, 1)


@pytest.mark.parametrize("family", ["affine", "warp", "color"])
def test_a_family_of_strength_0_has_no_field_and_the_others_have(family):
    config = AugmenterConfig(tau_dim=16, **{family: 0})
    made = Generator(config, warp=True, color=True)(torch.randn(2, 16))
    assert [name for name in made._fields if getattr(made, name) is None] == [family]


@pytest.mark.parametrize("old", [{}, {"version": 1}, {"channels": 1, "version": 1}])
def test_configs_of_version_1_keep_the_old_form(old):
    config = AugmenterConfig.from_dict({"encoder_size": 32, **old})
    assert config.version == 1
    assert (config.affine, config.warp, config.color, config.color_points) == (0.0, None, None, None)
    assert config.encoder == "conv"
    assert config.recolors == (config.channels == 3)  # only RGB images had a filter
    assert config.noise_dim == config.tau_dim
    assert not {"affine", "warp", "color", "color_points", "encoder"} & set(config.to_dict())
    assert AugmenterConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    generator = Generator(config, warp=True, color=config.recolors)
    assert [name for name, _ in generator.named_buffers()] == ["center"]
    made = generator(torch.randn(2, config.tau_dim))
    assert made.affine is None
    assert made.warp.shape == (2, 6, 4, 4)
    assert made.color is None if config.channels == 1 else made.color.shape == (2, 12, 4, 4)


@pytest.mark.parametrize("family", ["warp", "color"])
def test_strengths_in_a_unit_are_not_to_be_had_of_version_1_but_switching_off_is(family):
    with pytest.raises(ValueError, match=rf"{family}=0.1 cannot be asked of weights of version 1.*factor strength="):
        AugmenterConfig.from_dict({"version": 1, family: 0.1})
    config = AugmenterConfig.from_dict({"version": 1, family: 0.0})
    assert getattr(Generator(config, warp=True, color=True)(torch.randn(1, 128)), family) is None


@pytest.mark.parametrize(("given", "kept"), [(1, 1.0), ((0.1, 0.1), 0.1), ([0, 0.2], (0.0, 0.2)), (0, 0.0)])
def test_strengths_are_floats_and_a_range_of_one_number_is_that_number(given, kept):
    assert AugmenterConfig(warp=given).warp == kept
    assert isinstance(kept, tuple) == AugmenterConfig(affine=0, warp=given, color=0).draws_strength


@pytest.mark.parametrize("bad", [-0.1, (0.2, 0.1), (0.1,), float("nan"), float("inf"), True, "0.1", None, (0, None)])
@pytest.mark.parametrize("family", ["affine", "warp", "color"])
def test_strengths_that_are_none_are_refused_by_name(family, bad):
    with pytest.raises(ValueError, match=rf"^{family} must be a (strength|number).*0 switches"):
        AugmenterConfig(**{family: bad})


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ({}, (0.0,), (1.0,)),
        ({"mean": (0.5,), "std": (0.25,)}, (-2.0,), (2.0,)),
        ({"mean": (0.5, 0.25, 0.0), "std": (0.5,)}, (-1.0, -0.5, 0.0), (1.0, 1.5, 2.0)),
        ({"mean": (0.0,), "std": (1.0, 0.5, 0.25)}, (0.0, 0.0, 0.0), (1.0, 2.0, 4.0)),
    ],
)
def test_bounds_are_0_and_1_in_the_units_of_the_images(values, low, high):
    assert AugmenterConfig(**values).bounds == (low, high)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fields", ["grid", "pixel"])
@pytest.mark.parametrize("pooled", [False, True])
def test_config_survives_json(variant, fields, pooled):
    config = AugmenterConfig(variant=variant, fields=fields, pooled=pooled, mean=(0.5, 0.4, 0.3), std=(0.2,), size=48)
    back = AugmenterConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back.to_dict() == config.to_dict()
    assert back == dataclasses.replace(config, layers=config.depth, encoder_size=config.encoder_side)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"size": 3}, "size"),
        ({"size": 32.0}, "size"),
        ({"layers": 0}, "layers"),
        ({"layers": True}, "layers"),
        ({"encoder_size": 0}, "encoder_size"),
        ({"tau_dropout": 1.0}, "tau_dropout"),
        ({"fields": "cubic"}, "fields"),
        ({"version": 2, "encoder": "mlp"}, "encoder"),
        ({"version": 1, "encoder": "linear"}, "encoder=.conv. and centered"),
        ({"dropout": "adaptive"}, "dropout"),
        ({"variant": "both"}, "variant"),
        ({"channels": 1, "variant": "serial"}, "needs a color filter"),
        ({"version": 2, "color_points": 2}, "color_points"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (float("nan"),)}, "mean"),
        ({"std": (0.0,)}, "std"),
        ({"version": 99}, "got 99"),
        ({"hue": 1}, "unknown keys"),
        ({"mean": None}, "mean must be 1 or 3 finite numbers, got None"),
    ],
)
def test_bad_configurations_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        AugmenterConfig.from_dict(values)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_codes_do_not_depend_on_brightness_contrast_or_the_rest_of_the_batch(kind):
    encoder = Augmenter(AugmenterConfig(encoder=kind), generator=torch.Generator().manual_seed(0)).stages[0].encoder
    x = torch.rand(5, 3, 8, 8)
    torch.nn.init.normal_(encoder.keep[-1].weight)
    code = encoder(x)
    for other, rows in ((x * 3 - 7, slice(None)), (x[2:3], slice(2, 3))):
        for got, expected in zip(encoder(other), code, strict=True):
            torch.testing.assert_close(got, expected[rows], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_codes_depend_on_the_image_from_the_start(kind):
    encoder = Augmenter(AugmenterConfig(encoder=kind), generator=torch.Generator().manual_seed(0)).stages[0].encoder
    tau, _ = encoder(torch.rand(50, 3, 8, 8) * torch.linspace(-1, 1, 50)[:, None, None, None])
    assert tau.std(dim=0).mean() > 0.02
    assert 0.05 < tau.square().mean().sqrt() < 20


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_blank_images_have_finite_codes(kind):
    code = Encoder(AugmenterConfig(encoder=kind))(torch.full((1, 3, 8, 8), 0.3))
    assert all(part.isfinite().all() for part in code)


@pytest.mark.parametrize("fields", ["grid", "pixel"])
def test_matrix_products_equal_the_transposed_convolutions_they_stand_for(fields):
    config = AugmenterConfig(fields=fields, size=20, tau_dim=16, layers=3)
    generator = Augmenter(config).stages[0].generator
    codes = torch.randn(3, 16)
    x = codes[:, :, None, None]
    for k, layer in enumerate(generator.deconvs):
        x = layer(x if k == 0 else torch.nn.functional.leaky_relu(x, 0.2))
    margin = (x.shape[-1] - generator.side) // 2
    expected = x[..., margin : margin + generator.side, margin : margin + generator.side]
    torch.testing.assert_close(generator.raw(codes), expected, atol=1e-5, rtol=1e-4)


def test_grid_fields_are_bounded_and_pooled_fields_are_constant():
    codes = torch.randn(4, 128) * 100
    generator = Augmenter(AugmenterConfig(std=(0.5,))).stages[0].generator
    made = generator(codes)
    assert made.warp[:, :4].abs().max() <= 0.3 + 1e-6
    assert made.warp[:, 4:].abs().max() <= 3.2 + 1e-6
    assert made.color[:, 9:].abs().max() <= 0.6 + 1e-6
    pooled = Augmenter(AugmenterConfig(pooled=True)).stages[0].generator(codes)
    assert torch.equal(pooled.warp, pooled.warp[..., :1, :1].expand_as(pooled.warp))


def test_a_config_says_whether_it_recolors_and_normalizes():
    assert [AugmenterConfig(variant=variant).recolors for variant in VARIANTS] == [True, True, False, True]
    assert AugmenterConfig(channels=1).recolors
    assert [AugmenterConfig(**v).normalizes for v in ({}, {"mean": (0.1,)}, {"std": (1.0, 1.0, 0.5)})] == [
        False,
        True,
        True,
    ]
