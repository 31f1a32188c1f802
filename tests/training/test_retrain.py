import math

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from learned_aug import prior
from learned_aug.digits import all_conv
from learned_aug.training.choice import DrawChoice
from learned_aug.training.retrain import RetrainConfig, evaluate, retrain
from learned_aug.training.steer import SteeredDraws


def fresh():
    torch.manual_seed(0)
    return all_conv(width=2)


def test_training_learns_the_digits(trained, data):
    error, loss = evaluate(trained, data["test"])
    assert error < 0.3
    assert 0 < loss < 1


def test_training_repeats_with_its_seed_whatever_the_global_generator_drew(data, crop):
    models = []
    for before, seed in ((1, 1), (2, 1), (1, 2)):
        models.append(fresh())
        torch.manual_seed(before)
        retrain(models[-1], data["train"], RetrainConfig(steps=5), baseline=crop, seed=seed)
    one, two, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert not models[0].training


@pytest.mark.parametrize("make", [prior, lambda _: v2.TrivialAugmentWide(), lambda _: v2.MixUp(num_classes=10)])
def test_what_an_augmentation_draws_follows_the_seed_and_leaves_the_global_generator(data, make):
    images = torch.stack([data["train"][k][0] for k in range(16)])
    models = []
    for before in (1, 2):
        models.append(fresh())
        augment = make(images)
        torch.manual_seed(before)
        state = torch.get_rng_state()
        retrain(models[-1], data["train"], RetrainConfig(steps=3), augment=augment)
        assert torch.equal(torch.get_rng_state(), state)
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_of_which_nothing_trains_is_refused(data):
    for model in (fresh().requires_grad_(False), torch.nn.Flatten()):
        with pytest.raises(ValueError, match=r"must have parameters that train, got none; unfreeze"):
            retrain(model, data["train"], RetrainConfig(steps=1))


def test_a_model_without_parameters_is_evaluated(data):
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((5, 2)), torch.nn.Flatten())
    error, loss = evaluate(model, data["test"])
    assert 0.5 < error < 1
    assert 2 < loss < 3


def test_outputs_for_each_position_are_refused(data):
    model = torch.nn.Conv2d(1, 10, 3)
    for run in (lambda: evaluate(model, data["test"]), lambda: retrain(model, data["train"], RetrainConfig(steps=1))):
        with pytest.raises(ValueError, match=r"must give logits \(B, K\) with B = .*, 10, 26, 26\); give one logit"):
            run()


@pytest.mark.parametrize("augment", ["steered", [v2.RandomInvert()], v2.TrivialAugmentWide])
def test_what_is_no_augmentation_is_refused(data, augment):
    with pytest.raises(TypeError, match=r"must be a function of batches, .*got (str|list|TrivialAugmentWide)"):
        retrain(fresh(), data["train"], RetrainConfig(steps=1), augment=augment)


def test_all_of_a_batch_goes_through_the_augmentation(data):
    sizes = []

    def augment(images):
        sizes.append(len(images))
        return images

    retrain(fresh(), data["train"], RetrainConfig(steps=2), augment=augment)
    assert sizes == [50, 50]


def test_steered_draws_see_the_labels(data):
    model = fresh()
    steered = SteeredDraws(model, warmup=0)
    retrain(model, data["train"], RetrainConfig(steps=2), augment=steered)
    assert steered.calls == 2
    assert 0 < steered.metrics["probability"] < 1


def test_an_augmentation_that_changes_the_size_is_refused(data):
    with pytest.raises(ValueError, match="of the shape that it gets"):
        retrain(fresh(), data["train"], RetrainConfig(steps=1), augment=lambda images: images[:, :, :20])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes_are_trained_and_evaluated_in_theirs(data, dtype):
    model = fresh().to(dtype)
    retrain(model, data["train"], RetrainConfig(steps=2), augment=SteeredDraws(model, warmup=0))
    assert evaluate(model, data["test"])[1] > 0


def test_augmented_images_reach_the_model(data):
    seen = []
    model = fresh()
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    retrain(model, data["train"], RetrainConfig(steps=1), augment=lambda images: images * 0 + 7)
    handle.remove()
    assert ((seen[0] == 7).flatten(1).all(1)).sum() == 50


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


@pytest.mark.parametrize("steps", range(1, 13))
def test_any_number_of_steps_trains(steps):
    rates = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    data = TensorDataset(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)
    retrain(model, data, RetrainConfig(steps=steps), on_event=lambda event: rates.append(event.step))
    assert rates == list(range(1, steps + 1))


def test_the_rate_rises_to_each_groups_peak_and_falls_to_nearly_zero():
    made = []

    def optimizer(parameters):
        weight, bias = parameters
        made.append(torch.optim.SGD([{"params": [weight], "lr": 0.2}, {"params": [bias], "lr": 0.1}]))
        return made[0]

    rates = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    data = TensorDataset(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)
    config = RetrainConfig(steps=40, make_optimizer=optimizer)
    retrain(model, data, config, on_event=lambda event: rates.append([g["lr"] for g in made[0].param_groups]))
    weight, bias = (torch.tensor(rate) for rate in zip(*rates, strict=True))
    assert weight.max() == pytest.approx(0.2, rel=0.02)
    assert 0.2 < weight.argmax() / len(rates) < 0.4
    assert weight[-1] < 0.001
    torch.testing.assert_close(weight, 2 * bias)


def test_evaluating_a_model_in_training_leaves_it_as_it_was(model, data):
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    first = evaluate(model, data["test"])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert evaluate(model.eval(), data["test"]) == first


def test_labels_beyond_the_classes_are_named(model):
    data = TensorDataset(torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 10]))
    for call in (lambda: retrain(model, data, RetrainConfig(steps=1)), lambda: evaluate(model, data)):
        with pytest.raises(ValueError, match=r"0\.\.9.*label 10"):
            call()


def test_draws_for_another_model_are_refused(model, data, augmenter):
    for draws in (DrawChoice(fresh(), augmenter, by="loss"), SteeredDraws(fresh())):
        with pytest.raises(ValueError, match="model in training, got one for another"):
            retrain(model, data["train"], RetrainConfig(steps=1), augment=draws)


class Counting(torch.nn.Module):
    """A model whose first parameter counts its passes."""

    def __init__(self):
        super().__init__()
        self.passes = torch.nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)
        self.model = fresh()

    def forward(self, images):
        return self.model(images)


def test_images_come_in_the_dtype_of_the_first_floating_parameter(data):
    model, plain = Counting(), fresh()
    for trained in (model, plain):
        retrain(trained, data["train"], RetrainConfig(steps=3))
    assert evaluate(model, data["val"]) == evaluate(plain, data["val"])


def test_settings_of_numpy_and_no_others_are_integers():
    assert RetrainConfig(steps=np.int64(3)).steps == 3
    for steps in (2.0, "3", None, True):
        with pytest.raises(ValueError, match=r"RetrainConfig\.steps must be an integer >= 1, got"):
            RetrainConfig(steps=steps)
    for lr in ("0.1", None, math.nan):
        with pytest.raises(ValueError, match=r"RetrainConfig\.lr must be a finite number >= 0, got"):
            RetrainConfig(lr=lr)
