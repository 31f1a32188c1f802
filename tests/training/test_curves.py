"""Strength curves, on the packaged digits."""

import copy

import pytest
import torch

import learned_aug
from learned_aug import Augmenter, AugmenterConfig, RetrainConfig, retrain
from learned_aug.config import FAMILIES
from learned_aug.digits import all_conv
from learned_aug.fit.judge import Estimate
from learned_aug.training import StrengthCurves, strength_curves


@pytest.fixture(scope="module")
def classifier(data):
    torch.manual_seed(0)
    model = all_conv(8)
    retrain(model, data["train"], RetrainConfig(steps=150))
    return model


def test_every_family_has_a_prediction_for_each_level_and_the_model_stays_as_it_was(classifier, data):
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    curves = strength_curves(classifier.train(), data["train"], data["val"], levels=(0.5, 1.0), images=100)
    assert list(curves.strengths) == list(FAMILIES)
    assert curves.strengths["warp"] == [0.0625, 0.125]
    assert all(len(d) == 2 and all(e.margin > 0 for e in d) for d in curves.drops.values())
    assert classifier.training
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


def test_weak_changes_change_little_and_the_same_seed_gives_the_same_curves(classifier, data):
    def run(seed):
        levels = (1e-3, 1.0)
        return strength_curves(classifier, data["train"], data["val"], levels=levels, images=200, seed=seed)

    curves = run(0)
    for drops in curves.drops.values():
        assert abs(drops[0].mean) < 0.02 * (abs(drops[1].mean) + drops[1].margin)
    assert run(0).drops == curves.drops
    assert run(1).drops != curves.drops


def test_a_color_change_that_destroys_the_labels_is_warned_of():
    """The class of a gray image is its level, which a strong color filter changes and a warp does not."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(800) % 4
    images = (0.15 + 0.23 * labels)[:, None, None, None] + 0.02 * torch.randn(800, 1, 8, 8, generator=generator)
    data = torch.utils.data.TensorDataset(images.clamp(0, 1), labels)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    retrain(model, data, RetrainConfig(steps=400, lr=0.1))
    augmenter = learned_aug.prior(images.clamp(0, 1))
    val = torch.utils.data.TensorDataset(*data.tensors)
    curves = strength_curves(model, data, val, augmenter, images=400)
    assert "color" in curves.warnings
    assert "warp" not in curves.warnings
    assert "color of" in curves.verdict


def test_a_family_that_is_off_has_no_curve(classifier, data):
    augmenter = learned_aug.prior(data["train"].tensors[0][:64]).set_strengths_(color=0)
    curves = strength_curves(classifier, data["train"], data["val"], augmenter, levels=(1.0,), images=64)
    assert list(curves.strengths) == ["affine", "warp"]


def test_intervals_that_all_hold_zero_are_no_evidence():
    curves = StrengthCurves({"warp": [0.1]}, {"warp": [Estimate(0.1, 0.2)]})
    assert curves.verdict.startswith("No evidence")
    assert "warp        0.1000    +0.1000 [-0.1000, +0.3000]" in str(curves)


def test_the_picture_has_a_panel_for_each_family():
    pytest.importorskip("matplotlib")
    curves = StrengthCurves(
        {"warp": [0.1, 0.2], "color": [0.3]}, {"warp": [Estimate(0.1, 0.2)] * 2, "color": [Estimate(-1.0, 0.5)]}
    )
    figure = curves.figure()
    assert [axis.get_xlabel() for axis in figure.axes] == ["warp", "color"]
    assert "color of 0.3 and more" in figure._suptitle.get_text()


@pytest.mark.parametrize("levels", [(), (0.0,), (-1.0, 1.0), (float("nan"),), (float("inf"),), ("1",), "1"])
def test_levels_that_are_not_positive_are_refused(classifier, data, levels):
    with pytest.raises(ValueError, match="levels must be positive"):
        strength_curves(classifier, data["train"], data["val"], levels=levels)


def test_weights_of_version_1_which_have_no_strengths_are_refused(classifier, data):
    config = AugmenterConfig.from_dict({"version": 1, "channels": 1, "size": 28})
    with pytest.raises(ValueError, match="version 1"):
        strength_curves(classifier, data["train"], data["val"], Augmenter(config))


@pytest.mark.parametrize("images", [0, -5, 1.5])
def test_a_number_of_images_that_cannot_be_is_refused(classifier, data, images):
    with pytest.raises(ValueError, match=f"images must be an integer >= 1, got {images}"):
        strength_curves(classifier, data["train"], data["val"], images=images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_classifier_of_another_dtype_has_about_the_same_curves(classifier, data, dtype):
    def run(model):
        return strength_curves(model, data["train"], data["val"], levels=(1.0,), images=200)

    one, two = run(classifier), run(copy.deepcopy(classifier).to(dtype))
    for family, (drop,) in one.drops.items():
        assert two.drops[family][0].mean == pytest.approx(drop.mean, abs=max(drop.margin, 1e-3))


def test_an_augmenter_for_another_normalization_is_refused(classifier, data):
    augmenter = learned_aug.prior((data["train"].tensors[0][:64] - 0.5) / 0.1, mean=0.5, std=0.1)
    normalized = torch.utils.data.TensorDataset((data["train"].tensors[0] - 9) / 0.1, data["train"].tensors[1])
    val = torch.utils.data.TensorDataset((data["val"].tensors[0] - 9) / 0.1, data["val"].tensors[1])
    with pytest.raises(ValueError, match=r"once .* is undone"):
        strength_curves(classifier, normalized, val, augmenter)
