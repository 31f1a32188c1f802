"""A draw is for the images that it was drawn for: others are refused, as its fields would not fit them."""

import pytest
import torch

import learned_aug
from learned_aug import AugmenterConfig


@pytest.fixture(scope="module")
def colored():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 16, 16)
    return learned_aug.prior(images, config=AugmenterConfig(channels=3, size=16)), images[:4]


@pytest.mark.parametrize("other", [(4, 3, 8, 8), (3, 3, 16, 16), (4, 3, 16, 8), (3, 16, 16)], ids=str)
def test_images_of_another_size_or_number_are_refused(colored, other):
    augmenter, images = colored
    draw = augmenter.draw(images)
    for use in (draw.apply, draw.warp, draw.recolor):
        with pytest.raises(ValueError, match="resize them, take repeat"):
            use(torch.rand(other))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_not_recolored_but_warped(colored, channels):
    augmenter, images = colored
    draw = augmenter.draw(images)
    maps = torch.rand(4, channels, 16, 16)
    for use in (draw.apply, draw.recolor):
        with pytest.raises(ValueError, match=r"use warp\(\) for masks and depth maps"):
            use(maps)
    assert draw.warp(maps).shape == maps.shape


def test_a_draw_moves_depth_maps_as_it_moves_images(colored):
    augmenter, images = colored
    draw = augmenter.draw(images)
    torch.testing.assert_close(draw.warp(images[:, :1]), draw.warp(images)[:, :1])
