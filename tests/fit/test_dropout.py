import copy
import math

import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit.dropout import DropoutConfig, LearningDropout, kl_to_prior
from learned_aug.influence.head import HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.s_val import InfluenceConfig, predicted_influence, solve_s_val
from learned_aug.runtime.stream import Stream

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def influence(trained, data):
    """An open tap, the refitted head and s_val on the digits."""
    with borrowed(trained), HeadTap(trained, find_head(trained)) as tap:
        batches = (
            collect(tap, Stream(data[name], name, "test", seed=0, batch_size=200, device=CPU).once(), keep_logits=False)
            for name in ("train", "val")
        )
        head, solution = solve_s_val(*batches, tap.head, InfluenceConfig())
        yield tap, head, solution.value


def build(data, **config):
    generator = torch.Generator().manual_seed(0)
    alone = {"affine": 0.0, "warp": 1 / 32, "color": 0.0}
    network = Augmenter(AugmenterConfig(channels=1, size=28, **{**alone, **config}), generator=generator)
    return network.calibrate_(data["train"].tensors[0][:64], generator=generator)


def run(influence, augmenter, data, config):
    batches = Stream(data["train"], "train", "test", seed=1, batch_size=64, device=CPU, shuffle=True)
    events = []
    LearningDropout(augmenter, influence[0], batches, *influence[1:], config, seed=0).run(events.append)
    return events


def mean_influence(influence, augmenter, images, labels, draws=8):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        values = [
            predicted_influence(*influence, images, augmenter(images, generator=generator), labels)[0]
            for _ in range(draws)
        ]
    return torch.stack(values).mean(0)


@pytest.mark.slow
def test_learned_draws_are_predicted_to_help_more_also_on_unseen_images_and_stay_diverse(influence, data):
    fixed = build(data)
    learned = copy.deepcopy(fixed)
    events = run(influence, learned, data, DropoutConfig(steps=200))
    assert events[-1].metrics["agreement"] > events[0].metrics["agreement"] + 0.1
    for name in ("train", "test"):
        images, labels = (t[:400] for t in data[name].tensors)
        # Influences have heavy tails, so the typical image decides.
        better = mean_influence(influence, learned, images, labels) < mean_influence(influence, fixed, images, labels)
        assert better.float().mean() > 0.6
    images = data["train"].tensors[0][:1]
    same = images.expand(200, -1, -1, -1)
    spread = [a.augment(same, generator=torch.Generator().manual_seed(3)).flow.std(0).mean() for a in (fixed, learned)]
    assert spread[1] > 0.5 * spread[0]


def test_only_the_keep_layers_of_e_change(influence, data):
    augmenter = build(data)
    before = {name: t.clone() for name, t in augmenter.state_dict().items()}
    run(influence, augmenter, data, DropoutConfig(steps=2))
    changed = {name for name, t in augmenter.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {name for name in before if ".keep." in name}
    assert not any(p.requires_grad or p.grad is not None for p in augmenter.parameters())


@pytest.mark.parametrize("config", [DropoutConfig(steps=2, lr=0.0), DropoutConfig(steps=0)])
def test_learning_rate_0_or_no_steps_leave_e_as_it_is(influence, data, config):
    augmenter = build(data)
    before = {name: t.clone() for name, t in augmenter.state_dict().items()}
    assert len(run(influence, augmenter, data, config)) == config.steps
    assert all(torch.equal(t, before[name]) for name, t in augmenter.state_dict().items())


@pytest.mark.parametrize("config", [{"dropout": "fixed"}, {"tau_dropout": 0.0}])
def test_dropout_that_cannot_learn_is_refused(influence, data, config):
    augmenter = Augmenter(AugmenterConfig(channels=1, size=28, **config))
    with pytest.raises(ValueError, match='dropout="learned" and tau_dropout > 0'):
        run(influence, augmenter, data, DropoutConfig(steps=1))


def test_divergence_is_named(influence, data):
    with pytest.raises(RuntimeError, match=r"maximize diverged.*lower DropoutConfig.lr"):
        run(influence, build(data), data, DropoutConfig(steps=9, lr=1e30))


def test_kl_is_that_of_independent_units():
    logits = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    for keep in (0.5, 0.8):
        prior = torch.distributions.Bernoulli(keep)
        q = torch.distributions.Bernoulli(logits=logits + math.log(keep / (1 - keep)))
        expected = torch.distributions.kl_divergence(q, prior).sum(1)
        torch.testing.assert_close(kl_to_prior(logits, keep), expected)
