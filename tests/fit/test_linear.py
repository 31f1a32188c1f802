import pytest
import torch
import torch.nn.functional as F

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit.linear import LinearConfig, Maximizing
from learned_aug.influence.head import HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.refit import refit
from learned_aug.influence.s_val import predicted_influence
from learned_aug.influence.solvers import solve
from learned_aug.influence.system import relative_damping
from learned_aug.runtime.stream import Stream

CPU = torch.device("cpu")


class Setting:
    """A small classifier, its refitted head and s_val on the digits."""

    def __init__(self, tap, data):
        self.tap = tap
        train, self.val = (
            collect(self.tap, Stream(data[name], name, "test", seed=0, batch_size=200, device=CPU).once())
            for name in ("train", "val")
        )
        problem = HeadProblem.from_batch(train, self.tap.head, weight_decay=1e-3)
        self.problem = refit(problem).problem
        self.head = self.problem.head
        self.damping = relative_damping(self.problem, 10.0)
        self.ihvp = solve(self.problem, self.problem.validation_gradient(self.val), self.damping).value

    def val_loss(self, problem):
        batch = problem.head(self.val.features.double(), self.val.labels)
        return float(F.cross_entropy(batch.logits, batch.labels))


@pytest.fixture(scope="module")
def setting(trained, data):
    with borrowed(trained), HeadTap(trained, find_head(trained)) as tap:
        yield Setting(tap, data)


@pytest.fixture
def augmenter(data):
    generator = torch.Generator().manual_seed(0)
    config = AugmenterConfig(channels=1, size=28, affine=0.0, warp=0.0625, color=0.0)
    return Augmenter(config, generator=generator).calibrate_(data["train"].tensors[0][:64], generator=generator)


def test_stepping_the_head_along_the_prediction_moves_the_validation_loss_as_predicted(setting, augmenter, data):
    images, labels = (t[:128] for t in data["train"].tensors)
    with torch.no_grad():
        augmented = augmenter(images, generator=torch.Generator().manual_seed(1))
        influence, _ = predicted_influence(setting.tap, setting.head, setting.ihvp, images, augmented, labels)
    order = influence.argsort()
    loss = setting.val_loss(setting.problem)
    for chosen in (order[:16], order[-16:]):
        # Eq. 9: replacing z by z~ moves the head by -(H + damping)^-1 (grad l(z~) - grad l(z)) per unit of weight.
        gradients = []
        for source in (augmented, images):
            with torch.no_grad():
                features = setting.tap(source[chosen])[0].double()
            logits = F.linear(features, setting.head.weight, setting.head.bias)
            residual = logits.softmax(1) - F.one_hot(labels[chosen], 10)
            gradients.append(residual.T @ F.pad(features, (0, 1), value=1.0) / len(chosen))
        step = solve(setting.problem, gradients[0] - gradients[1], setting.damping).value
        weight = 1e-3
        moved = setting.problem.with_theta(setting.problem.theta - weight * step)
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
    batches = Stream(data["train"], "train", "test", seed=seed, batch_size=64, device=CPU, shuffle=True)
    events = []
    Maximizing(augmenter, setting.tap, batches, setting.head, setting.ihvp, config, seed=seed).run(events.append)
    return events


@pytest.mark.slow
def test_maximizing_raises_the_predicted_drop(setting, augmenter, data):
    events = run(setting, augmenter, data, LinearConfig(steps=60, lr=1e-3))
    drops = [e.metrics["predicted_val_drop"] for e in events]
    assert sum(drops[-10:]) > sum(drops[:10])
    assert not any(p.requires_grad for p in augmenter.parameters())


@pytest.mark.parametrize("config", [LinearConfig(steps=2, lr=0.0), LinearConfig(steps=0)])
def test_learning_rate_0_or_no_steps_leave_the_networks_as_they_are(setting, augmenter, data, config):
    before = {name: t.clone() for name, t in augmenter.state_dict().items()}
    events = run(setting, augmenter, data, config)
    assert all(torch.equal(t, before[name]) for name, t in augmenter.state_dict().items())
    assert len(events) == config.steps


def test_divergence_is_named_before_the_networks_are_spoiled(setting, augmenter, data):
    with pytest.raises(RuntimeError, match=r"maximize diverged.*lower LinearConfig.lr"):
        run(setting, augmenter, data, LinearConfig(steps=5, lr=1e30))
    assert not any(p.requires_grad for p in augmenter.parameters())


def test_batches_of_one_image_are_refused(setting, augmenter, data):
    images, labels = (t[:1] for t in data["train"].tensors)
    args = augmenter, setting.tap, iter([(images, labels)]), setting.head, setting.ihvp, LinearConfig(steps=1)
    with pytest.raises(ValueError, match="at least 2 images"):
        Maximizing(*args, seed=0).run(lambda event: None)
