import pytest
import torch
from torch.utils.data import TensorDataset

from learned_aug.demo import all_conv
from learned_aug.fit import RetrainConfig, evaluate, retrain


def fresh():
    torch.manual_seed(0)
    return all_conv(width=2)


def test_training_learns_the_digits(trained, data):
    error, loss = evaluate(trained, data["test"])
    assert error < 0.3
    assert 0 < loss < 1


def test_training_repeats_with_its_generator(data):
    models = [fresh(), fresh()]
    for model in models:
        retrain(model, data["train"], RetrainConfig(steps=5), generator=torch.Generator().manual_seed(1))
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not models[0].training


@pytest.mark.parametrize(("mix", "expected"), [(0.0, None), (0.5, 25), (1.0, 50)])
def test_mix_is_the_share_of_each_batch_that_is_augmented(data, mix, expected):
    sizes = []

    def augment(images):
        sizes.append(len(images))
        return images

    retrain(fresh(), data["train"], RetrainConfig(steps=2, mix=mix), augment=augment)
    assert sizes == ([] if expected is None else [expected] * 2)


def test_augmented_images_reach_the_model(data):
    seen = []
    model = fresh()
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    retrain(model, data["train"], RetrainConfig(steps=1), augment=lambda images: images * 0 + 7)
    handle.remove()
    assert ((seen[0] == 7).flatten(1).all(1)).sum() == 25


def test_events_report_every_step(data):
    events = []
    retrain(fresh(), data["train"], RetrainConfig(steps=3), on_event=events.append)
    assert [(e.stage, e.step, e.total) for e in events] == [("retrain", k, 3) for k in (1, 2, 3)]
    assert all(e.metrics["loss"] > 0 for e in events)


def test_evaluate_counts_errors_over_uneven_batches():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model[1].bias.zero_()
    images = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0]).view(5, 1, 1, 1)
    labels = torch.tensor([1, 1, 1, 0, 0])
    error, loss = evaluate(model, TensorDataset(images, labels), batch_size=2)
    assert error == pytest.approx(2 / 5)
    right, wrong = torch.nn.functional.cross_entropy(model(images), labels, reduction="none")[[0, 2]].tolist()
    assert loss == pytest.approx((3 * right + 2 * wrong) / 5)
