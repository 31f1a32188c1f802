import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.training.steer import SteeredDraws


def mean_score(choice, images, labels, repeats=8):
    with torch.no_grad():
        return torch.stack(
            [choice.snapshot.score(choice.augment(images, labels), labels) for _ in range(repeats)]
        ).mean()


@pytest.mark.parametrize("by", ["influence", "loss"])
def test_steered_draws_score_higher_with_the_tilt_and_lower_against_it(model, few, augmenter, batch, by):
    scores = []
    for tilt in (-3.0, 0.0, 3.0):
        choice = SteeredDraws(augmenter, model, few[0], few[1] if by == "influence" else None, tilt=tilt)
        choice.renew()
        scores.append(mean_score(choice, *batch))
    assert scores[0] < scores[1] < scores[2]


def test_gradients_of_more_draws_steer_further(model, few, augmenter, batch):
    scores = []
    for draws in (1, 8):
        choice = SteeredDraws(augmenter, model, *few, draws=draws)
        choice.renew()
        scores.append(mean_score(choice, *batch))
    assert scores[0] < scores[1]


def test_without_tilt_steered_draws_are_the_augmenters(model, few, augmenter, batch):
    choice = SteeredDraws(augmenter, model, *few, tilt=0.0)
    choice.renew()
    noise = augmenter.draw_noise(40)
    choice._noise = lambda images: noise
    expected = augmenter.draw(batch[0], noise=noise).apply(batch[0])
    assert torch.equal(choice.augment(*batch), expected)


def test_steered_draws_of_one_image_differ(model, few, augmenter, batch):
    choice = SteeredDraws(augmenter, model, *few)
    one, two = choice(*batch), choice(*batch)
    assert not one.requires_grad
    assert (one != two).flatten(1).any(1).all()


def test_steering_takes_an_augmenter_of_fixed_dropout(model, few, batch):
    generator = torch.Generator().manual_seed(0)
    fixed = Augmenter(AugmenterConfig(channels=1, size=28, dropout="fixed"), generator=generator)
    assert SteeredDraws(fixed, model, *few)(*batch).shape == batch[0].shape


def test_steering_by_nothing_is_refused(model, few, augmenter):
    bare = Augmenter(AugmenterConfig(channels=1, size=28, tau_dropout=0.0))
    with pytest.raises(ValueError, match="tau_dropout > 0"):
        SteeredDraws(bare, model, *few)
    with pytest.raises(ValueError, match="tilt must be finite, got nan"):
        SteeredDraws(augmenter, model, *few, tilt=float("nan"))
