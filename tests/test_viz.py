import math
import sys

import PIL.ImageFont
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from learned_aug import Augmenter, AugmenterConfig, viz
from learned_aug.runtime.events import Event
from learned_aug.viz import (
    GAP,
    LABEL_WIDTH,
    LINE,
    corrected_samples,
    diversity_grid,
    fit_curves,
    flow_colors,
    influence_scatter,
    interval_chart,
    tau_traversal,
)


def calibrated(images, **config):
    config = AugmenterConfig(channels=images.shape[1], size=images.shape[2], **config)
    return Augmenter(config, generator=torch.Generator().manual_seed(0)).calibrate_(images)


def random_images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_diversity_grid_has_a_row_for_each_image_and_a_column_for_each_draw(channels):
    images = random_images(3, channels, 16, 16) * 2 - 1
    augmenter = calibrated(images, mean=(0.5,), std=(0.5,))
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


# The way from one mask to another


@pytest.mark.parametrize(
    ("channels", "variant", "rows"),
    [(1, "parallel", 5), (3, "parallel", 5), (3, "serial", 5), (3, "spatial", 3), (3, "appearance", 3)],
)
def test_traversal_has_the_rows_that_the_augmenter_has_fields_for(channels, variant, rows):
    images = random_images(8, channels, 16, 16)
    picture = tau_traversal(calibrated(images, variant=variant), images[0], steps=6, side=64)
    assert picture.size == (LABEL_WIDTH + 6 * 66 + 2, rows * 66 + 2)


def cell(picture, row, column, side=48):
    left, top = LABEL_WIDTH + GAP + column * (side + GAP), GAP + row * (side + GAP)
    return pil_to_tensor(picture)[:, top : top + side, left : left + side] / 255


def test_traversal_begins_and_ends_with_its_draws():
    images = random_images(8, 3, 48, 48) * 2 - 1
    augmenter = calibrated(images, mean=(0.5,), std=(0.5,))
    noise = augmenter.draw_noise(2, generator=torch.Generator().manual_seed(2))
    picture = tau_traversal(augmenter, images[0], noise, steps=4, side=48)
    for column, part in ((0, noise[:1]), (3, noise[1:])):
        out = augmenter.augment(images[:1], part)
        final, warped = (x[0] * 0.5 + 0.5 for x in (out.images, out.images - out.delta))
        assert (cell(picture, 2, column) - warped.clamp(0, 1)).abs().max() < 1.01 / 255
        assert (cell(picture, 4, column) - final.clamp(0, 1)).abs().max() < 1.01 / 255
    assert not torch.equal(cell(picture, 4, 0), cell(picture, 4, 3))
    # The appearance field is scaled to its largest value, and gray is none.
    fields = torch.stack([cell(picture, 3, k) for k in range(4)])
    assert (fields - 0.5).abs().max() == pytest.approx(0.5, abs=1.01 / 255)


def test_traversal_needs_both_ends_and_one_image():
    images = random_images(8, 1, 16, 16)
    augmenter = calibrated(images)
    with pytest.raises(ValueError, match="steps must be 2 or more"):
        tau_traversal(augmenter, images[0], steps=1)
    with pytest.raises(ValueError, match="side must be 48 pixels or more"):
        tau_traversal(augmenter, images[0], side=32)
    with pytest.raises(ValueError, match=r"\(8, 1, 16, 16\)"):
        tau_traversal(augmenter, images)


def test_flow_colors_give_direction_as_hue_and_length_as_purity():
    angle = torch.arange(6) * math.pi / 3
    flow = 3 * torch.stack([angle.cos(), angle.sin()])[None, :, None]  # (1, 2, 1, 6)
    pure = flow_colors(flow, 3.0)[0, :, 0].T
    expected = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]])
    assert torch.allclose(pure, expected.float(), atol=1e-5)
    assert torch.allclose(flow_colors(flow / 2, 3.0)[0, :, 0].T, (1 + expected) / 2, atol=1e-5)
    assert torch.equal(flow_colors(torch.zeros(1, 2, 1, 1), 0.0), torch.ones(1, 3, 1, 1))


# Samples that were corrected


def test_corrected_samples_shows_those_that_were_wrong_and_are_right():
    images = [torch.full((1, 8, 8), k / 10) for k in range(6)]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    before = torch.tensor([0, 2, 1, 1, 1, 2])  # 1, 2 and 3 are wrong
    after = torch.tensor([0, 1, 0, 0, 2, 2])  # 1 and 3 are right now, 4 is wrong now
    picture = corrected_samples(images, labels, before, after, columns=2, side=16)
    top = LINE + 3 * GAP
    levels = [picture.getpixel((GAP + k * 18 + 8, top + 8))[0] for k in range(2)]
    assert levels == pytest.approx([0.1 * 255, 0.3 * 255], abs=1)
    assert picture.height == top + 16 + 2 * LINE + 2 * GAP
    fewer = corrected_samples(images, labels, before, after, classes=["a", "b", "c"], count=1, columns=2, side=16)
    assert fewer.getpixel((GAP + 18 + 8, top + 8)) == (255, 255, 255)


def test_corrected_samples_without_any_still_says_so():
    labels = torch.tensor([0, 1])
    picture = corrected_samples(torch.rand(2, 1, 8, 8), labels, labels, labels)
    assert picture.height == LINE + 3 * GAP
    assert picture.getextrema()[0][0] < 255  # the line of text


def test_corrected_samples_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        corrected_samples(torch.rand(2, 1, 8, 8), torch.zeros(2).long(), torch.zeros(3).long(), torch.zeros(2).long())


# Names of classes


@pytest.fixture
def fonts():
    """Forget the fonts before and after a test."""
    for cached in (viz._fonts, viz._has):
        cached.cache_clear()
    yield
    for cached in (viz._fonts, viz._has):
        cached.cache_clear()


@pytest.mark.parametrize("name", ["cat", "größe", "Łódź", "кошка", "γάτα", "naïve ½ ± ..."])
def test_names_of_european_scripts_are_drawn_as_they_are(name):
    font, line = viz._shown(name)
    assert line == name
    assert all(viz._has(font, letter) for letter in line)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\u0301", "á"),
        ("\U000f0000", "\\U000f0000"),
        ("a\x07b", "a\\x07b"),
        ("\u202e", "\\u202e"),
        ("\udcff", "\\udcff"),
    ],
)
def test_letters_that_no_font_has_are_escaped_and_accents_joined(name, shown):
    assert viz._shown(name)[1] == shown


def test_without_other_fonts_names_are_escaped_and_never_squares(monkeypatch, fonts):
    monkeypatch.setattr(viz, "SYSTEM_FONTS", ())
    assert viz._shown("猫 кошка")[1] == "\\u732b кошка"  # matplotlib's has no Chinese
    viz._fonts.cache_clear()
    monkeypatch.setattr(viz.importlib.util, "find_spec", lambda name: None)
    assert viz._shown("größe 猫")[1] in ("gr\\xf6\\xdfe \\u732b", "größe \\u732b")  # by PIL's own font
    viz._fonts.cache_clear()

    def missing(*_, **__):
        raise ImportError("a PIL without FreeType")

    bitmap = object()  # what PIL gives there
    monkeypatch.setattr(PIL.ImageFont, "load_default", lambda size=None: bitmap if size is None else missing())
    monkeypatch.setattr(PIL.ImageFont, "truetype", missing)
    assert viz._shown("cat ö 猫") == (bitmap, "cat \\xf6 \\u732b")


def test_a_picture_with_such_names_is_drawn():
    labels, before = torch.tensor([0, 1]), torch.tensor([1, 0])
    names = ["größe", "a very long name of a class, which does not fit: 猫"]
    one = corrected_samples(torch.rand(2, 1, 8, 8), labels, before, labels, classes=names)
    two = corrected_samples(torch.rand(2, 1, 8, 8), labels, before, labels, classes=["\u2581" * 5, names[1]])
    assert one.size == two.size
    top = LINE + 3 * GAP + 80
    assert one.crop((GAP, top, GAP + 80, top + LINE)).tobytes() != two.crop((GAP, top, GAP + 80, top + LINE)).tobytes()
    assert one.crop((GAP + 80, top, GAP + 82, top + 2 * LINE)).getextrema()[0] == (255, 255)  # cut before its neighbor


# Curves


def test_fit_curves_draws_each_metric_of_each_stage(tmp_path):
    history = [Event("pretrain", k, 3, {"a": 1.0 * k, "b": -1.0}) for k in (1, 2, 3)] + [
        Event("ihvp", 1, 1, {"c": 0.0})
    ]
    figure = fit_curves(history)
    assert [axis.get_title() for axis in figure.axes] == ["pretrain: a", "pretrain: b"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 2.0, 3.0]
    assert len(figure.axes[0].lines) == 1
    figure.savefig(tmp_path / "curves.png")


def test_fit_curves_of_many_steps_show_the_mean_over_a_tenth_of_them():
    figure = fit_curves([Event("pretrain", k, 40, {"a": k % 2}) for k in range(1, 41)])
    _, mean = figure.axes[0].lines
    assert list(mean.get_xdata()) == list(range(4, 41))
    assert set(mean.get_ydata()) == {0.5}


def test_fit_curves_without_metrics_says_what_to_pass():
    with pytest.raises(ValueError, match="history"):
        fit_curves([])


def test_influence_scatter_states_correlation_and_slope():
    predicted = torch.tensor([-2e-6, 1e-6, 3e-6])
    figure = influence_scatter(predicted, 2 * predicted)
    (axis,) = figure.axes
    assert axis.get_title() == "n = 3, Pearson 1.0000, slope 2.000"
    assert "1e-6 nats" in axis.get_xlabel()
    assert torch.allclose(torch.tensor(axis.collections[0].get_offsets()[:, 1]), 2e6 * predicted.double(), atol=1e-4)


def test_influence_scatter_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        influence_scatter(torch.zeros(3), torch.zeros(2))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: fit_curves([Event("pretrain", 1, 2, {"a": 1.0})]),
        lambda: influence_scatter(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])),
    ],
    ids=["fit_curves", "influence_scatter"],
)
def test_figures_without_matplotlib_name_the_extra(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"learned-aug\[viz\]"):
        draw()


def test_intervals_are_drawn_by_row_and_left_out_where_there_is_none():
    (axis,) = interval_chart({"one": [1.0, 3.0], "two": [4.0]}, {"one": 0.5, "two": math.nan}, what="%").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two"]
    means = [line.get_xdata() for line in axis.lines if line.get_marker() == "o"]
    assert [float(x[0]) for x in means] == [2.0, 4.0]
    assert len(axis.containers) == 1
    low, high = axis.get_ylim()
    assert low > high  # the first row is at the top
