"""What is read or trained within a caller's autocast sees the weights as they are."""

import pytest
import torch
import torch.nn.functional as F

from learned_aug import RetrainConfig, SteeredDraws, evaluate, retrain
from learned_aug.digits import all_conv

STEPS = RetrainConfig(steps=12)


@pytest.fixture
def batch(data):
    return tuple(t[:40] for t in data["train"].tensors)


def test_a_training_within_autocast_learns_what_one_with_a_context_a_step_does(data):
    plain, enclosed = all_conv(8), all_conv(8)
    enclosed.load_state_dict(plain.state_dict())
    retrain(plain, data["train"], STEPS)
    with torch.autocast("cpu", torch.bfloat16):
        retrain(enclosed, data["train"], STEPS)
    before = evaluate(all_conv(8), data["test"])[1]
    after, expected = evaluate(enclosed, data["test"])[1], evaluate(plain, data["test"])[1]
    assert after < before
    assert after == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("options", [{}, {"tilt": 0.0}])
def test_a_reading_leaves_the_step_after_it_its_gradients(batch, options):
    images, labels = batch
    model = all_conv(8)
    steered = SteeredDraws(model, warmup=0, period=1, **options)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = steered(images, labels)
        F.cross_entropy(model(drawn), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_influence_is_read_within_autocast(data, batch):
    model = all_conv(8)
    retrain(model, data["train"], STEPS)
    steered = SteeredDraws(model, by="influence", train=data["train"], val=data["val"], warmup=0, period=1)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch[0])  # which leaves casts of the weights behind
        assert steered(*batch).isfinite().all()


def test_a_model_is_evaluated_as_it_stands_within_autocast(data):
    model = all_conv(8)
    with torch.autocast("cpu", torch.bfloat16):
        model(data["val"].tensors[0][:2])
        before = evaluate(model, data["test"])
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(-1)
        assert evaluate(model, data["test"]) != before


class Decorated(torch.nn.Module):
    """A classifier whose forward runs under an autocast of its own."""

    def __init__(self):
        super().__init__()
        self.model = all_conv(8)

    @torch.autocast("cpu", torch.bfloat16)
    def forward(self, images):
        return self.model(images)


def test_a_model_under_its_own_autocast_learns_within_the_caller_s_too(data):
    losses = []
    with torch.autocast("cpu", torch.bfloat16):
        model = Decorated()
        before = model(data["val"].tensors[0][:4])
        retrain(model, data["train"], STEPS, on_event=lambda event: losses.append(event.metrics["loss"]))
        assert not torch.equal(model(data["val"].tensors[0][:4]), before)
    assert losses[-1] < losses[0]
    assert len(set(losses)) == len(losses)
