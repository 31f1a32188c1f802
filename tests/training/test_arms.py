"""Ready-made arms, and augmentations in one form."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torchvision.transforms import v2

from learned_aug import DrawChoice, LearnedAugment, RetrainConfig, SteeredDraws, prior, retrain
from learned_aug.training import arms as ready
from learned_aug.training.arms import ARMS, Setting, build, describe, each, reads_val
from learned_aug.training.augment import Chain, Cutout, applied

FREE = [name for name in ARMS if name != "fitted"]


@pytest.fixture
def setting(model, data, few):
    train, val = few
    return Setting(model=model, make_model=lambda: model, train=train, val=val)


@pytest.fixture
def same():
    """Twelve times one image of three channels, and labels."""
    return torch.rand(1, 3, 16, 16).expand(12, -1, -1, -1), torch.arange(12) % 10


def test_a_policy_is_drawn_for_each_image(same):
    drawn = each(v2.TrivialAugmentWide())(same[0])
    assert drawn.shape == same[0].shape
    assert (drawn != drawn[:1]).flatten(1).any(1).sum() > 3


def test_a_policy_sees_normalized_images_as_they_were(same):
    images = (same[0] - 0.4) / 0.2
    seen = []
    drawn = each(lambda image: seen.append(image) or image, mean=[0.4] * 3, std=[0.2] * 3)(images)
    assert seen[0].dtype == torch.uint8
    torch.testing.assert_close(drawn, images, atol=1 / 255 / 0.2, rtol=0)
    torch.testing.assert_close(seen[0] / 255, same[0][0], atol=1 / 255, rtol=0)


@pytest.mark.parametrize("wrap", [each, lambda policy: DrawChoice(torch.nn.Flatten(), policy)._draw["AugMix"]])
def test_a_policy_refuses_images_whose_normalization_is_not_stated(same, wrap):
    draw = wrap(v2.AugMix())
    for images in ((same[0] - 0.4) / 0.2, same[0] * 255, same[0] - torch.nan):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\] .*mean= and std="):
            draw(images)
    for mean, std in (([0.5] * 4, 0.2), (0.5, [0.2] * 2), (0, 0), (0, -1)):
        with pytest.raises(ValueError, match="mean and std must be 1 or 3 numbers, std above 0, got"):
            each(v2.AugMix(), mean=mean, std=std)(same[0])
    draw(same[0] * 1.3 - 0.1)  # bicubic resizing leaves such
    draw(same[0] * 3)  # a later image of the same data


@pytest.mark.parametrize("name", FREE)
def test_ready_made_arms_augment_a_batch(setting, batch, name):
    images, labels = batch
    augment = build(name, setting)
    if name == "baseline":
        assert augment is None
        return
    drawn, given = images, labels
    for _ in range(5):  # CutMix leaves half of the batches alone
        drawn, given = applied(augment, images, labels)
        if not torch.equal(drawn, images):
            break
    assert drawn.shape == images.shape
    assert not torch.equal(drawn, images)
    assert given.shape == ((len(images), 10) if name in ("Mixup", "CutMix") else labels.shape)


def test_fitted_trains_its_classifier_and_draws_from_what_was_fitted_to_it(setting, model, tiny, monkeypatch):
    seen, real = [], ready.fit

    def short(*data, config, **options):
        seen.append(real(*data, config=replace(tiny, pretrain=None, seed=config.seed), **options))
        seeds.append(config.seed)
        return seen[-1]

    seeds = []
    monkeypatch.setattr(ready, "retrain", lambda classifier, *_, **__: seen.append(classifier))
    monkeypatch.setattr(ready, "fit", short)
    setting = replace(setting, seed=7)
    augment = build("fitted", setting)
    assert seen[0] is model
    assert augment.augmenter is seen[1].augmenter
    assert augment.tilt == 0
    assert seeds == [7]


def test_ours_are_on_half_of_a_batch_policies_on_all(setting, augmenter, batch):
    images, labels = batch
    for arm in (augmenter, LearnedAugment(augmenter, p=0.5), "prior"):
        drawn = build(arm, setting)(images, labels)
        assert (drawn != images).flatten(1).any(1).sum() == 20
    inverted = build(v2.RandomInvert(p=1.0), setting)(images)
    assert (inverted != images).flatten(1).any(1).all()


def test_a_learned_augment_keeps_its_share_and_strength(setting, augmenter, batch):
    images, labels = batch
    for p in (0.0, 0.25, 1.0):
        drawn = build(LearnedAugment(augmenter, p=p), setting)(images, labels)
        assert (drawn != images).flatten(1).any(1).sum() == 40 * p
    assert torch.equal(build(LearnedAugment(augmenter, strength=0), setting)(images, labels), images)


def test_networks_for_another_normalization_are_refused(setting, augmenter, batch):
    other = prior((batch[0] - 0.5) / 0.2, mean=0.5, std=0.2)
    normalized = replace(setting, mean=[0.5], std=[0.2])
    for arm, where in ((augmenter, normalized), (other, setting), (LearnedAugment(augmenter), normalized)):
        with pytest.raises(ValueError, match=r"(mean|std) must be that of the augmenter's images, \("):
            build(arm, where)
    assert build(other, normalized)((batch[0] - 0.5) / 0.2, batch[1]).shape == batch[0].shape


def test_arms_go_one_after_the_other(setting, batch):
    images, labels = batch
    seen = []

    def first(x):
        seen.append("first")
        return x * 0

    def second(x, y):
        seen.append(("second", float(x.sum())))
        return x + 1, torch.nn.functional.one_hot(y, 10).float()

    drawn, soft = Chain(first, second)(images, labels)
    assert seen == ["first", ("second", 0.0)]
    assert (drawn == 1).all()
    assert torch.equal(soft.argmax(1), labels)
    assert build("baseline+baseline", setting) is None
    assert isinstance(build("steered+Mixup", setting).stages[0], SteeredDraws)


def test_steering_and_choice_take_soft_labels(setting, model, data):
    for arm in ("Mixup+steered", "steered+Mixup", "CutMix+TrivialAugmentWide", "Mixup+chosen-influence"):
        losses = []
        retrain(
            model,
            data["train"],
            RetrainConfig(steps=3),
            augment=build(arm, setting),
            on_event=losses.append,
        )
        assert all(0 < event.metrics["loss"] < 10 for event in losses)
    images, labels = data["train"][:20]
    soft = torch.nn.functional.one_hot(labels, 10).float()
    assert DrawChoice(model, v2.TrivialAugmentWide())(images, soft).shape == images.shape


def test_the_square_of_cutout_is_half_of_the_side_and_its_values_are_the_mean():
    images = torch.rand(200, 3, 32, 32)
    covered = (Cutout()(images) != images).all(1).flatten(1).sum(1)
    assert covered.max() == 16 * 16
    assert covered.min() >= 8 * 8
    drawn = Cutout()(images)
    assert torch.allclose(drawn[(drawn != images)].view(-1), images.mean(), atol=0.01)


def test_transforms_of_torchvision_are_drawn_for_each_image_in_retrain_too(model, data):
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    flip = v2.RandomInvert(p=0.5)
    retrain(model, data["train"], RetrainConfig(steps=1), augment=flip)
    handle.remove()
    inverted = seen[0].flatten(1).mean(1) > 0.5
    assert 0 < int(inverted.sum()) < 50


def test_a_function_with_a_parameter_seed_gets_that_of_its_training(setting):
    def factory(model, seed):
        return SteeredDraws(model, seed=seed)

    setting = replace(setting, seed=7)
    given = [build(arm, setting).seed for arm in (factory, SteeredDraws, partial(SteeredDraws, tilt=0.0))]
    own = (
        partial(SteeredDraws, seed=3),
        lambda model: SteeredDraws(model, seed=5),
        lambda model, seed=6: SteeredDraws(model, seed=seed),
    )
    assert (given, [build(arm, setting).seed for arm in own]) == ([7, 7, 7], [3, 5, 6])


def test_unknown_arms_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"arms must be of baseline, .*Mixup.*, got 'magic'"):
        describe("steered+magic")
    with pytest.raises(ValueError, match="an arm must be None, an Augmenter"):
        build(3, None)


def test_arms_that_read_the_validation_set_are_known_by_name():
    assert reads_val("fitted+Mixup")
    assert not reads_val("steered")
    assert not reads_val(None)


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda x, y: x[:, :, :20], "of the shape that it gets"),
        (lambda x, y: "nothing", "got str"),
        (lambda x, y: (x, y + 1), "other ones, torch.int64"),
        (lambda x, y: (x, y[:3]), "soft labels"),
        (lambda x, y: (x, torch.ones(len(y), 10)), "sum to 1"),
    ],
)
def test_other_shapes_and_labels_are_refused(batch, returns, message):
    with pytest.raises(ValueError, match=message):
        applied(returns, *batch)


def test_soft_labels_of_other_classes_are_refused(model, data):
    with pytest.raises(ValueError, match=r"soft labels must be like the logits, \(50, 10\), got \(50, 7\)"):
        retrain(model, data["train"], RetrainConfig(steps=1), augment=lambda x, y: (x, torch.full((50, 7), 1 / 7)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_policy_sees_the_same_bytes_of_images_in_any_precision(same, dtype):
    seen = []
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16), same[0][0].half().float()])
    for value in (images, images.to(dtype)):
        drawn = each(lambda image: seen.append(image) or image)(value)
        assert drawn.dtype == value.dtype
        torch.testing.assert_close(drawn.float(), images, atol=1 / 100, rtol=0)
    assert all((one.int() - two.int()).abs().max() <= 1 for one, two in zip(seen[:3], seen[3:], strict=True))
    assert [int(image.max()) for image in seen[3:5]] == [0, 255]


def refuse(image):
    raise TypeError("no such image")


def test_what_a_policy_does_not_take_or_leave_is_said_with_the_remedy(same):
    images = same[0]
    with pytest.raises(ValueError, match=r"gets images in uint8, which this one does not take.*put v2\.ToDtype"):
        each(v2.Normalize([0.5], [0.5]))(images)
    with pytest.raises(ValueError, match=r"must leave floating images in \[0, 1\].*Normalize"):
        each(v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])]))(images)
    with pytest.raises(TypeError, match="no such"):
        each(refuse)(images)


def test_images_that_a_policy_leaves_in_bytes_and_in_floats_are_of_one_scale(same):
    seen = []

    def alternating(image):
        seen.append(1)
        return image if len(seen) % 2 else v2.functional.to_dtype(image, torch.float32, scale=True)

    torch.testing.assert_close(each(alternating)(same[0]), same[0], atol=1 / 255, rtol=0)
