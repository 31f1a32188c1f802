import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit import DrawChoice, HeadBatch, RetrainConfig, SteeredDraws, influence_up, retrain


@pytest.fixture
def augmenter(data):
    generator = torch.Generator().manual_seed(0)
    network = Augmenter(AugmenterConfig(channels=1, size=28), generator=generator)
    return network.calibrate_(data["train"].tensors[0][:64], pixels=2.0, generator=generator)


@pytest.fixture
def batch(data):
    return tuple(t[:40] for t in data["train"].tensors)


class Recording:
    """An augmenter that keeps what it gave."""

    def __init__(self, augmenter):
        self.augmenter, self.given = augmenter, []

    def __call__(self, images):
        self.given.append(self.augmenter(images))
        return self.given[-1]


def test_each_image_gets_the_draw_of_the_lowest_influence(model, few, augmenter, batch):
    images, labels = batch
    recording = Recording(augmenter)
    choice = DrawChoice(recording, model, *few, draws=3)
    chosen = choice(images, labels)
    influences = []
    for drawn in recording.given:
        with torch.no_grad():
            features = choice.tap(drawn)[0].double()
        logits = F.linear(features, choice.problem.weight, choice.problem.bias)
        influences.append(influence_up(choice.ihvp, HeadBatch(features, logits, labels)))
    best = torch.stack(influences).argmin(0)
    assert len(best.unique()) == 3  # every draw is the best of some image
    for k, drawn in enumerate(recording.given):
        assert torch.equal(chosen[best == k], drawn[best == k])


def test_without_validation_images_each_gets_the_draw_of_the_highest_loss(model, few, augmenter, batch):
    images, labels = batch
    recording = Recording(augmenter)
    choice = DrawChoice(recording, model, few[0], None, draws=3)
    chosen = choice(images, labels)
    with torch.no_grad():
        losses = [F.cross_entropy(choice.tap(x)[1], labels, reduction="none") for x in (chosen, *recording.given)]
    assert torch.equal(losses[0], torch.stack(losses[1:]).amax(0))


def test_one_draw_is_the_augmenter_itself(model, few, augmenter, batch):
    recording = Recording(augmenter)
    chosen = DrawChoice(recording, model, *few, draws=1)(*batch)
    assert torch.equal(chosen, recording.given[0])


def test_model_in_training_is_left_as_it_is(model, few, augmenter, batch):
    model.train()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_hooks) for m in model.modules()]
    DrawChoice(augmenter, model, *few)(*batch)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_snapshot_is_renewed_as_often_as_asked_and_follows_the_model(model, few, augmenter, batch):
    choice = DrawChoice(augmenter, model, *few, every=2)
    values = []
    for _ in range(4):
        choice(*batch)
        values.append(choice.ihvp)
        with torch.no_grad():
            model[-1].weight.mul_(0.5)
            model[0].weight.mul_(1.1)
    assert values[0] is values[1]
    assert values[2] is values[3]
    assert not torch.equal(values[1], values[2])


def test_batch_norm_statistics_of_the_snapshot_are_those_of_the_training_set(model, few, augmenter, batch):
    model.train()
    with torch.no_grad():
        model[3].running_mean.fill_(100.0)  # far behind, as those of a model in training may be
    train = Subset(few[0].dataset, range(300))  # two batches, of 256 and of 44
    choice = DrawChoice(augmenter, model, train, few[1])
    choice(*batch)
    images = torch.stack([image for image, _ in train])
    with torch.no_grad():
        expected = model[:3](images).mean(dim=(0, 2, 3))
    assert torch.allclose(choice.tap.model[3].running_mean, expected, atol=1e-4)


def test_batch_norm_does_not_depend_on_the_order_of_the_training_set(model, data, few, augmenter):
    model.train()
    images, labels = data["train"].tensors
    variances = []
    for order in (labels.argsort(), torch.randperm(len(labels))):
        choice = DrawChoice(augmenter, model, TensorDataset(images[order], labels[order]), few[1])
        choice.renew()
        variances.append(choice.tap.model[9].running_var)
    assert torch.allclose(*variances, rtol=0.05)  # 256 images of three classes would vary less


@pytest.mark.parametrize("loader", [False, True])
def test_batch_norm_of_many_images_is_measured_on_some(model, few, augmenter, monkeypatch, loader):
    model.train()
    monkeypatch.setattr(sys.modules[DrawChoice.__module__], "NORMED", 100)
    choice = DrawChoice(augmenter, model, DataLoader(few[0], 40) if loader else few[0], None)
    seen = []
    snapshot = copy.deepcopy(model)
    snapshot.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    choice._measure_batch_norm(snapshot)
    assert seen == ([40, 40, 40] if loader else [100])


def test_batches_of_one_image_cannot_measure_batch_norm(model, few, augmenter):
    model.train()
    with pytest.raises(ValueError, match="batches of 2 images or more"):
        SteeredDraws(augmenter, model, DataLoader(few[0]), None).renew()


def test_frozen_batch_norm_stays_frozen(model, few, augmenter, batch):
    model.train()
    model[3].eval()
    choice = DrawChoice(augmenter, model, *few)
    choice(*batch)
    assert torch.equal(choice.tap.model[3].running_mean, model[3].running_mean)
    assert not torch.equal(choice.tap.model[6].running_mean, model[6].running_mean)


def test_retraining_hands_the_labels_to_the_choice(model, data, few, augmenter):
    seen = []

    class Watching(DrawChoice):
        def __call__(self, images, labels):
            seen.append(labels)
            return super().__call__(images, labels)

    retrain(model, data["train"], RetrainConfig(steps=2), augment=Watching(augmenter, model, *few))
    assert [len(labels) for labels in seen] == [25, 25]


@pytest.mark.parametrize("name", ["draws", "every"])
def test_settings_below_one_are_refused(model, few, augmenter, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        DrawChoice(augmenter, model, *few, **{name: 0})


def mean_score(choice, images, labels, repeats=8):
    with torch.no_grad():
        return torch.stack([choice.score(choice.augment(images, labels), labels) for _ in range(repeats)]).mean()


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
