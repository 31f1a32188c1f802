"""Paired comparisons: pairing, resuming, several processes, statistics, and what is refused."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torchvision.transforms import v2

from learned_aug.digits import all_conv, digits
from learned_aug.training.arms import CONTROL, each
from learned_aug.training.compare import compare
from learned_aug.training.comparison import Comparison, Training, _t975, difference
from learned_aug.training.retrain import RetrainConfig
from learned_aug.training.steer import SteeredDraws

SHORT = RetrainConfig(steps=3)
module = sys.modules["learned_aug.training.compare"]  # the package's attribute of that name is the function


def fresh():
    return all_conv(width=2)


def few_digits():
    parts = digits()
    return Subset(parts["train"], range(100)), Subset(parts["test"], range(100))


def run(data, arms, *, config=SHORT, seeds=(0,), **options):
    test = Subset(data["test"], range(100))
    return compare(fresh, data["train"], test, arms, config=config, seeds=seeds, progress=False, **options)


def results(errors, half=None, accuracy=None):
    """A comparison of arms with these errors, by seed."""
    return Comparison(
        tuple(
            Training(
                arm=arm,
                seed=seed,
                error=error,
                loss=1.0 + error,
                half_error=(half or errors)[arm][seed],
                accuracy=(accuracy or {}).get(arm, 1.0),
                seconds=2.0,
            )
            for arm, values in errors.items()
            for seed, error in enumerate(values)
        )
    )


def test_arms_that_do_the_same_end_the_same(data):
    def noisy(images):  # draws do not change the order
        torch.rand(7)
        return images

    result = run(data, {"one": None, "two": lambda model: noisy}, seeds=(1, 2))
    assert result.errors["one"] == result.errors["two"]
    assert result.losses["one"] == result.losses["two"]
    assert result.losses["one"][0] != result.losses["one"][1]  # seeds differ


def test_all_kinds_of_augmentation_are_arms(data, augmenter):
    arms = {
        "none": None,
        "augmenter": augmenter,
        "transform": v2.RandomInvert(p=1.0),
        "name": "Cutout",
        "steered": lambda model: SteeredDraws(model, augmenter=augmenter, warmup=0),
        "policy": lambda model: each(v2.TrivialAugmentWide()),
    }
    result = run(data, arms, baseline=v2.RandomCrop(28, padding=2))
    assert list(result.errors) == list(arms)
    assert len({losses[0] for losses in result.losses.values()}) == 6


def test_the_global_generator_is_left_as_it_was(data):
    state = torch.get_rng_state()
    run(data, ["baseline"])
    assert torch.equal(torch.get_rng_state(), state)


def test_events_name_the_arm_and_count_the_trainings(data):
    events = []
    run(data, {"none": None}, on_event=events.append)
    assert [(e.stage, e.step) for e in events[:3]] == [("retrain: none", k) for k in (1, 2, 3)]
    assert [(e.stage, e.step, e.total) for e in events[3:]] == [("trainings", 1, 1)]


def test_arms_that_read_labels_bring_a_control_that_trains_on_them(data, few, monkeypatch):
    sizes = {}
    real = module.retrain

    def counted(model, train, *args, **options):
        sizes[type(options["augment"]).__name__, len(train)] = options["augment"]
        return real(model, train, *args, **options)

    monkeypatch.setattr(module, "retrain", counted)
    val = Subset(few[1], range(150))
    result = run(data, ["chosen-influence"], val=val)
    assert list(result.errors) == ["chosen-influence", CONTROL]
    assert set(sizes) == {("DrawChoice", 600), ("SteeredDraws", 750)}
    with pytest.raises(ValueError, match=r"'steered-influence' must have a hyper-validation set, got none; pass val="):
        run(data, ["steered-influence"])


def test_loaders_are_compared_too(data):
    train = DataLoader(data["train"], 50, shuffle=True, drop_last=True)
    val = DataLoader(Subset(data["val"], range(100)), 50)
    joined = module._joined(train, val)
    assert len(joined.dataset) == 700
    assert joined.batch_size == 50
    result = compare(fresh, train, val, ["baseline"], config=SHORT, seeds=(0,), progress=False)
    assert 0 < result.errors["baseline"][0] < 1


def test_the_control_never_trains_on_more_than_train_and_val(data):
    digits = data["val"]
    part = [DataLoader(digits, 50, sampler=SubsetRandomSampler(range(k, k + 50))) for k in (0, 50)]
    whole = DataLoader(digits, 50, shuffle=True)
    batched = DataLoader(digits, batch_sampler=BatchSampler(SequentialSampler(digits), 50, drop_last=True))
    twice = DataLoader(digits, 50, sampler=RandomSampler(digits, num_samples=4000))
    stream = DataLoader(ChainDataset([]), 50)
    for train, val in (part, (whole, part[0]), (batched, whole), (whole, twice), (stream, whole)):
        with pytest.raises(ValueError, match=r"or a loader of all of it, .*Subset\(data, indices\)"):
            compare(fresh, train, data["test"], ["chosen-influence"], val=val, progress=False)
    with pytest.raises(ValueError, match="got a loader with SubsetRandomSampler"):
        compare(fresh, digits, data["test"], ["chosen-influence"], val=part[0], progress=False)
    module._check_whole(whole, "train")
    module._check_whole(digits, "train")


PARTLY = '{"what": "Cutout", "training": {"arm": "Cutout", "seed": 0}}'


@pytest.mark.parametrize(
    ("name", "text"),
    [*((name, text) for name in ("settings", "Cutout-*") for text in ("", "[]", "{")), ("Cutout-*", PARTLY)],
)
def test_a_damaged_file_of_the_folder_is_named(data, tmp_path, name, text):
    run(data, ["Cutout"], checkpoint_dir=tmp_path)
    (path,) = tmp_path.glob(f"{name}.json")
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path.name} must be what compare wrote, got other or damaged .*delete it"):
        run(data, ["Cutout"], checkpoint_dir=tmp_path)


def test_data_that_are_no_tensors_get_the_error_of_a_training(data, tmp_path):
    images, labels = data["train"].tensors[0][:9], range(9)
    for train, message in (
        ([(image, "cat") for image in images], "map class names to indices"),
        ([(v2.functional.to_pil_image(i), y) for i, y in zip(images, labels, strict=True)], "got PIL images"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            run({"train": train, "test": data["test"]}, ["baseline"], checkpoint_dir=tmp_path / message)


def test_a_seed_is_added_without_repeating_two(data, tmp_path, monkeypatch):
    arms = ["baseline", "Cutout"]
    two = run(data, arms, seeds=(0, 1), checkpoint_dir=tmp_path)
    trained = []
    real = module._Task.run
    monkeypatch.setattr(module._Task, "run", lambda task, job, *tell: trained.append(job) or real(task, job, *tell))
    three = run(data, arms, seeds=(0, 1, 2), checkpoint_dir=tmp_path)
    assert trained == [("baseline", 2), ("Cutout", 2)]
    assert [values[:2] for values in three.errors.values()] == list(two.errors.values())
    run(data, [*arms, "Mixup"], seeds=(0, 1, 2), checkpoint_dir=tmp_path)
    assert trained[2:] == [("Mixup", seed) for seed in (0, 1, 2)]


KILLED = """
import sys
from tests.training.test_compare import SHORT, compare, few_digits, fresh
train, test = few_digits()
arms = ["baseline", "Cutout", "Mixup", "prior"]
compare(fresh, train, test, arms, config=SHORT, seeds=range(3), checkpoint_dir=sys.argv[1], progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_a_killed_comparison_of_12_trainings_goes_on_to_the_same_table(tmp_path):
    train, test = few_digits()
    arms = ["baseline", "Cutout", "Mixup", "prior"]
    options = {"config": SHORT, "seeds": range(3), "progress": False}
    whole = compare(fresh, train, test, arms, **options)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("*-?.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob("*-?.json"))) >= 3
    resumed = compare(fresh, train, test, arms, checkpoint_dir=tmp_path, **options)
    assert resumed.errors == whole.errors
    assert resumed.losses == whole.losses


def test_a_folder_of_other_settings_is_refused_with_what_differs(data, tmp_path, augmenter):
    run(data, ["baseline"], checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"config\.steps was 3, is 4; call with what it was"):
        run(data, ["baseline"], config=RetrainConfig(steps=4), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"train was 600 samples .*, is 2,000 samples"):
        run({"train": data["val"], "test": data["test"]}, ["baseline"], checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'baseline' .* was baseline, is Cutout; give it another name"):
        run(data, {"baseline": "Cutout"}, checkpoint_dir=tmp_path)


def twice(images, factor=1.0):
    return images * factor


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, images):
        return images * self.factor


def constant(module, value):
    if isinstance(module, torch.nn.Linear):
        torch.nn.init.constant_(module.bias, value)


def optimized(factor):
    return replace(SHORT, make_optimizer=lambda p: torch.optim.SGD(p, lr=factor))


OTHERS = {
    "an optimizer's argument": lambda f: {"config": replace(SHORT, make_optimizer=partial(torch.optim.SGD, lr=f))},
    "a value that an optimizer's lambda holds": lambda f: {"config": optimized(f)},
    "a baseline's argument": lambda f: {"baseline": partial(twice, factor=f)},
    "a baseline's attribute": lambda f: {"baseline": Times(f)},
    "the baseline's method": lambda f: {"baseline": Times(f).__call__},
    "an arm's argument": lambda f: {"arms": {"a": partial(lambda model, f: Times(f), f=f)}},
    "a value that an arm holds": lambda f: {"arms": {"a": lambda model: lambda images: images * f}},
    "a default": lambda f: {"arms": {"a": lambda model, f=f: Times(f)}},
    "a transform's probability": lambda f: {"arms": {"a": v2.RandomErasing(p=f / 2)}},
    "the first weights": lambda f: {"make_model": lambda: fresh().apply(partial(constant, value=f))},
    "the model's layers": lambda f: {"make_model": lambda: torch.nn.Sequential(fresh(), torch.nn.Dropout(f / 2))},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_setting_that_differs_within_a_function_or_module_is_refused(data, tmp_path, name):
    def again(factor):
        options = {"make_model": fresh, "arms": ["baseline"], "config": SHORT, **OTHERS[name](factor)}
        test = Subset(data["test"], range(100))
        make, arms = options.pop("make_model"), options.pop("arms")
        return compare(make, data["train"], test, arms, seeds=(0,), checkpoint_dir=tmp_path, progress=False, **options)

    kept = again(0.5)
    assert again(0.5).losses == kept.losses
    with pytest.raises(ValueError, match=r"must be of these settings|must be the same"):
        again(0.25)


def test_one_corrected_label_makes_other_data(data, tmp_path):
    images, labels = (torch.stack([torch.as_tensor(pair[k]) for pair in data["test"]]) for k in (0, 1))
    relabeled = labels.clone()
    relabeled[41] = 9 - relabeled[41]
    test = Subset(data["val"], range(100))
    compare(fresh, TensorDataset(images, labels), test, ["baseline"], config=SHORT, checkpoint_dir=tmp_path, seeds=(0,))
    with pytest.raises(ValueError, match=r"train was .* samples .*, is .* samples"):
        compare(fresh, TensorDataset(images, relabeled), test, ["baseline"], config=SHORT, checkpoint_dir=tmp_path)


def test_the_networks_of_the_first_seed_are_kept(data, tmp_path):
    run(data, ["baseline", "prior"], seeds=(0, 1), checkpoint_dir=tmp_path)
    kept = [path.parent.name for path in tmp_path.glob("*/model.safetensors")]
    assert len(kept) == 1
    assert kept[0].startswith("prior-")
    entry = json.loads(next(tmp_path.glob("prior-*-1.json")).read_text())
    assert entry["training"]["arm"] == "prior"


def test_the_table_shows_intervals_and_exact_p():
    result = results({"a": [0.5, 0.3, 0.4], "b": [0.4, 0.2, 0.25]})
    assert result.best == "b"
    d = result.difference("b")
    assert d.mean == pytest.approx(-0.11667, abs=1e-4)
    assert (d.low, d.high) == pytest.approx((-0.18838, -0.04496), abs=1e-4)
    assert d.p == 0.25
    assert "40.00 +- 10.00  1.4000      2.0    100.0%" in str(result)
    assert "-11.67 [-18.84,  -4.50]" in str(result)
    assert "3 seeds" in str(result)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (4, 2.7764), (9, 2.2622), (29, 2.0452)])
def test_quantiles_are_students(freedom, quantile):
    assert _t975(freedom) == pytest.approx(quantile, rel=1e-3)


@pytest.mark.parametrize("size", [2, 3, 8, 11])
def test_p_is_that_of_scipy_s_permutation_test(size):
    rng = np.random.default_rng(size)
    for values in (rng.normal(0.3, 1, size), rng.normal(0.3, 1, size).round(1), np.ones(size)):
        options = {"permutation_type": "samples", "n_resamples": np.inf, "vectorized": True}
        expected = scipy.stats.permutation_test((values,), lambda x, axis: x.mean(axis), **options).pvalue
        assert difference(values.tolist()).p == pytest.approx(expected, abs=1e-12)


def test_differences_of_a_worked_example():
    found = difference([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert (found.low, found.high) == pytest.approx((1.0367, 4.9633), rel=1e-3)
    assert found.p == 2 / 32  # only all plus and all minus are as far from 0
    assert difference([1.0, -1.0, 2.0, -2.0]).p == 1


def test_differences_of_many_pairs_have_a_p_by_random_flips_that_is_never_zero():
    assert difference([1.0] * 30).p == 2 / 2**30
    assert 0 < difference([1.0] * 50).p < 1e-3


def test_one_seed_has_no_interval_and_the_table_says_so():
    result = results({"a": [0.5], "b": [0.4]})
    assert math.isnan(result.difference("b").low)
    assert "One seed: no interval" in str(result)
    assert "nan" not in str(result)


def test_only_seeds_that_all_arms_have_finished_are_paired():
    whole = results({"a": [0.5, 0.3], "b": [0.4, 0.2]})
    part = Comparison(whole.trainings[:3])
    assert part.seeds == [0]
    assert part.errors == {"a": [0.5], "b": [0.4]}
    assert "no seed is finished" in str(Comparison((whole.trainings[0], whole.trainings[3])))


def test_a_schedule_in_which_an_arm_still_catches_up_is_called_too_short():
    errors = {"plain": [0.10, 0.10], "strong": [0.13, 0.13]}
    half = {"plain": [0.15, 0.15], "strong": [0.25, 0.25]}
    short = results(errors, half, {"plain": 1.0, "strong": 0.9})
    assert short.too_short == ["strong"]
    assert not short.long_enough
    assert "too short to rank strong augmentation: strong may overtake plain" in str(short)
    assert results(errors, errors, {"strong": 0.9}).long_enough  # no trend
    assert results(errors, half).long_enough  # all images are fitted
    assert results(errors, errors, {"strong": 0.6}).too_short == ["strong"]  # far from fitted


def test_a_schedule_is_long_enough_once_a_stronger_augmentation_leads():
    errors = {"plain": [0.10], "strong": [0.09], "stronger": [0.11]}
    fitted = {"plain": 0.99, "strong": 0.95, "stronger": 0.78}
    assert results(errors, errors, fitted).long_enough
    assert results({**errors, "strong": [0.12]}, errors, fitted).too_short == ["stronger"]  # plain leads
    assert results(errors, errors, {**fitted, "stronger": 0.4}).too_short == ["stronger"]  # far from fitted
    assert results(errors, errors, {**fitted, "strong": math.nan}).long_enough  # soft labels


@pytest.mark.parametrize(
    ("errors", "fitted", "named"),
    [
        ([0.62, 0.81, 0.93], [0.40, 0.19, 0.05], ["prior", "policy"]),  # Omniglot, 300 steps
        ([0.13, 0.16, 0.25], [0.95, 0.84, 0.61], ["policy"]),  # 800
        ([0.096, 0.093, 0.106], [0.99, 0.95, 0.78], []),  # 2,000
        ([0.088, 0.084, 0.112], [0.88, 0.82, 0.64], ["policy"]),  # MNIST, 60 steps: no arm overfits yet
        ([0.034, 0.025, 0.034], [1.00, 0.98, 0.87], []),  # 1,000
    ],
)
def test_schedules_of_benchmarks_get_their_verdict(errors, fitted, named):
    arms = ["baseline", "prior", "policy"]
    by_arm = {arm: [error] for arm, error in zip(arms, errors, strict=True)}
    assert results(by_arm, by_arm, dict(zip(arms, fitted, strict=True))).too_short == named


def test_a_training_that_diverges_is_an_error(data):
    with pytest.raises(ValueError, match="training of 'none' must end in a finite loss, got nan for seed 0"):
        run(data, {"none": None}, config=RetrainConfig(steps=3, lr=1e30))


def test_optimizer_and_schedule_are_the_users(data):
    made = []

    def optimizer(parameters):
        made.append(torch.optim.AdamW(parameters, 1e-3))
        return made[-1]

    def schedule(given, steps):
        return torch.optim.lr_scheduler.ConstantLR(given, 0.5, total_iters=steps + 1)

    run(data, ["baseline"], config=RetrainConfig(steps=3, make_optimizer=optimizer, make_schedule=schedule))
    assert made[0].param_groups[0]["lr"] == 5e-4


def plateau(optimizer, steps):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        ({}, {}, "arms must hold at least one"),
        (["baseline"], {"seeds": ()}, "seeds must hold at least one"),
        (["baseline"], {"jobs": 0}, "jobs must be an integer >= 1, got 0"),
        ([None], {}, "a list of arms must hold names, got NoneType; give a mapping"),
        ({"class": v2.AugMix}, {}, "got the class AugMix, make one"),
        ({"batches": lambda images: images * 0.5}, {}, "an arm's function gets the fresh classifier.*lambda model:"),
        (["baseline"], {"seeds": 3}, r"got 3; give range\(3\)"),
        (["baseline"], {"seeds": None}, r"got None; give some, such as range\(3\)"),
        ({"baseline", "Cutout"}, {}, "arms must have an order"),
        ({"made": SteeredDraws(fresh())}, {}, r"give lambda model: SteeredDraws\(model\)"),
        (
            ["baseline"],
            {"config": replace(SHORT, make_optimizer=lambda p: None)},
            "make_optimizer must .* got NoneType",
        ),
        (
            ["baseline"],
            {"config": replace(SHORT, make_optimizer=torch.optim.LBFGS)},
            "a closure, got LBFGS",
        ),
        (
            ["baseline"],
            {"config": replace(SHORT, make_schedule=plateau)},
            "a metric, got ReduceLROnPlateau",
        ),
        (["magic"], {}, r"arms must be of baseline, .*, got 'magic'"),
        ({"bad": lambda model: lambda images: images[:, :, :9]}, {}, "of the shape that it gets"),
        ({"bytes": lambda model: lambda images: images.byte()}, {}, "must return floating images.*torch.uint8"),
        ({"nan": lambda model: lambda images: images * math.nan}, {}, "must return finite images"),
    ],
)
def test_what_cannot_be_compared_is_refused(data, arms, options, message):
    with pytest.raises(ValueError, match=message):
        run(data, arms, **options)


def test_a_factory_that_gives_one_classifier_twice_is_refused(data):
    model = fresh()
    for make in (lambda: model, lambda: torch.nn.Sequential(model)):
        with pytest.raises(ValueError, match="must build a fresh classifier at each call"):
            compare(make, data["train"], data["test"], ["baseline"], progress=False)


@pytest.mark.parametrize("make", [None, fresh(), lambda: None, lambda: fresh])
def test_what_builds_no_classifier_is_refused(data, make):
    with pytest.raises(TypeError, match=r"make_model must .* got"):
        compare(make, data["train"], data["test"], ["baseline"], progress=False)


def without_linear():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 10, 28), torch.nn.Flatten())


@pytest.mark.parametrize("arm", ["steered-influence", "chosen-influence", "fitted"])
def test_what_no_arm_can_work_with_is_refused_before_the_first_training(data, monkeypatch, arm):
    monkeypatch.setattr(module, "retrain", None)
    test = Subset(data["test"], range(100))
    with pytest.raises(ValueError, match=r"nn\.Linear"):
        compare(without_linear, data["train"], test, ["baseline", arm], val=data["val"], progress=False)
    beyond = TensorDataset(data["val"].tensors[0], data["val"].tensors[1] + 3)
    for train, held_out in ((beyond, test), (data["train"], beyond)):
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.9"):
            compare(fresh, train, held_out, ["baseline"], progress=False)
    wide = TensorDataset(torch.rand(40, 3, 28, 28), torch.arange(40) % 10)
    with pytest.raises(ValueError, match=r"does not take .*\(16, 3, 28, 28\)"):
        compare(fresh, data["train"], wide, ["baseline"], progress=False)


def lazy():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))


def test_lazy_layers_draw_the_same_weights_in_all_arms(data, tmp_path):
    starts = []

    def optimizer(parameters):
        parameters = list(parameters)
        starts.append(parameters[0].detach().clone())
        return torch.optim.SGD(parameters, 0.1)

    test = Subset(data["test"], range(100))
    config = replace(SHORT, make_optimizer=optimizer)
    compare(lazy, data["train"], test, ["baseline", "steered"], config=config, seeds=(0,), progress=False)
    assert starts[0].shape == (10, 784)
    assert torch.equal(*starts)


def test_a_factory_with_a_randomness_of_its_own_is_resumed(data, tmp_path):
    source = torch.Generator().manual_seed(1)

    def make():
        model = fresh()
        torch.nn.init.normal_(model[-1].bias, generator=source)
        return model

    test = Subset(data["test"], range(100))
    options = {"config": SHORT, "checkpoint_dir": tmp_path, "progress": False}
    first = compare(make, data["train"], test, ["baseline"], seeds=(0,), **options)
    both = compare(make, data["train"], test, ["baseline"], seeds=(0, 1), **options)
    assert both.losses["baseline"][0] == first.losses["baseline"][0]


def test_the_classifier_is_built_twice_beside_each_training_with_a_folder_and_without(data, tmp_path):
    made = []

    def make():
        made.append(1)
        return fresh()

    test = Subset(data["test"], range(100))
    for folder in (None, tmp_path):
        compare(
            make, data["train"], test, ["baseline"], config=SHORT, seeds=(0,), checkpoint_dir=folder, progress=False
        )
    assert len(made) == 6


class Counts:
    """An augmentation with a state of its own."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return images


def test_an_arm_with_a_state_is_resumed(data, tmp_path):
    def call(seeds):
        return run(data, {"counts": partial(one, augment=Counts())}, seeds=seeds, checkpoint_dir=tmp_path)

    first = call((0,))
    assert call((0, 1)).losses["counts"][0] == first.losses["counts"][0]


def one(model, augment):
    return augment


def test_names_of_arms_are_strings_and_the_folder_is_one(data, tmp_path):
    with pytest.raises(TypeError, match="names of arms must be strings, got 1"):
        run(data, {1: "baseline"})
    with pytest.raises(ValueError, match="give your arm another name"):
        run(data, {CONTROL: "prior"})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be a folder, got a file"):
        run(data, ["baseline"], checkpoint_dir=tmp_path / "file")


class Counted(IterableDataset):
    """A stream of samples that knows how many it gives."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return iter(self.data)


def test_a_loader_of_a_stream_with_a_length_is_compared_in_a_folder(data, tmp_path):
    loader = DataLoader(Counted(data["train"]), 50)
    result = run({"train": loader, "test": data["test"]}, ["baseline"], checkpoint_dir=tmp_path)
    assert len(result.trainings) == 1


def test_a_comparison_within_inference_mode_is_the_same(data):
    expected = run(data, ["steered"])
    with torch.inference_mode():
        assert run(data, ["steered"]).losses == expected.losses


def test_progress_names_the_training_and_shows_a_table_after_each_seed(data, capsys):
    test = Subset(data["test"], range(100))
    compare(fresh, data["train"], test, ["baseline", "Cutout"], config=SHORT, seeds=(0, 1))
    shown = capsys.readouterr().err
    assert "training 3/4, baseline, seed 1" in shown
    assert "One seed: no interval" in shown


def test_soft_labels_give_the_trainings_of_the_class_indices_that_they_are(data):
    def softened(part, count):
        images, labels = part.tensors
        return TensorDataset(images[:count], torch.nn.functional.one_hot(labels[:count], 10).float())

    train, test = softened(data["train"], 600), softened(data["val"], 100)
    soft = compare(fresh, train, test, ["baseline", "steered", "Cutout"], config=SHORT, seeds=(0,), progress=False)
    indices = TensorDataset(*(t[:100] for t in data["val"].tensors))
    arms = ["baseline", "steered", "Cutout"]
    hard = compare(fresh, data["train"], indices, arms, config=SHORT, seeds=(0,), progress=False)
    assert soft.errors == hard.errors
    assert soft.losses["Cutout"] == pytest.approx(hard.losses["Cutout"], rel=1e-4)
    with pytest.raises(ValueError, match=r"soft labels .* must be probabilities that sum to 1"):
        run({"train": TensorDataset(train.tensors[0], 2 * train.tensors[1]), "test": data["test"]}, ["baseline"])


def test_a_comparison_without_a_finished_seed_has_no_best_arm():
    with pytest.raises(ValueError, match="got none yet"):
        _ = Comparison(()).best


def test_names_of_any_length_and_form_stay_on_their_line():
    result = results({"a\nb": [0.5, 0.25], "long " * 60: [0.25, 0.5]})
    lines = str(result).splitlines()
    assert lines[1].startswith("a b ")
    assert all(len(line) < 180 for line in lines[:3])
