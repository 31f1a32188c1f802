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
    config = AugmenterConfig(size=size, fields="pixel")
    assert (config.depth, config.encoder_side) == (layers, size)


def test_default_for_large_images_is_a_small_encoder_and_the_paper_form_stays_available():
    assert (AugmenterConfig(size=224).encoder_side, AugmenterConfig(size=224).depth) == (56, 6)
    assert AugmenterConfig(size=224, encoder_size=224).depth == 8


@pytest.mark.parametrize("layers", range(1, 9))
@pytest.mark.parametrize("fields", ["grid", "pixel"])
def test_any_number_of_layers_works(layers, fields):
    config = AugmenterConfig(layers=layers, fields=fields, size=20, tau_dim=16)
    tau, keep = Encoder(config)(torch.rand(2, 3, 20, 20))
    side = 4 if fields == "grid" else 20
    made = Generator(config, warp=True, color=True)(tau)
    assert tau.shape == keep.shape == (2, 16)
    assert made.warp.shape == (2, 6, side, side)
    assert made.color.shape == (2, 12, side, side)


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
        ({"dropout": "adaptive"}, "dropout"),
        ({"variant": "both"}, "variant"),
        ({"channels": 1, "variant": "serial"}, "RGB"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (float("nan"),)}, "mean"),
        ({"std": (0.0,)}, "std"),
        ({"version": 99}, "got 99"),
        ({"color": 1}, "unknown keys"),
        ({"mean": None}, "wrong type"),
    ],
)
def test_bad_configurations_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        AugmenterConfig.from_dict(values)


def test_codes_do_not_depend_on_brightness_contrast_or_the_rest_of_the_batch():
    encoder = Augmenter(AugmenterConfig(), generator=torch.Generator().manual_seed(0)).stages[0].encoder
    x = torch.rand(5, 3, 32, 32)
    torch.nn.init.normal_(encoder.keep[-1].weight)
    code = encoder(x)
    for other, rows in ((x * 3 - 7, slice(None)), (x[2:3], slice(2, 3))):
        for got, expected in zip(encoder(other), code, strict=True):
            torch.testing.assert_close(got, expected[rows], atol=1e-3, rtol=1e-3)


def test_codes_depend_on_the_image_from_the_start():
    encoder = Augmenter(AugmenterConfig(), generator=torch.Generator().manual_seed(0)).stages[0].encoder
    tau, _ = encoder(torch.rand(50, 3, 32, 32) * torch.linspace(-1, 1, 50)[:, None, None, None])
    assert tau.std(dim=0).mean() > 0.02
    assert 0.05 < tau.square().mean().sqrt() < 20


def test_blank_images_have_finite_codes():
    assert all(part.isfinite().all() for part in Encoder(AugmenterConfig())(torch.full((1, 3, 32, 32), 0.3)))


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
    assert not AugmenterConfig(channels=1).recolors
    assert [AugmenterConfig(**v).normalizes for v in ({}, {"mean": (0.1,)}, {"std": (1.0, 1.0, 0.5)})] == [
        False,
        True,
        True,
    ]
