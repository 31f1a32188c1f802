import sys

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit import Event
from learned_aug.viz import diversity_grid, fit_curves


@pytest.mark.parametrize("channels", [1, 3])
def test_diversity_grid_has_a_row_for_each_image_and_a_column_for_each_draw(channels):
    config = AugmenterConfig(channels=channels, size=16, mean=(0.5,), std=(0.5,))
    images = torch.rand(3, channels, 16, 16) * 2 - 1
    augmenter = Augmenter(config).calibrate_(images, pixels=2)
    grid = diversity_grid(augmenter, images, draws=4, side=20)
    assert grid.size == (5 * 22 + 2, 3 * 22 + 2)
    pixels = pil_to_tensor(grid)
    original, draw = pixels[:, 2:22, 2:22], pixels[:, 2:22, 24:44]
    assert not torch.equal(original, draw)
    expected = resize(images[0] * 0.5 + 0.5, [20, 20], interpolation=InterpolationMode.BICUBIC).clamp(0, 1)
    assert (original / 255 - expected).abs().max() < 1.01 / 255


def test_diversity_grid_refuses_images_that_cannot_be_shown():
    with pytest.raises(ValueError, match=r"\(2, 5, 16, 16\)"):
        diversity_grid(Augmenter(AugmenterConfig(channels=5, size=16)), torch.rand(2, 5, 16, 16))


def test_fit_curves_draws_each_metric_of_each_stage(tmp_path):
    history = [Event("pretrain", k, 3, {"a": 1.0 * k, "b": -1.0}) for k in (1, 2, 3)] + [
        Event("ihvp", 1, 1, {"c": 0.0})
    ]
    figure = fit_curves(history)
    assert [axis.get_title() for axis in figure.axes] == ["pretrain: a", "pretrain: b"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 2.0, 3.0]
    figure.savefig(tmp_path / "curves.png")


def test_fit_curves_without_metrics_says_what_to_pass():
    with pytest.raises(ValueError, match="history"):
        fit_curves([])


def test_fit_curves_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"learned-aug\[viz\]"):
        fit_curves([Event("pretrain", 1, 2, {"a": 1.0})])
