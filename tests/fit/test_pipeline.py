import dataclasses
import math
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

import learned_aug
from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pipeline import _on_device
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.stream import Stream
from learned_aug.training.choice import DrawChoice
from learned_aug.training.retrain import RetrainConfig, retrain


def snapshot(model):
    """All that must come back: values, gradients, modes, requires_grad and hooks."""
    return {
        "state": {name: t.clone() for name, t in model.state_dict().items()},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: m.training for name, m in model.named_modules()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
    }


def assert_untouched(model, before):
    after = snapshot(model)
    assert all(torch.equal(after["state"][name], t) for name, t in before["state"].items())
    assert all(after[key] == before[key] for key in ("flags", "modes", "hooks"))
    assert all(after["grads"][name] is g for name, g in before["grads"].items())


@pytest.fixture
def odd(model):
    """The classifier in a state that is easy to spoil."""
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[-1].weight.grad = torch.ones_like(model[-1].weight)
    model[3].register_forward_hook(lambda *_: None)
    return model


def test_fit_gives_augmenters_diagnostics_and_history_and_leaves_the_model_as_it_was(odd, few, crop, tiny):
    before = snapshot(odd)
    events = []
    result = learned_aug.fit(odd, *few, baseline=crop, config=tiny, progress=False, on_event=events.append)
    assert_untouched(odd, before)
    assert list(result.diagnostics) == ["prior", "pretrained", "fitted"]
    for figures in result.diagnostics.values():
        assert set(figures) == {
            "flow",
            "warp",
            "shift",
            "rank",
            "color",
            "misclassified",
            "predicted_val_drop",
            "margin",
        }
    assert result.history == events
    stages = list(dict.fromkeys(event.stage for event in events))
    measured = [f"diagnostics of {name}" for name in result.diagnostics]
    assert stages == ["train features", "val features", "refit", "ihvp", "pretrain", "maximize", *measured]
    assert result.solution.converged
    images = few[0].dataset.tensors[0][:16]
    assert not torch.equal(result.augmenter(images), images)
    assert "warp" in str(result)


def test_controls_share_the_start_and_differ_by_their_training(model, few, crop, tiny):
    result = learned_aug.fit(model, *few, baseline=crop, config=tiny, progress=False)
    weights = [
        torch.cat([p.flatten() for p in a.parameters()]) for a in (result.prior, result.pretrained, result.fitted)
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert (weights[0] - weights[2]).abs().max() < 0.1  # six small steps from the same start


def test_learning_rates_of_0_give_back_the_prior(model, few, crop):
    config = FitConfig(pretrain=PretrainConfig(steps=2, batch_size=16, lr=0.0), maximize=DropoutConfig(steps=2, lr=0.0))
    result = learned_aug.fit(model, *few, baseline=crop, config=config, progress=False)
    states = [a.state_dict() for a in (result.prior, result.fitted)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_fit_starts_from_given_networks_without_stage_1_and_leaves_them(model, few, crop, tiny):
    without_stage_1 = dataclasses.replace(tiny, pretrain=None)
    expected = learned_aug.fit(model, *few, baseline=crop, config=without_stage_1, progress=False)
    given = expected.prior
    before = {name: value.clone() for name, value in given.state_dict().items()}
    result = learned_aug.fit(model, *few, baseline=crop, augmenter=given, config=tiny, progress=False)
    assert "pretrain" not in {event.stage for event in result.history}
    for one, other in (
        (given.state_dict(), before),
        (result.prior.state_dict(), before),
        (result.fitted.state_dict(), expected.fitted.state_dict()),
    ):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert result.pretrained is None
    assert any(not torch.equal(value, before[name]) for name, value in result.fitted.state_dict().items())
    without = learned_aug.fit(model, *few, augmenter=given, config=tiny, progress=False)  # warns of nothing missing
    assert not torch.equal(without.solution.value, result.solution.value)


def test_stage_1_runs_only_if_asked_for(model, few, crop, tiny):
    result = learned_aug.fit(model, *few, baseline=crop, config=FitConfig(maximize=tiny.maximize), progress=False)
    assert "pretrain" not in {event.stage for event in result.history}
    assert result.pretrained is None
    assert list(result.diagnostics) == ["prior", "fitted"]
    assert result.diagnostics["prior"] != result.diagnostics["fitted"]
    # Without a baseline nothing is missed, so there is no warning (which would be an error here).
    learned_aug.fit(model, *few, config=FitConfig(maximize=tiny.maximize), progress=False)


class Noisy(Dataset):
    """Draws in its own transform, from each of the global generators."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image, label = self.data[index]
        amount = 0.1 * (random.random() + np.random.rand()) / 2  # noqa: NPY002
        return image.lerp(torch.rand(image.shape), amount), label


def test_fit_repeats_from_its_seed_alone_and_leaves_the_global_generators(model, few, crop, tiny):
    results = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), random.getstate()
        results.append(learned_aug.fit(model, Noisy(few[0]), few[1], baseline=crop, config=tiny, progress=False))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
    one, two = (r.fitted.state_dict() for r in results)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert results[0].diagnostics == results[1].diagnostics
    other = dataclasses.replace(tiny, seed=1)
    other = learned_aug.fit(model, Noisy(few[0]), few[1], baseline=crop, config=other, progress=False)
    assert other.diagnostics != results[0].diagnostics


def test_loaders_work_also_of_iterable_data(model, few, crop, tiny):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(few[0])

    for train in (DataLoader(few[0], 50, shuffle=True), DataLoader(Stream(), 50)):
        result = learned_aug.fit(model, train, DataLoader(few[1], 500), baseline=crop, config=tiny, progress=False)
        assert any(event.stage == "pretrain" for event in result.history)


def test_without_a_baseline_stage_1_is_skipped_with_a_warning(model, few, tiny):
    with pytest.warns(UserWarning, match="baseline="):
        result = learned_aug.fit(model, *few, config=tiny, progress=False)
    assert not any(event.stage == "pretrain" for event in result.history)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_model_of_another_dtype_is_fitted_in_it(model, few, crop, tiny, dtype):
    with torch.no_grad():
        result = learned_aug.fit(model.to(dtype), *few, baseline=crop, config=tiny, progress=False)
    assert all(math.isfinite(value) for value in result.diagnostics["fitted"].values())


def test_images_that_are_not_square_and_fewer_than_a_batch_are_fitted(tiny):
    torch.manual_seed(0)
    images, labels = torch.rand(1011, 3, 12, 20), torch.arange(1011) % 3
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    train, val = TensorDataset(images[:11], labels[:11]), TensorDataset(images[11:], labels[11:])
    result = learned_aug.fit(model, train, val, baseline=lambda x: x.flip(-1), config=tiny, progress=False)
    assert result.augmenter(images[:2]).shape == (2, 3, 12, 20)


def test_normalized_images_need_their_normalization_stated(model, few, crop, tiny):
    def normalized(part):
        images = torch.stack([image for image, _ in part])
        return TensorDataset((images - 0.13) / 0.31, torch.tensor([label for _, label in part]))

    data = [normalized(part) for part in few]
    with pytest.raises(ValueError, match=r"\[0, 1\].*got \[-0\.\d+, 2\.\d+\].*mean="):
        learned_aug.fit(model, *data, baseline=crop, config=tiny, progress=False)
    config = AugmenterConfig(channels=1, size=28, mean=(0.13,), std=(0.31,))
    result = learned_aug.fit(model, *data, baseline=crop, augmenter=config, config=tiny, progress=False)
    assert result.augmenter.config.mean == (0.13,)


def test_small_validation_set_is_warned_of(model, few, crop, tiny):
    with pytest.warns(UserWarning, match="120 images"):
        learned_aug.fit(model, few[0], Subset(few[1], range(120)), baseline=crop, config=tiny, progress=False)


def test_share_of_train_is_held_out_with_a_warning(model, data, crop, tiny):
    both = ConcatDataset([data["train"], data["val"]])
    with pytest.warns(UserWarning, match=r"held out of train, 1040 images.*trained on them.*train it on the others"):
        result = learned_aug.fit(model, both, 0.4, baseline=crop, config=tiny, progress=False)
    totals = {event.stage: event.total for event in result.history if "features" in event.stage}
    assert totals == {"train features": 7, "val features": 5}  # batches of 256


def test_data_sets_of_dicts_are_fitted(model, few, crop, tiny):
    class Rows(Noisy):
        def __getitem__(self, index):
            image, label = self.data[index]
            return {"img": image, "label": int(label), "file": "x"}

    plain = learned_aug.fit(model, *few, baseline=crop, config=tiny, progress=False)
    rows = learned_aug.fit(model, *map(Rows, few), baseline=crop, config=tiny, progress=False)
    assert plain.diagnostics == rows.diagnostics


def test_imbalanced_classes_are_fitted_and_a_weighted_sampler_counts_as_it_draws(model, data, few, tiny):
    labels = data["train"].tensors[1]
    rare = (labels == 3).nonzero().flatten().tolist()
    train = Subset(data["train"], (labels == 7).nonzero().flatten().tolist()[:50] + rare[:1])
    config = dataclasses.replace(tiny, pretrain=None)
    plain = learned_aug.fit(model, train, few[1], baseline=lambda x: x, config=config, progress=False)
    assert all(math.isfinite(value) for value in plain.diagnostics["fitted"].values())

    weights = [1.0] * 50 + [50.0]
    loader = DataLoader(train, 20, sampler=WeightedRandomSampler(weights, 200))
    weighted = learned_aug.fit(model, loader, few[1], baseline=lambda x: x, config=config, progress=False)
    drawn = list(Stream(loader, "train", "train features", seed=0, batch_size=0, device=torch.device("cpu")).once())
    images, classes = (torch.cat(column) for column in zip(*drawn, strict=True))
    assert 60 < int((classes == 3).sum()) < 140
    same = TensorDataset(images, classes)
    explicit = learned_aug.fit(model, same, few[1], baseline=lambda x: x, config=config, progress=False)
    scale = explicit.solution.value.norm()
    assert (weighted.solution.value - explicit.solution.value).norm() < 1e-5 * scale
    assert (plain.solution.value - explicit.solution.value).norm() > 0.1 * scale


def test_mixed_precision_changes_the_model_s_passes_a_little_and_leaves_s_val_in_full_precision(model, few, crop, tiny):
    results = [
        learned_aug.fit(model, *few, baseline=crop, config=tiny, progress=False, amp=amp)
        for amp in (None, torch.bfloat16)
    ]
    full, half = (r.solution.value for r in results)
    assert half.dtype == full.dtype == torch.float64
    assert 1e-5 < (half - full).norm() / full.norm() < 0.05
    assert all(p.dtype == torch.float32 for p in results[1].augmenter.parameters())


def test_float16_is_refused_with_the_reason(model, few, tiny):
    with pytest.raises(ValueError, match=r"amp must be None or torch.bfloat16, got torch.float16; .*scaled"):
        learned_aug.fit(model, *few, config=tiny, amp=torch.float16)


def test_another_device_gets_a_copy_of_the_model_and_its_own_does_not(model, few, crop, tiny):
    before = snapshot(model)
    copied, head = _on_device(model, None, "meta")
    assert head.weight.is_meta
    assert copied is not model
    assert _on_device(model, None, "cpu") == _on_device(model, None, None) == (model, model[-1])
    assert_untouched(model, before)


@pytest.mark.parametrize("config", [{}, {"variant": "serial"}, {"variant": "appearance"}, {"fields": "pixel"}])
def test_color_images_and_every_variant_fit(config, crop, tiny):
    torch.manual_seed(0)
    images, labels = torch.rand(1040, 3, 16, 16) / 2, torch.randint(4, (1040,))
    images[:, 0] += labels[:, None, None] / 8  # something to learn
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 4))
    train, val = TensorDataset(images[:40], labels[:40]), TensorDataset(images[40:], labels[40:])
    result = learned_aug.fit(
        model,
        train,
        val,
        baseline=lambda image: image.flip(-1) if torch.rand(()) < 0.5 else image,
        augmenter=AugmenterConfig(channels=3, size=16, **config),
        config=tiny,
        progress=False,
    )
    warps, recolors = result.diagnostics["fitted"]["flow"] > 0, result.diagnostics["fitted"]["color"] > 0
    assert warps == (config.get("variant") != "appearance")
    assert recolors


def test_head_as_found_gives_another_solution_and_a_warning_that_it_is_not_stationary(model, few, crop, tiny):
    values = []
    for refit_head in (True, False):
        config = dataclasses.replace(tiny, influence=InfluenceConfig(refit_head=refit_head))
        with nullcontext() if refit_head else pytest.warns(UserWarning, match="far from stationary"):
            result = learned_aug.fit(model, *few, baseline=crop, config=config, progress=False)
        values.append(result.solution.value.float())
    assert not torch.allclose(values[0], values[1])


def test_progress_is_shown_by_default_and_silent_on_request(model, few, crop, tiny, capsys):
    learned_aug.fit(model, *few, baseline=crop, config=tiny, progress=False)
    assert capsys.readouterr() == ("", "")
    learned_aug.fit(model, *few, baseline=crop, config=tiny)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(stage in shown.err for stage in ("train features", "ihvp", "pretrain", "maximize"))


@pytest.mark.parametrize("stage", ["train features", "ihvp", "pretrain", "maximize"])
def test_model_is_restored_when_fit_raises_in_any_stage(odd, few, crop, tiny, stage):
    before = snapshot(odd)

    def stop(event):
        if event.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned_aug.fit(odd, *few, baseline=crop, config=tiny, progress=False, on_event=stop)
    assert_untouched(odd, before)


def with_labels(subset, labels):
    images = torch.stack([image for image, _ in subset])
    return TensorDataset(images, labels)


BAD = {
    "no linear": (
        lambda m, t, v: (nn.Sequential(nn.Flatten(), nn.Conv1d(1, 1, 1)), t, v),
        ("nn.Linear", "Conv1d", "replace"),
    ),
    "same data": (lambda m, t, v: (m, t, t), ("not in train", "same object", "random_split")),
    "same data in loaders": (lambda m, t, v: (m, DataLoader(t), DataLoader(t)), ("same object", "random_split")),
    "overlapping subsets": (
        lambda m, t, v: (m, Subset(t.dataset, range(150)), Subset(t.dataset, range(100, 300))),
        ("not in train", "50 images", "random_split"),
    ),
    "empty train": (lambda m, t, v: (m, Subset(t, []), v), ("train", "at least one", "empty")),
    "empty val": (lambda m, t, v: (m, t, Subset(v, [])), ("val", "at least one", "empty")),
    "label too large": (
        lambda m, t, v: (m, with_labels(t, torch.full((200,), 10)), v),
        ("0..9", "label 10", "sample 0"),
    ),
    "negative label": (lambda m, t, v: (m, with_labels(t, torch.full((200,), -1)), v), ("0..9", "label -1")),
    "labels of val": (lambda m, t, v: (m, t, with_labels(v, torch.full((1000,), 12))), ("0..9", "label 12")),
    "floating labels": (
        lambda m, t, v: (m, with_labels(t, torch.zeros(200)), v),
        ("integer", "float32", "labels.long()"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_expected_got_and_remedy_and_the_model_restored(case, odd, few, crop, tiny):
    spoil, parts = BAD[case]
    model, train, val = spoil(odd, *few)
    before = snapshot(model)
    with pytest.raises(ValueError, match=parts[0]) as raised:
        learned_aug.fit(model, train, val, baseline=crop, config=tiny, progress=False)
    assert all(part in str(raised.value) for part in parts)
    assert_untouched(model, before)


@pytest.mark.parametrize("augmenter", [AugmenterConfig(), Augmenter(AugmenterConfig())], ids=["config", "networks"])
def test_channels_that_the_augmenter_does_not_take_are_refused(model, few, crop, tiny, augmenter):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\).*\(\d+, 1, 28, 28\)"):
        learned_aug.fit(model, *few, baseline=crop, augmenter=augmenter, config=tiny, progress=False)


def test_image_that_is_not_finite_is_named(model, few, crop, tiny):
    images = torch.stack([image for image, _ in few[0]])
    images[123, 0, 3, 3] = float("inf")
    train = TensorDataset(images, torch.tensor([label for _, label in few[0]]))
    with pytest.raises(ValueError, match=r"train.*sample 123"):
        learned_aug.fit(model, train, few[1], baseline=crop, config=tiny, progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fit_follows_the_model_to_the_gpu(model, few, crop, tiny):
    model.cuda()
    before = snapshot(model)
    result = learned_aug.fit(model, *few, baseline=crop, config=tiny, progress=False)
    assert_untouched(model, before)
    assert all(p.is_cuda for p in result.augmenter.parameters())
    assert all(math.isfinite(value) for value in result.diagnostics["fitted"].values())
    choice = DrawChoice(result.augmenter, model, *few)
    retrain(model, few[0], RetrainConfig(steps=2), baseline=crop, augment=choice)
