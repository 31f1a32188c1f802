import math

import pytest
import torch
import torch.nn.functional as F

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit.pretrain import (
    FeatureDiscriminator,
    ImageDiscriminator,
    PretrainConfig,
    Pretraining,
    ragan_d_loss,
    ragan_g_loss,
)
from learned_aug.influence.head import HeadTap, borrowed
from learned_aug.influence.layer import find_head
from learned_aug.runtime.stream import Stream

CPU = torch.device("cpu")


def test_losses_are_the_relativistic_average_of_the_paper():
    real, fake = torch.randn(7), torch.randn(5)
    d = -F.logsigmoid(real - fake.mean()).mean() - torch.log(1 - torch.sigmoid(fake - real.mean())).mean()
    g = -F.logsigmoid(fake - real.mean()).mean() - torch.log(1 - torch.sigmoid(real - fake.mean())).mean()
    assert ragan_d_loss(real, fake) == pytest.approx(float(d), rel=1e-5)
    assert ragan_g_loss(real, fake) == pytest.approx(float(g), rel=1e-5)


def test_losses_of_several_discriminators_are_those_of_each():
    real, fake = torch.randn(7, 2), torch.randn(5, 2)
    both = ragan_d_loss(real, fake)
    assert both.tolist() == pytest.approx([float(ragan_d_loss(real[:, k], fake[:, k])) for k in (0, 1)])


def test_losses_at_a_draw_are_ln_4():
    same = torch.zeros(4)
    assert ragan_d_loss(same, same) == pytest.approx(math.log(4))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 33), (3, 9)])
def test_discriminators_give_one_logit_per_image(channels, side):
    assert ImageDiscriminator(channels)(torch.rand(5, channels, side, side)).shape == (5, 1)
    assert FeatureDiscriminator(12)(torch.rand(5, 12)).shape == (5, 1)


def run(model, data, crop, config, *, seed=0):
    """Pretrain on the digits; returns the augmenter before and after, and the events."""
    generator = torch.Generator().manual_seed(seed)
    augmenter = Augmenter(AugmenterConfig(channels=1, size=28), generator=generator)
    augmenter.calibrate_(data["train"].tensors[0][:64], generator=generator)
    before = {name: t.clone() for name, t in augmenter.state_dict().items()}

    def stream(use, baseline):
        options = {"batch_size": 32, "device": CPU, "baseline": baseline, "shuffle": True}
        return Stream(data["train"], "train", use, seed=seed, **options)

    events = []
    with borrowed(model), HeadTap(model, find_head(model)) as tap:
        streams = stream("sources", None), stream("reals", crop)
        Pretraining(augmenter, tap, *streams, config, seed=seed).run(events.append)
    return before, augmenter, events


def test_pretraining_repeats_with_its_seed_moves_the_networks_and_leaves_them_frozen(model, data, crop):
    config = PretrainConfig(steps=4, batch_size=32)
    (before, one, events), (_, two, _) = (run(model, data, crop, config) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(
        not torch.equal(p, before[name])
        for name, p in one.named_parameters()
        if "weight" in name and "keep" not in name
    )
    assert not any(p.requires_grad or p.grad is not None for p in one.parameters())
    assert [(e.step, e.total) for e in events] == [(k, 4) for k in (1, 2, 3, 4)]
    assert set(events[0].metrics) == {"d_image", "d_feature", "g_image", "g_feature", "warp"}


def test_learning_rate_0_leaves_the_networks_as_they_are(model, data, crop):
    before, augmenter, _ = run(model, data, crop, PretrainConfig(steps=2, batch_size=16, lr=0.0))
    assert all(torch.equal(t, before[name]) for name, t in augmenter.state_dict().items())


def test_no_steps_read_no_data(model, data, crop):
    before, augmenter, events = run(model, data, crop, PretrainConfig(steps=0))
    assert all(torch.equal(t, before[name]) for name, t in augmenter.state_dict().items())
    assert events == []


@pytest.mark.slow
def test_pretraining_keeps_draws_diverse(model, data, crop):
    _, _, events = run(model, data, crop, PretrainConfig(steps=60, batch_size=32, lr=3e-4))
    first, last = events[0].metrics["warp"], events[-1].metrics["warp"]
    assert last > 0.7 * first
