import copy

import pytest
import torch
import torch.nn.functional as F

from learned_aug.influence.head import HeadBatch
from learned_aug.influence.scores import influence_up
from learned_aug.training.choice import DrawChoice
from learned_aug.training.retrain import RetrainConfig, retrain


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
    seen, influences = choice.snapshot, []
    for drawn in recording.given:
        with torch.no_grad():
            features = seen.tap(drawn)[0].double()
        logits = F.linear(features, seen.head.weight, seen.head.bias)
        influences.append(influence_up(seen.ihvp, HeadBatch(features, logits, labels)))
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
        losses = [
            F.cross_entropy(choice.snapshot.tap(x)[1], labels, reduction="none") for x in (chosen, *recording.given)
        ]
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
        values.append(choice.snapshot.ihvp)
        with torch.no_grad():
            model[-1].weight.mul_(0.5)
            model[0].weight.mul_(1.1)
    assert values[0] is values[1]
    assert values[2] is values[3]
    assert not torch.equal(values[1], values[2])


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
