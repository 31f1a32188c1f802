"""Draws steered by the classifier in training."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learned_aug import AugmenterConfig, SteeredDraws, prior
from learned_aug.influence.layer import first_tensor
from learned_aug.runtime.rng import generator
from learned_aug.training import UNSTEERED, steer
from learned_aug.training.reader import Reader


def test_the_share_of_a_batch_is_augmented(model, batch):
    images, labels = batch
    out = SteeredDraws(model, share=0.25, tilt=0)(images, labels)
    assert (out != images).flatten(1).any(1).sum() == 10
    assert out.shape == images.shape
    assert out.dtype == images.dtype


class Sure(nn.Module):
    """A classifier that gives class 0 a fixed probability, and reads its images."""

    def __init__(self, probability):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(probability / (1 - probability)).log())

    def forward(self, images):
        logit = self.logit + 1e-4 * images.mean((1, 2, 3))
        return torch.stack([logit, torch.zeros_like(logit)], 1)


@pytest.mark.parametrize("tilt", [0.0, 3.0])
def test_share_and_strength_rise_with_the_probability_of_the_labels(batch, tilt):
    images, labels = batch[0], torch.zeros(40, dtype=torch.long)
    changed, lengths = {}, {}
    for probability in (0.1, 0.9):
        follows = {"share": (0.25, 0.75), "strength": (0.5, 1.5), "tilt": tilt}
        steered = SteeredDraws(Sure(probability), **follows, warmup=0, period=1)
        start = steered(images, labels)
        for _ in range(99):
            out = steered(images, labels)
        assert steered.confidence == pytest.approx(probability, abs=0.01)
        assert (start != images).flatten(1).any(1).sum() == 10
        changed[probability] = int((out != images).flatten(1).any(1).sum())
        lengths[probability] = float((out - images).abs().sum()) / changed[probability]
    assert changed == {0.1: 10, 0.9: 26}
    assert lengths[0.9] > 1.3 * lengths[0.1]


def test_strength_is_a_factor_on_the_draws(model, batch, augmenter):
    images, labels = batch
    still = SteeredDraws(model, augmenter=augmenter, **{**UNSTEERED, "strength": 0})(images, labels)
    torch.testing.assert_close(still, images)


def test_unsteered_draws_are_those_of_the_networks(model, batch, augmenter):
    images, labels = batch
    unsteered = SteeredDraws(model, augmenter=augmenter, warmup=0, **{**UNSTEERED, "share": 1.0})
    source = generator(0, "steered draws", 0, 0)
    order = torch.randperm(40, generator=source)
    noise = augmenter.draw_noise(40, generator=source)
    assert torch.equal(unsteered(images, labels)[order], augmenter(images[order], noise))
    assert not unsteered.metrics


def test_steered_draws_have_a_higher_loss_than_the_priors_and_than_reversed_ones(model, batch):
    images, labels = batch
    losses = {}
    for tilt in (-3.0, 0.0, 3.0):
        steered = SteeredDraws(model, share=1.0, tilt=tilt, gate=0, warmup=0, period=1)
        drawn = [steered(images, labels) for _ in range(8)]
        with torch.no_grad():
            model.eval()
            losses[tilt] = float(torch.stack([F.cross_entropy(model(x), labels) for x in drawn]).mean())
    assert losses[0.0] < losses[3.0]
    assert losses[-3.0] < losses[3.0]


def test_the_gate_leaves_what_the_classifier_gets_wrong_to_the_prior(model, batch):
    images, labels = batch
    wrong = (labels + 1) % 10

    def drawn(tilt, gate):
        return SteeredDraws(model, share=1.0, tilt=tilt, gate=gate, warmup=0, period=1)(images, wrong)

    def kept(gate):
        """Return the share of the images that a strong tilt draws as one of nothing does."""
        return float((drawn(6.0, gate) == drawn(1e-9, gate)).flatten(1).all(1).float().mean())

    assert kept(50.0) > 0.8
    assert kept(0.0) < 0.2


def test_the_classifier_is_left_as_it_is(model, batch):
    model.train()
    before = copy.deepcopy(model.state_dict())
    SteeredDraws(model, warmup=0)(*batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_global_generators_are_left_alone(model, batch):
    before = torch.get_rng_state()
    SteeredDraws(model, warmup=0)(*batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_go_on_after_a_resume(model, batch):
    one = SteeredDraws(model, warmup=1)
    for _ in range(3):
        one(*batch)
    two = SteeredDraws(model, warmup=1, seed=5)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert torch.equal(one(*batch), two(*batch))


def test_processes_that_load_one_state_draw_differently(model, batch, monkeypatch):
    one, two = SteeredDraws(model), SteeredDraws(model)
    one(*batch)
    two.load_state_dict(one.state_dict())
    monkeypatch.setattr(steer, "rank", lambda: 1)  # made before the process group was
    other = two(*batch)
    monkeypatch.undo()
    assert not torch.equal(one(*batch), other)


def test_a_given_augmenter_survives_a_state_of_before_the_first_batch_and_refuses_that_of_another(
    model, batch, augmenter
):
    one, two = (SteeredDraws(model, augmenter=augmenter) for _ in range(2))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(*batch), two(*batch))
    other = SteeredDraws(model, augmenter=prior(batch[0], config=AugmenterConfig(channels=1, size=28, color=0)))
    other(*batch)
    with pytest.raises(ValueError, match="augmenter must be the one whose state this is"):
        two.load_state_dict(other.state_dict())


def test_influence_steers_to_draws_of_a_better_score_and_goes_on_after_a_resume(model, batch, few):
    train, val = few
    scores = {}
    for tilt in (-3.0, 3.0):
        steered = SteeredDraws(
            model, by="influence", train=train, val=val, warmup=0, share=1.0, tilt=tilt, gate=0, period=1
        )
        drawn = [steered(*batch) for _ in range(8)]
        with torch.no_grad():
            scores[tilt] = float(torch.stack([steered.reader.score(x, batch[1])[0].mean() for x in drawn]).mean())
    assert scores[-3.0] < scores[3.0]
    steered = SteeredDraws(model, by="influence", train=train, val=val, warmup=0)
    steered(*batch)
    state = copy.deepcopy(steered.state_dict())
    again = SteeredDraws(model, by="influence", train=train, val=val, warmup=0)
    again.load_state_dict(state)
    assert torch.equal(steered(*batch), again(*batch))


def test_a_loss_of_the_users_own_is_followed(model, batch):
    images, labels = batch
    soft = F.one_hot(labels, 10).float()
    steered = SteeredDraws(
        model, warmup=0, loss=lambda out, y: F.binary_cross_entropy_with_logits(out, y, reduction="none").mean(1)
    )
    assert steered(images, soft).shape == images.shape
    assert SteeredDraws(model, warmup=0)(images, soft).shape == images.shape


LOSSES = {
    "mean": lambda out, y: F.binary_cross_entropy_with_logits(out, y, reduction="none").mean(1),
    "sum": lambda out, y: F.binary_cross_entropy_with_logits(out, y, reduction="none").sum(1),
    "weighted": lambda out, y: 100 * F.cross_entropy(out, y, reduction="none"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_confidence_in_another_loss_starts_low_and_rises_as_the_loss_falls_whatever_its_scale(batch, name):
    images, labels = batch
    labels = torch.zeros_like(labels)  # the class whose logit grows
    model = Sure(0.1)
    steered = SteeredDraws(model, loss=LOSSES[name], warmup=0, period=1, tilt=0, share=1.0)
    targets = F.one_hot(labels, model(images).shape[1]).float()
    confidence = []
    for logit in (0.0, 12.0):
        with torch.no_grad():
            model.logit.fill_(logit)
        for _ in range(60):
            steered(images, targets)
        confidence.append(steered.confidence)
    assert confidence[0] == pytest.approx(1 / targets.shape[1], abs=0.01)
    assert confidence[1] > 1.3 * confidence[0]  # one of two logits is right


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_a_classifier_that_knows_its_labels_already_is_trusted_in_another_loss_too(batch, scale):
    images, labels = batch[0], torch.zeros(len(batch[0]), dtype=torch.long)

    def scaled(out, y):
        return scale * F.cross_entropy(out, y, reduction="none")

    own, other = (SteeredDraws(Sure(0.9), loss=loss, warmup=0, period=1, tilt=0) for loss in (None, scaled))
    for steered in (own, other):
        for _ in range(40):
            steered(images, labels)
    assert other.confidence == pytest.approx(own.confidence, rel=1e-3)


def test_a_loss_that_has_no_value_where_outputs_are_zero_is_measured_at_the_first_images(model, batch):
    def cosine(out, y):
        return 1 - (out / out.norm(dim=1, keepdim=True))[torch.arange(len(y)), y]

    steered = SteeredDraws(model, loss=cosine, warmup=0, period=1)
    assert steered(*batch).isfinite().all()
    assert 0 < steered.reader.loss_at_start < 3


def test_the_probability_of_soft_labels_is_their_expected_one(batch):
    images, _ = batch
    model = Sure(0.8)
    classes = model(images).shape[1]
    soft = torch.full((len(images), classes), 0.5 / (classes - 1))
    soft[:, 0] = 0.5
    steered = SteeredDraws(model, warmup=0, period=1, tilt=0)
    steered(images, soft)
    expected = (model(images).detach().softmax(1) * soft).sum(1).mean().item()
    assert steered.metrics["probability"] == pytest.approx(expected, abs=1e-4)


def test_label_maps_are_refused_for_they_would_not_follow_the_warp(model, batch):
    images, _ = batch
    maps = torch.zeros(len(images), 16, 16).long()
    with pytest.raises(ValueError, match=r"labels must be \(B,\) or \(B, K\), got .*augment both together"):
        SteeredDraws(model, loss=lambda out, y: out[:, 0])(images, maps)


@pytest.mark.parametrize(
    "bad",
    [
        {"share": 1.5},
        {"share": (0.9, 0.1)},
        {"share": (0.1, 0.2, 0.3)},
        {"strength": -1},
        {"strength": (0.5, float("inf"))},
        {"strength": "strong"},
        {"tilt": float("nan")},
        {"gate": -1.0},
        {"warmup": -1},
        {"period": 0},
        {"every": 0},
    ],
)
def test_settings_out_of_range_are_refused(model, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SteeredDraws(model, **bad)


def test_influence_needs_data(model):
    with pytest.raises(ValueError, match="train= and val="):
        SteeredDraws(model, by="influence")
    with pytest.raises(ValueError, match="by must be"):
        SteeredDraws(model, by="magic")


def test_normalized_images_need_their_normalization(model, batch):
    images, labels = batch
    with pytest.raises(ValueError, match="mean= and std="):
        SteeredDraws(model)((images - 0.5) / 0.2, labels)
    assert SteeredDraws(model, mean=0.5, std=0.2)((images - 0.5) / 0.2, labels).shape == images.shape


def test_labels_of_another_batch_are_refused(model, batch):
    with pytest.raises(ValueError, match="labels must be one per image"):
        SteeredDraws(model)(batch[0], batch[1][:3])


def test_images_that_cannot_be_are_refused(batch):
    with pytest.raises(TypeError, match="floating batch"):
        prior((batch[0] * 255).byte())
    with pytest.raises(ValueError, match="constant ones"):
        prior(torch.full((8, 1, 28, 28), 0.5))


def test_no_tau_dropout_cannot_be_steered(model, batch):
    fixed = prior(batch[0], config=AugmenterConfig(channels=1, size=28))
    fixed.config = AugmenterConfig(channels=1, size=28, tau_dropout=0.0)
    with pytest.raises(ValueError, match="tau_dropout > 0"):
        SteeredDraws(model, augmenter=fixed)


class Cut(nn.Module):
    """A model through which no gradient passes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        with torch.no_grad():
            return self.model(images)


class Rounded(Cut):
    """A model through which a gradient of zero passes."""

    def forward(self, images):
        return self.model(images.round())


def test_a_model_without_a_gradient_is_refused_with_the_reason(model, batch):
    with pytest.raises(ValueError, match="no_grad"):
        SteeredDraws(Cut(model), warmup=0)(*batch)


def test_a_gradient_of_zero_is_told_once(model, batch):
    steered = SteeredDraws(Rounded(model), warmup=0, period=1)
    with pytest.warns(UserWarning, match="zero for a whole batch"):
        steered(*batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steered(*batch)


def test_losses_must_be_one_for_each_sample(model, batch):
    with pytest.raises(ValueError, match="one value per sample"):
        SteeredDraws(model, warmup=0, loss=F.cross_entropy)(*batch)


def test_the_first_tensor_of_an_output_is_its_logits():
    x = torch.zeros(2)
    assert first_tensor(x) is first_tensor((None, x)) is first_tensor({"loss": 1, "logits": x}) is x
    with pytest.raises(TypeError, match="must return logits"):
        first_tensor("nothing")


def test_influence_is_solved_before_it_is_read(model, batch, few):
    one, two = (Reader(model, by="influence", train=few[0], val=few[1]) for _ in range(2))
    two.renew()
    assert torch.equal(one.score(*batch)[0], two.score(*batch)[0])


def test_data_for_the_influence_is_refused_where_the_loss_steers(model, few):
    with pytest.raises(ValueError, match='train= and val= are for by="influence"'):
        SteeredDraws(model, train=few[0], val=few[1])
