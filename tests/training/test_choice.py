"""The best of a few draws from any augmentations, and the plain transform of what was found."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from learned_aug import DrawChoice, LearnedAugment, SteeredDraws
from learned_aug.training.policies import Recorder, WeightedRandAugment, WeightedTrivialAugment


def dark(images):
    return images * 0


def bright(images):
    return images * 0 + 1


@pytest.fixture
def by_mean(monkeypatch):
    """Let a choice take the brightest candidate."""
    monkeypatch.setattr(DrawChoice, "score", lambda self, drawn, labels: drawn.flatten(1).mean(1))


def test_the_hardest_draw_has_a_higher_loss_than_any_and_the_gate_takes_recognized_ones(model, augmenter, batch):
    images, labels = batch
    losses = []
    for draws, gate in ((1, 0.0), (6, 0.0), (6, 4.0)):
        choice = DrawChoice(model, augmenter, draws=draws, gate=gate)
        with torch.no_grad():
            model.eval()
            losses.append(float(F.cross_entropy(model(choice(images, labels)), labels)))
    assert losses[0] < losses[1]
    assert losses[2] < losses[1]


def test_each_image_gets_the_draw_of_the_best_score(model, augmenter, batch, few, monkeypatch):
    images, labels = batch
    choice = DrawChoice(model, augmenter, train=few[0], val=few[1], draws=3)
    seen = []
    monkeypatch.setattr(choice, "score", lambda drawn, y: seen.append(drawn) or drawn.flatten(1).mean(1))
    out = choice(images, labels)
    (drawn,) = seen
    means = drawn.view(3, len(images), -1).mean(2)
    torch.testing.assert_close(out.flatten(1).mean(1), means.amax(0))


def test_influence_is_solved_as_often_as_asked(model, augmenter, batch, few, monkeypatch):
    choice = DrawChoice(model, augmenter, train=few[0], val=few[1], every=2)
    renewals = []
    renew = choice.reader.renew
    monkeypatch.setattr(choice.reader, "renew", lambda: renewals.append(1) or renew())
    for _ in range(4):
        choice(*batch)
    assert len(renewals) == 2


def test_the_classifier_is_left_in_its_mode(model, augmenter, batch):
    model.train()
    DrawChoice(model, augmenter)(*batch)
    assert all(module.training for module in model.modules())


def test_all_kinds_of_sources_are_drawn_and_counted(model, augmenter, batch):
    sources = {
        "ours": augmenter,
        "policy": v2.TrivialAugmentWide(),
        "original": None,
        "steered": SteeredDraws(model, augmenter=augmenter, share=1.0, warmup=0),
        "batch": dark,
    }
    choice = DrawChoice(model, sources, draws=4)
    assert choice(*batch).shape == batch[0].shape
    offered = {name: sum(n for (s, _), n in choice.tally.offered.items() if s == name) for name in sources}
    assert min(offered.values()) > 10
    assert sum(offered.values()) == 4 * 40
    assert choice.tally.chosen.total() == 40


def test_the_tally_says_what_was_chosen_by_class_and_over_time(model, batch, by_mean):
    images, labels = batch
    choice = DrawChoice(model, {"dark": dark, "bright": bright}, draws=8, every=2)
    for _ in range(3):
        choice(images, labels)
    assert choice.tally.shares["bright"] > 0.95
    assert len(choice.tally.curve["bright"]) == 2
    assert {label for _, label in choice.tally.chosen} == set(labels.tolist())
    assert choice.tally.chosen.total() == 120
    offers, share, margin = choice.tally.rates()["bright"]
    assert 400 < offers < 560
    assert 0.15 < share < 0.35
    assert 0 < margin < 0.1
    assert "bright" in str(choice.tally)
    (axis,) = choice.tally.figure().axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["dark", "bright"]


def test_shares_are_the_probability_of_a_source(model, batch):
    choice = DrawChoice(model, [dark, bright], shares=[0, 3])
    with pytest.warns(UserWarning, match="candidates of a batch are equal"):
        assert (choice(*batch) == 1).all()
    assert choice.tally.shares == {"dark": 0.0, "bright": 1.0}


def test_operations_and_magnitudes_of_policies_are_noted(model, batch, by_mean):
    images = batch[0] * 0.5
    choice = DrawChoice(model, v2.TrivialAugmentWide(), draws=4)
    for _ in range(3):
        choice(images, batch[1])
    rates = choice.tally.rates()
    found = {name for name in rates if ": " in name}
    assert "TrivialAugmentWide: Invert" not in found
    assert rates["TrivialAugmentWide: AutoContrast"][1] > rates["TrivialAugmentWide: Posterize"][1]
    levels = {level for _, operation, level in choice.tally.operations if operation == "Rotate"}
    assert levels <= {"low", "middle", "high"}
    assert sum(n for n, _ in choice.tally.operations.values()) == 480


def test_two_operations_of_rand_augment_are_noted_for_each_image():
    recorder = Recorder(v2.RandAugment())
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    for _ in range(5):
        recorder(image)
    taken = recorder.take(5)
    assert [len(done) for done in taken] == [2] * 5
    assert recorder.take(5) == []


def test_what_a_recorder_notes_is_what_the_policy_does():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    policy = v2.TrivialAugmentWide()
    recorder = Recorder(policy)
    torch.manual_seed(3)
    expected = policy(image)
    torch.manual_seed(3)
    assert torch.equal(recorder(image), expected)


def test_what_was_found_is_a_plain_transform_that_draws_accordingly(model, batch, augmenter, by_mean):
    images = batch[0] * 0.5
    choice = DrawChoice(model, {"policy": v2.TrivialAugmentWide(), "ours": augmenter}, draws=4)
    for _ in range(6):
        choice(images, batch[1])
    transform = choice.transform()
    torch.manual_seed(0)
    pickled = pickle.loads(pickle.dumps(transform))
    drawn = pickled((images[0] * 255).byte())
    assert drawn.shape == images[0].shape
    policy = next(t for t in transform.transforms if isinstance(t, WeightedTrivialAugment))
    weights = {name: sum(levels.values()) / len(levels) for name, levels in policy.weights.items()}
    assert weights["AutoContrast"] > 1 > weights["Posterize"]


def test_a_single_source_is_exported_alone(model, batch, augmenter):
    choice = DrawChoice(model, augmenter)
    with pytest.raises(ValueError, match="must come after some batches"):
        choice.transform()
    choice(*batch)
    assert isinstance(choice.transform(), LearnedAugment)
    functions = DrawChoice(model, [dark, bright])
    functions(*batch)
    with pytest.raises(ValueError, match="source 'dark' must be a transform to be exported"):
        functions.transform()


@pytest.mark.parametrize("kind", [WeightedTrivialAugment, WeightedRandAugment])
def test_weighted_policies_draw_an_operation_as_often_as_its_weight_says(kind):
    space = kind._AUGMENTATION_SPACE
    policy = kind({name: {"": 0.0} for name in space} | {"Rotate": {"low": 0.0, "middle": 0.0, "high": 1.0}})
    names = {policy._get_random_item(space)[0] for _ in range(20)}
    assert names == {"Rotate"}
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    assert policy(image).shape == image.shape
    if kind is WeightedTrivialAugment:
        magnitudes, _ = policy._get_random_item(space)[1]
        full = space["Rotate"][0](31, 16, 16)
        assert magnitudes(31, 16, 16).min() >= full[20]


def test_nothing_to_choose_is_told_once(model, batch):
    choice = DrawChoice(model, [None, lambda images: images])
    with pytest.warns(UserWarning, match="all candidates of a batch are equal"):
        choice(*batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice(*batch)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"draws": 0}, "draws must be an integer >= 1, got 0"),
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"gate": -1.0}, "gate must be a finite number >= 0"),
        ({"shares": [1, 2]}, "shares must be 1 finite numbers"),
        ({"shares": [0]}, "with a sum above 0"),
        ({"by": "influence"}, "train= and val="),
        ({"sources": []}, "sources must hold at least one"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, augmenter, bad, message):
    options = {"sources": augmenter, **bad}
    with pytest.raises(ValueError, match=message):
        DrawChoice(model, **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda images: images[:, :, :9], "of the shape that it gets"),
        (lambda images: images.double(), "must keep the dtype"),
        (v2.MixUp(num_classes=10), "belong after the choice"),
    ],
)
def test_sources_that_change_shapes_dtypes_or_labels_are_refused(model, batch, source, message):
    with pytest.raises(ValueError, match=message):
        DrawChoice(model, {"bad": source})(*batch)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda choice: pickle.loads(pickle.dumps(choice))])
@pytest.mark.parametrize("policy", [v2.TrivialAugmentWide(), v2.RandAugment()])
def test_a_copy_of_a_choice_notes_its_own_draws(model, augmenter, batch, copied, policy):
    choice = DrawChoice(model, {"policy": policy, "ours": augmenter})
    choice(*batch)
    other = copied(choice)
    before = str(choice.tally)
    assert str(other.tally) == before
    drawn = []
    for one in (other, choice):
        torch.manual_seed(3)
        drawn.append(one(*batch))
        assert str(choice.tally) == (before if one is other else str(other.tally))
    assert torch.equal(*drawn)
    assert str(other.tally) != before


@pytest.mark.parametrize("influence", [False, True])
def test_a_choice_goes_on_after_a_resume(model, augmenter, batch, few, influence):
    data = {"train": few[0], "val": few[1]} if influence else {}
    sources = {"shifted": lambda images: images.roll(1, -1), "original": None, "dark": dark}
    one, two = (DrawChoice(model, sources, seed=seed, every=3, **data) for seed in (0, 5))
    for _ in range(2):
        one(*batch)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(3):
        assert torch.equal(one(*batch), two(*batch))


def test_labels_that_are_no_class_count_for_none_and_soft_ones_for_the_likeliest(model, augmenter, batch):
    def several(output, labels):
        return F.binary_cross_entropy_with_logits(output, labels, reduction="none").mean(1)

    images, labels = batch
    classes = model(images).shape[1]
    hot = F.one_hot(labels, classes).float()
    choice = DrawChoice(model, augmenter, loss=several)
    choice(images, (hot + hot.roll(1, 1)).clamp(max=1))
    assert {label for _, label in choice.tally.offered} == {-1}
    soft = DrawChoice(model, augmenter)
    soft(images, 0.8 * hot + 0.2 / classes)
    assert {label for _, label in soft.tally.offered} == set(labels.tolist())


def test_a_choice_of_steered_draws_goes_on_after_a_resume(model, batch):
    def made():
        source = SteeredDraws(model, share=1, warmup=1, period=2)
        return DrawChoice(model, {"steered": source, "original": None}, seed=3)

    one, two = made(), made()
    for _ in range(4):
        one(*batch)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(3):
        assert torch.equal(one(*batch), two(*batch))
    with pytest.raises(ValueError, match=r"sources must be those whose state this is, .*\['steered'\], got \[\]"):
        DrawChoice(model, {"original": None}).load_state_dict(one.state_dict())


def test_steered_draws_are_exported_at_the_share_and_strength_that_they_have_reached(model, batch):
    steered = SteeredDraws(model, share=(0.25, 0.75), strength=(0.5, 1.5))
    choice = DrawChoice(model, steered)
    choice(*batch)
    steered.confidence = 0.5
    transform = choice.transform()
    assert (transform.p, transform.strength) == (0.375, 0.75) == steered.share_and_strength
