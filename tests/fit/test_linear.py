import functools

import pytest
import torch
import torch.nn.functional as F

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit import MaximizeConfig, maximize
from learned_aug.runtime.data import Batches
from learned_aug.influence.head import HeadBatch, HeadTap, borrowed, collect, find_head
from learned_aug.influence.solvers import relative_damping, solve
from learned_aug.influence.problem import HeadProblem, mean_gradient, refit
from learned_aug.influence.s_val import predicted_influence

CPU = torch.device("cpu")
LINEAR = functools.partial(MaximizeConfig, objective="linear")


class Setting:
    """A small classifier, its refitted head and s_val on the digits."""

    def __init__(self, tap, data):
        self.tap = tap
        self.train = collect(self.tap, Batches(data["train"], "train", batch_size=200, device=CPU))
        self.val = collect(self.tap, Batches(data["val"], "val", batch_size=200, device=CPU))
        problem = HeadProblem.from_batch(self.train, self.tap.head, weight_decay=1e-3)
        self.head = refit(problem).problem
        self.damping = relative_damping(self.head, 10.0)
        self.gradient = mean_gradient(self.val_batch(self.head))
        self.ihvp = solve(self.head, self.gradient, self.damping).value

    def val_batch(self, head):
        features = self.val.features.to(head.weight.dtype)
        return HeadBatch(features, F.linear(features, head.weight, head.bias), self.val.labels)

    def val_loss(self, head):
        batch = self.val_batch(head)
        return float(F.cross_entropy(batch.logits, batch.labels))


@pytest.fixture(scope="module")
def setting(trained, data):
    with borrowed(trained), HeadTap(trained, find_head(trained)) as tap:
        yield Setting(tap, data)


@pytest.fixture
def augmenter(data):
    generator = torch.Generator().manual_seed(0)
    network = Augmenter(AugmenterConfig(channels=1, size=28), generator=generator)
    return network.calibrate_(data["train"].tensors[0][:64], pixels=2.0, generator=generator)


def test_stepping_the_head_along_the_prediction_moves_the_validation_loss_as_predicted(setting, augmenter, data):
    images, labels = (t[:128] for t in data["train"].tensors)
    with torch.no_grad():
        augmented = augmenter(images, generator=torch.Generator().manual_seed(1))
        influence, _ = predicted_influence(setting.tap, setting.head, setting.ihvp, images, augmented, labels)
    order = influence.argsort()
    loss = setting.val_loss(setting.head)
    for chosen in (order[:16], order[-16:]):
        # Eq. 9: replacing z by z~ moves the head by -(H + damping)^-1 (grad l(z~) - grad l(z)) per unit of weight.
        gradients = []
        for source in (augmented, images):
            with torch.no_grad():
                features = setting.tap(source[chosen])[0].double()
            logits = F.linear(features, setting.head.weight, setting.head.bias)
            residual = logits.softmax(1) - F.one_hot(labels[chosen], 10)
            gradients.append(residual.T @ F.pad(features, (0, 1), value=1.0) / len(chosen))
        step = solve(setting.head, gradients[0] - gradients[1], setting.damping).value
        weight = 1e-3
        moved = setting.head.with_theta(setting.head.theta - weight * step)
        actual = setting.val_loss(moved) - loss
        predicted = weight * float(influence[chosen].mean())
        assert actual == pytest.approx(predicted, rel=0.1)
    assert influence.min() < 0 < influence.max()  # both signs were tested


def test_influence_of_unchanged_images_is_zero(setting, data):
    images, labels = (t[:32] for t in data["train"].tensors)
    influence, logits = predicted_influence(setting.tap, setting.head, setting.ihvp, images, images, labels)
    assert influence.abs().max() == 0
    assert torch.equal(logits, setting.tap(images)[1])


def run(setting, augmenter, data, config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(data["train"], "train", batch_size=64, device=CPU, shuffle=True, generator=generator).forever()
    events = []
    maximize(
        augmenter,
        setting.tap,
        batches,
        setting.head,
        setting.ihvp,
        config,
        seed=seed,
        on_event=events.append,
    )
    return events


@pytest.mark.slow
def test_maximising_raises_the_predicted_drop(setting, augmenter, data):
    events = run(setting, augmenter, data, LINEAR(steps=60, lr=1e-3))
    drops = [e.metrics["predicted_val_drop"] for e in events]
    assert sum(drops[-10:]) > sum(drops[:10])
    assert not any(p.requires_grad for p in augmenter.parameters())


@pytest.mark.parametrize("config", [LINEAR(steps=2, lr=0.0), LINEAR(steps=0)])
def test_learning_rate_0_or_no_steps_leave_the_networks_as_they_are(setting, augmenter, data, config):
    before = {name: t.clone() for name, t in augmenter.state_dict().items()}
    events = run(setting, augmenter, data, config)
    assert all(torch.equal(t, before[name]) for name, t in augmenter.state_dict().items())
    assert len(events) == config.steps


def test_divergence_is_named_before_the_networks_are_spoilt(setting, augmenter, data):
    with pytest.raises(RuntimeError, match=r"maximize diverged.*lower MaximizeConfig.lr"):
        run(setting, augmenter, data, LINEAR(steps=5, lr=1e30))
    assert not any(p.requires_grad for p in augmenter.parameters())


def test_batches_of_one_image_are_refused(setting, augmenter, data):
    images, labels = (t[:1] for t in data["train"].tensors)
    with pytest.raises(ValueError, match="at least 2 images"):
        maximize(
            augmenter,
            setting.tap,
            iter([(images, labels)]),
            setting.head,
            setting.ihvp,
            LINEAR(steps=1),
            on_event=lambda _: None,
        )
