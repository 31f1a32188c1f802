import copy

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from learned_aug.training import snapshot
from learned_aug.training.choice import DrawChoice
from learned_aug.training.steer import SteeredDraws


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
    assert torch.allclose(choice.snapshot.tap.model[3].running_mean, expected, atol=1e-4)


def test_batch_norm_does_not_depend_on_the_order_of_the_training_set(model, data, few, augmenter):
    model.train()
    images, labels = data["train"].tensors
    variances = []
    for order in (labels.argsort(), torch.randperm(len(labels))):
        choice = DrawChoice(augmenter, model, TensorDataset(images[order], labels[order]), few[1])
        choice.renew()
        variances.append(choice.snapshot.tap.model[9].running_var)
    assert torch.allclose(*variances, rtol=0.05)  # 256 images of three classes would vary less


@pytest.mark.parametrize("loader", [False, True])
def test_batch_norm_of_many_images_is_measured_on_some(model, few, augmenter, monkeypatch, loader):
    model.train()
    monkeypatch.setattr(snapshot, "NORMED", 100)
    choice = DrawChoice(augmenter, model, DataLoader(few[0], 40) if loader else few[0], None)
    seen = []
    copied = copy.deepcopy(model)
    copied.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    choice.snapshots._measure_batch_norm(copied)
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
    assert torch.equal(choice.snapshot.tap.model[3].running_mean, model[3].running_mean)
    assert not torch.equal(choice.snapshot.tap.model[6].running_mean, model[6].running_mean)
