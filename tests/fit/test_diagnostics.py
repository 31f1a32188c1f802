import math

import pytest
import torch
from torch import nn

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.draw import Augmented
from learned_aug.fit.diagnostics import draw_distance, effective_rank, measure, shared_change
from learned_aug.influence.head import HeadTap, borrowed
from learned_aug.influence.layer import find_head


def out(flow, delta=None):
    delta = torch.zeros(len(flow), 3, *flow.shape[2:]) if delta is None else delta
    return Augmented(torch.zeros_like(delta), flow, delta)


def test_distance_of_draws_is_the_length_of_the_difference():
    flow = torch.zeros(4, 2, 5, 5)
    flow[2:, 0], flow[2:, 1] = 3, 4
    delta = torch.zeros(4, 3, 5, 5)
    delta[:2] = 0.25
    assert draw_distance(out(flow, delta)).tolist() == [5, 0.25]


def test_shared_change_sees_what_all_samples_have_and_nothing_else():
    flow = torch.randn(6, 2, 5, 5)
    flow = flow - flow.mean(0)
    assert shared_change(out(flow)).tolist() == pytest.approx([0, 0], abs=1e-12)
    flow[:, 0] += 3
    flow[:, 1] += 4
    assert shared_change(out(flow)).tolist() == pytest.approx([25, 0])


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_counts_equal_directions(rank):
    basis = torch.linalg.qr(torch.randn(2 * 8 * 8, rank))[0]
    codes = torch.linalg.qr(torch.randn(32, rank) - torch.randn(32, rank).mean(0))[0]
    codes = torch.linalg.qr(codes - codes.mean(0))[0]
    assert effective_rank((codes @ basis.T).view(32, 2, 8, 8)) == pytest.approx(rank, rel=1e-3)


def test_measured_figures_of_a_calibrated_augmenter(model, data):
    images, labels = (t[:64] for t in data["train"].tensors)
    generator = torch.Generator().manual_seed(0)
    config = AugmenterConfig(channels=1, size=28, affine=0.0, warp=1 / 32, color=0.0)
    augmenter = Augmenter(config, generator=generator).calibrate_(images, generator=generator)
    with borrowed(model), HeadTap(model, find_head(model)) as tap:
        batches = [(images[:32], labels[:32]), (images[32:], labels[32:])]
        figures = measure(augmenter, tap, batches, generator=generator)
        still = measure(silenced(augmenter), tap, batches, generator=generator)
        logits = tap(images)[1]
    assert figures["warp"] == pytest.approx(1 / 32, rel=0.1)
    assert figures["shift"] < 0.2 * figures["flow"]
    assert figures["rank"] > 5
    assert figures["color"] == 0
    assert still["flow"] == still["warp"] == still["shift"] == 0
    assert still["misclassified"] == pytest.approx(float((logits.argmax(1) != labels).float().mean()))
    assert "predicted_val_drop" not in figures


@pytest.mark.parametrize("side", [16, 32])
def test_strengths_are_shares_of_the_side_and_of_the_range_whatever_the_size_and_normalization(side):
    generator = torch.Generator().manual_seed(0)
    config = AugmenterConfig(size=16, affine=0.0, warp=0.05, color=0.05, mean=(0.5,), std=(0.25,))
    augmenter = Augmenter(config, generator=generator)
    images = nn.functional.interpolate(torch.rand(64, 3, 4, 4, generator=generator), (side, side), mode="bilinear")
    images = (0.8 * images + 0.1 - 0.5) / 0.25  # off the ends of the range, at which colors are clamped
    augmenter.calibrate_(images, generator=generator)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    with borrowed(classifier), HeadTap(classifier, classifier[2]) as tap:
        batches = [(images, torch.zeros(64, dtype=torch.long))]
        figures = measure(augmenter, tap, batches, generator=generator)
    assert figures["warp"] == pytest.approx(0.05, rel=0.1)
    assert figures["color"] == pytest.approx(0.05, rel=0.25)  # of 64 pairs of filters, each for a whole image


def silenced(augmenter):
    """The same networks with their last layer at zero."""
    for stage in augmenter.stages:
        stage.generator.deconvs[-1].weight.zero_()
        stage.generator.deconvs[-1].bias.zero_()
        stage.generator.center.zero_()
    return augmenter


def test_predicted_drop_is_the_mean_over_images(model, data):
    images, labels = (t[:40] for t in data["train"].tensors)
    augmenter = Augmenter(AugmenterConfig(channels=1, size=28))
    with borrowed(model), HeadTap(model, find_head(model)) as tap:
        figures = measure(
            augmenter, tap, [(images[:30], labels[:30]), (images[30:], labels[30:])], val_drop=lambda i, a, y: y.float()
        )
    assert figures["predicted_val_drop"] == pytest.approx(float(labels.float().mean()))


def noisy_linear(batches):
    """Figures of one augmenter on the same images in other batches."""
    generator = torch.Generator().manual_seed(0)
    augmenter = Augmenter(AugmenterConfig(size=16), generator=generator)
    augmenter.calibrate_(torch.rand(64, 3, 16, 16, generator=generator), generator=generator)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    with borrowed(classifier), HeadTap(classifier, classifier[2]) as tap:
        return measure(augmenter, tap, batches, generator=generator)


@pytest.mark.parametrize("size", [1, 3, 8, 24])
def test_rank_does_not_depend_on_the_size_of_the_batches(size):
    images, labels = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 2
    figures = noisy_linear(list(zip(images.split(size), labels.split(size), strict=True)))
    assert 5 < figures["rank"] <= 47


@pytest.mark.parametrize(("count", "known"), [(1, False), (2, False), (7, False), (8, True), (9, True)])
def test_rank_of_fewer_than_8_images_is_unknown_and_no_collapse(count, known):
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for batches in ([(images, torch.zeros(count).long())], [(image[None], torch.zeros(1).long()) for image in images]):
        rank = noisy_linear(batches)["rank"]
        assert (rank > 3) if known else math.isnan(rank)


def test_rank_of_one_warp_for_all_is_1():
    flow = torch.randn(1, 2, 8, 8)
    assert effective_rank(flow * torch.linspace(0.5, 2, 32)[:, None, None, None]) == pytest.approx(1, abs=1e-4)
