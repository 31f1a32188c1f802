import pytest
import torch
from torchvision.transforms import v2

from learned_aug.digits import all_conv
from learned_aug.training.arms import each
from learned_aug.training.compare import Comparison, compare
from learned_aug.training.retrain import RetrainConfig
from learned_aug.training.steer import SteeredDraws

SHORT = RetrainConfig(steps=3)


def fresh():
    return all_conv(width=2)


def run(data, arms, **options):
    return compare(fresh, data["train"], data["val"], arms, SHORT, progress=False, **options)


def test_arms_that_do_the_same_end_the_same(data):
    def noisy(images):  # draws do not change the order
        torch.rand(7)
        return images

    result = run(data, {"one": lambda model: None, "two": lambda model: noisy}, seeds=(1, 2))
    assert result.errors["one"] == result.errors["two"]
    assert result.losses["one"] == result.losses["two"]
    assert result.losses["one"][0] != result.losses["one"][1]  # seeds differ


def test_all_kinds_of_augmentation_are_arms(data, augmenter):
    arms = {
        "none": lambda model: None,
        "augmenter": lambda model: augmenter,
        "steered": lambda model: SteeredDraws(model, augmenter=augmenter, warmup=0),
        "policy": lambda model: each(v2.TrivialAugmentWide()),
    }
    result = run(data, arms, baseline=v2.RandomCrop(28, padding=2))
    assert list(result.errors) == list(arms)
    assert len({losses[0] for losses in result.losses.values()}) == 4


def test_the_global_generator_is_left_as_it_was(data):
    state = torch.get_rng_state()
    run(data, {"none": lambda model: None})
    assert torch.equal(torch.get_rng_state(), state)


def test_events_name_the_arm(data):
    events = []
    run(data, {"none": lambda model: None}, on_event=events.append)
    assert [(event.stage, event.step) for event in events] == [("retrain: none", k) for k in (1, 2, 3)]


def test_best_is_the_arm_of_the_lowest_mean_loss_and_the_table_shows_paired_differences():
    result = Comparison({"a": [0.5, 0.3], "b": [0.4, 0.2]}, {"a": [1.0, 3.0], "b": [2.5, 2.5]})
    assert result.best == "a"
    assert "40.00 +- 14.14  2.0000" in str(result)
    assert "30.00 +- 14.14  2.5000   -10.00 +- 0.00" in str(result)


def test_a_training_that_diverges_is_an_error(data):
    arms, schedule = {"none": lambda model: None}, RetrainConfig(steps=3, lr=1e30)
    with pytest.raises(ValueError, match="training of 'none' must end in a finite loss, got nan for seed 0"):
        compare(fresh, data["train"], data["val"], arms, schedule, progress=False)


def test_a_single_seed_has_no_spread():
    assert str(Comparison({"a": [0.5]}, {"a": [1.0]})).splitlines()[1] == "a   50.00  1.0000"


@pytest.mark.parametrize(("arms", "seeds"), [({}, (0,)), ({"none": lambda model: None}, ())])
def test_nothing_to_compare_is_refused(data, arms, seeds):
    with pytest.raises(ValueError, match="at least one each"):
        run(data, arms, seeds=seeds)


def test_ready_made_arms_go_by_name(data):
    result = run(data, ["baseline", "TrivialAugmentWide", "prior", "steered"])
    assert list(result.errors) == ["baseline", "TrivialAugmentWide", "prior", "steered"]
    with pytest.raises(ValueError, match=r"arms must be of baseline, .*, got magic"):
        run(data, ["magic"])


def test_a_policy_is_drawn_for_each_image():
    images = torch.rand(1, 3, 16, 16).expand(12, -1, -1, -1)
    drawn = each(v2.TrivialAugmentWide())(images)
    assert drawn.shape == images.shape
    assert (drawn != drawn[:1]).flatten(1).any(1).sum() > 3
