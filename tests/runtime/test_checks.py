"""The one check of labels, and that all entry points make it."""

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import learned_aug
from learned_aug.influence.head import HeadBatch, HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.problem import HeadProblem
from learned_aug.runtime.checks import check_class_range, check_images, check_labels, check_range

EYE = torch.eye(4)
FLATTEN = r"make it one dimension with labels.flatten\(\)"
ARGMAX = r"turn one-hot labels into indices with labels.long\(\).argmax\(1\)"
LONG = r"convert them with labels.long\(\)"
MIXED = r"take the mixing of labels .* out of the data set or loader"
FORMS = {
    "(B, 1)": (torch.tensor([[0], [1], [2], [3]]), FLATTEN),
    "(B, 1, 1)": (torch.zeros(4, 1, 1, dtype=torch.long), FLATTEN),
    "(1, B)": (torch.tensor([[0, 1, 2, 3]]), FLATTEN),
    "complex": (torch.zeros(4, dtype=torch.complex64), "give the index of each image.s class, not a value to regress"),
    "(B, 1) floats": (torch.zeros(4, 1), FLATTEN),
    "one-hot floats": (EYE, ARGMAX),
    "one-hot integers": (EYE.long(), ARGMAX),
    "one-hot bool": (EYE.bool(), ARGMAX),
    "mixed": (0.7 * EYE + 0.3 * EYE.flip(0), MIXED),
    "smoothed": (0.9 * EYE + 0.025, MIXED),
    "several labels": (torch.tensor([[0, 1, 1, 0]] * 4), "several labels for an image"),
    "whole floats": (torch.tensor([0.0, 1.0, 2.0, 3.0]), LONG),
    "half precision": (torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.bfloat16), LONG),
    "bool": (torch.tensor([True, False, True, True]), LONG),
    "values": (torch.tensor([0.1, 1.0, 2.0, 3.0]), "give the index of each image.s class, not a value to regress on"),
    "too few": (torch.tensor([0, 1, 2]), "give one label for each image"),
    "scalar": (torch.tensor(3), "give one label for each image"),
    "names": (["cat", "dog", "cat", "eel"], "map class names to indices"),
    "numbers in a list": ([0, 1, 2, 3], "give a tensor of indices"),
    "nothing": (None, "give a tensor of indices"),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_another_form_are_refused_with_the_remedy_for_that_form(form):
    labels, remedy = FORMS[form]
    with pytest.raises(ValueError, match=rf"labels must be integer class indices of shape \(4,\), got .*; {remedy}"):
        check_labels(labels, 4)


@pytest.mark.parametrize("form", [form for form, (labels, _) in FORMS.items() if isinstance(labels, torch.Tensor)])
def test_following_the_remedy_gives_the_labels_that_were_meant(form):
    labels, remedy = FORMS[form]
    for given, fixed in ((FLATTEN, labels.flatten), (ARGMAX, lambda: labels.long().argmax(1)), (LONG, labels.long)):
        if remedy == given:
            made = fixed()
            made = made.long() if made.is_floating_point() else made
            assert check_labels(made, 4).tolist() == made.tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_integers_of_any_width_are_class_indices(dtype):
    labels = torch.arange(4).to(dtype)
    checked = check_labels(labels, 4)
    assert checked.dtype == torch.int64
    assert checked.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("form", ["(B, 1)", "one-hot floats", "mixed", "whole floats", "values"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_fit_refuses_them_in_both_data_sets_with_the_same_remedy(form, part):
    labels, remedy = FORMS[form]
    images, model = torch.rand(32, 3, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    good = torch.arange(32) % 4
    bad = labels.repeat(8, *[1] * (labels.ndim - 1))
    data = {name: TensorDataset(images + (name == "val"), bad if name == part else good) for name in ("train", "val")}
    with pytest.raises(ValueError, match=f"labels of {part} must be integer .*; {remedy}"):
        learned_aug.fit(model, **data, progress=False)


@pytest.mark.parametrize("form", ["(B, 1)", "one-hot floats", "mixed", "whole floats", "bool", "too few"])
def test_the_influence_engine_refuses_them_as_fit_does(form):
    labels, remedy = FORMS[form]
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with borrowed(model), HeadTap(model, find_head(model)) as tap, pytest.raises(ValueError, match=remedy):
        collect(tap, [(torch.rand(4, 3, 2, 2), labels)])
    good = HeadProblem(features=torch.rand(4, 3), labels=torch.arange(4), weight=torch.rand(4, 3), bias=None)
    with pytest.raises(ValueError, match=remedy):
        HeadProblem(features=torch.rand(4, 3), labels=labels, weight=torch.rand(4, 3), bias=None)
    with pytest.raises(ValueError, match=remedy):
        good.validation_gradient(HeadBatch(torch.rand(4, 3), torch.rand(4, 4), labels))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 4, 2], 4, r"0\.\.3.*sample 12 has label 4$"),
        ([1, 2, 3, 4], 4, r"sample 13 has label 4; they seem to count from 1: subtract 1"),
        ([0, -100, 1, 2], 4, r"sample 11 has label -100; leave unlabeled samples"),
        ([0, 1, -1, 2], 4, r"sample 12 has label -1$"),
        ([0, 0, 0, 0], 1, "one logit for each of at least 2 classes, got 1; give a binary classifier two outputs"),
    ],
)
def test_classes_that_the_head_lacks_are_named_with_the_usual_cause(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        check_class_range(torch.tensor(labels), classes, 10)


def test_the_remedy_for_one_logit_is_the_same_classifier():
    logit = torch.randn(50, 1)
    both = torch.cat([logit / 2, -logit / 2], 1)
    torch.testing.assert_close(both.softmax(1)[:, :1], logit.sigmoid())


def test_one_logit_is_refused_by_fit_before_any_event():
    data = [TensorDataset(torch.rand(32, 3, 8, 8), torch.zeros(32, dtype=torch.long)) for _ in range(2)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    events = []
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        learned_aug.fit(model, *data, progress=False, on_event=events.append)
    assert events == []


# Seeds

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
PIXELS = TensorDataset(torch.rand(8, 3, 2, 2), torch.arange(8) % 4)
SEEDED = {
    "retrain": lambda seed: learned_aug.retrain(MODEL, PIXELS, learned_aug.RetrainConfig(steps=1), seed=seed),
    "steered draws": lambda seed: learned_aug.SteeredDraws(MODEL, seed=seed),
    "choice": lambda seed: learned_aug.DrawChoice(MODEL, None, seed=seed),
    "prior": lambda seed: learned_aug.prior(torch.rand(4, 3, 8, 8), seed=seed),
    "settings of a fit": lambda seed: learned_aug.FitConfig(seed=seed),
    "compare": lambda seed: learned_aug.compare(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
        PIXELS,
        TensorDataset(torch.rand(8, 3, 2, 2), torch.arange(8) % 4),
        ["baseline"],
        config=learned_aug.RetrainConfig(steps=1),
        seeds=[seed],
        progress=False,
    ),
}


@pytest.mark.parametrize("seed", [1.5, 2.0, "3", None, torch.tensor(0.5)], ids=str)
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_that_is_no_integer_is_refused(name, seed):
    with pytest.raises(TypeError, match=r"must be an integer, got .*; give one such as 0"):
        SEEDED[name](seed)


@pytest.mark.parametrize("seed", [3, np.int64(3), torch.tensor(3)], ids=repr)
@pytest.mark.parametrize("name", SEEDED)
def test_integers_of_any_kind_are_seeds(name, seed):
    SEEDED[name](seed)


@pytest.mark.parametrize(
    ("image", "statistics", "remedy"),
    [
        (torch.linspace(0, 255, 48), (0.0, 1.0), "divide them by 255 if they are bytes"),
        (torch.linspace(-2, 2.6, 48), (0.0, 1.0), "2.60]; pass the mean= and std="),
        (torch.linspace(0, 255, 48), (0.5, 0.5), "128.00]; pass the mean= and std="),
        (torch.full((48,), torch.inf), (0.0, 1.0), "check the source of NaN or infinity"),
    ],
)
def test_the_remedy_for_a_range_is_that_for_what_came(image, statistics, remedy):
    mean, std = statistics
    with pytest.raises(ValueError, match=re.escape(remedy)):
        check_range(image.view(1, 3, 4, 4), (mean,), (std,))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_wide_integers_are_divided_by_the_largest_value_of_the_data_and_not_of_the_type(dtype):
    with pytest.raises(TypeError, match=r"divide other integers by the largest value .* 255 for 8-bit data"):
        check_images(torch.ones(1, 3, 4, 4, dtype=dtype))


def test_images_in_the_unit_range_whose_normalization_is_stated_are_warned_of():
    images = torch.rand(4, 3, 8, 8)
    with pytest.warns(UserWarning, match="leave these out for images that are not normalized"):
        check_range(images, (0.5, 0.4, 0.3), (0.2,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range(images, (0.0,), (1.0,))
        check_range((images - 0.5) / 0.2, (0.5,), (0.2,))
