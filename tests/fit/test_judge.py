"""The judge: which images it gets, its interval, and what it says of a fit."""

import importlib
import math

import pytest
import torch

import learned_aug
from learned_aug.fit.judge import FOLDS, T_95, Estimate, estimate, halves
from learned_aug.influence.head import HeadBatch


def batch(labels):
    n = len(labels)
    return HeadBatch(torch.arange(n, dtype=torch.float32)[:, None], torch.zeros(n, 2), labels)


@pytest.mark.parametrize("order", ["sorted", "in turn", "in pairs", "at random"])
@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10, 16])
def test_both_halves_and_all_folds_have_all_classes_evenly_in_any_order(order, classes):
    n = 1600
    labels = {
        "sorted": torch.arange(n) * classes // n,
        "in turn": torch.arange(n) % classes,
        "in pairs": torch.arange(n) // 2 % classes,
        "at random": torch.randint(classes, (n,), generator=torch.Generator().manual_seed(0)),
    }[order]
    fitted, folds = halves(batch(labels))
    assert len(folds) == FOLDS
    assert abs(len(fitted.labels) - n / 2) < 0.03 * n
    share = fitted.labels.bincount(minlength=classes) / labels.bincount(minlength=classes)
    assert 0.35 < share.min() <= share.max() < 0.65
    for fold in folds:
        counts = fold.labels.bincount(minlength=classes)
        assert counts.sum() == pytest.approx(100, abs=4)
        assert counts.min() > 0 or classes == 16  # about six of each


def test_parts_are_disjoint_and_complete_and_the_same_for_several_processes():
    whole = batch(torch.arange(500) % 10)
    fitted, folds = halves(whole)
    assert torch.cat([part.features for part in (fitted, *folds)]).sort(0).values.equal(whole.features)
    shares = [
        halves(HeadBatch(*(rows[part] for rows in whole)), part.start or 0) for part in (slice(0, 230), slice(230, 500))
    ]
    assert torch.equal(torch.cat([share[0].features for share in shares]), fitted.features)
    for k in range(FOLDS):
        assert torch.equal(torch.cat([share[1][k].features for share in shares]), folds[k].features)


@pytest.mark.parametrize(("count", "judged"), [(2, False), (16, False), (24, False), (100, True)])
def test_too_few_images_are_all_the_fits(count, judged):
    whole = batch(torch.zeros(count, dtype=torch.long))
    fitted, folds = halves(whole)
    assert bool(folds) == judged
    assert (fitted is whole) != judged


def test_interval_covers_the_mean_of_images_and_folds_95_times_in_100():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(1000):
        draws = [torch.randn(shape, generator=generator) for shape in ((FOLDS, 1), (1, 200), (FOLDS, 200))]
        found = estimate(0.3 + 0.1 * draws[0] + 1.0 * draws[1] + 0.2 * draws[2])
        covered += abs(found.mean - 0.3) <= found.margin
    assert 940 <= covered <= 990  # Student's t is wide where the images count for more than the folds


def test_margin_is_students_t_of_folds_that_differ():
    drops = torch.arange(FOLDS, dtype=torch.float64)[:, None].expand(-1, 10)
    found = estimate(drops)
    assert found.mean == pytest.approx(3.5)
    assert found.margin == pytest.approx(T_95 * math.sqrt(6.0 / FOLDS))


@pytest.mark.parametrize("shape", [(1, 10), (0, 10), (FOLDS, 1)])
def test_without_folds_or_images_nothing_is_certain(shape):
    found = estimate(torch.ones(shape))
    assert found.margin == math.inf
    assert found.sign == 0


@pytest.mark.parametrize(
    ("gain", "sign"), [((2.0, 1.0), 1), ((-2.0, 1.0), -1), ((0.5, 1.0), 0), ((1.0, 1.0), 0), ((math.nan, 1.0), 0)]
)
def test_sign_is_that_of_an_interval_off_zero(gain, sign):
    assert Estimate(*gain).sign == sign


def test_a_fit_that_learned_nothing_gives_the_prior_and_says_why(model, few):
    config = learned_aug.FitConfig(maximize=learned_aug.DropoutConfig(steps=1, lr=0.0))
    result = learned_aug.fit(model, *few, config=config, progress=False)
    assert result.gain.mean == 0
    assert result.augmenter is result.prior
    assert result.verdict.startswith("The prior is used: no difference of the fitted networks to it is certain")
    assert result.verdict in str(result)


@pytest.mark.parametrize(
    ("gain", "wrong", "used", "why"),
    [
        (1.0, 0.3, "fitted", "further"),
        (1.0, 0.2, "fitted", "further"),
        (-1.0, 0.3, "prior", "less"),
        (1.0, 0.4, "prior", "40% against 30%"),
    ],
)
def test_networks_are_used_that_are_better_with_certainty_and_not_wrong_more_often_than_the_prior(
    model, few, tiny, monkeypatch, gain, wrong, used, why
):
    stages = importlib.import_module("learned_aug.fit.stages")  # learned_aug.fit is the function
    measure, shares = stages.measure, iter([0.3, 0.3, wrong])  # of the prior, the pretrained and the fitted networks
    monkeypatch.setattr(stages, "estimate", lambda drops: Estimate(gain, 0.5))
    monkeypatch.setattr(stages, "measure", lambda *a, **k: measure(*a, **k) | {"misclassified": next(shares)})
    result = learned_aug.fit(model, *few, baseline=lambda x: x, config=tiny, progress=False)
    assert result.augmenter is getattr(result, used)
    assert used in result.verdict.split(":")[0]
    assert why in result.verdict


def test_the_fit_does_not_learn_from_the_judges_half(model, few, tiny):
    images = torch.stack([image for image, _ in few[1]])
    labels = torch.tensor([int(label) for _, label in few[1]])
    fitted, folds = halves(HeadBatch(torch.arange(1000)[:, None], torch.zeros(1000, 1), labels))
    spoiled = images.clone()
    spoiled[torch.cat([fold.features[:, 0] for fold in folds])] *= 0.5
    results = [
        learned_aug.fit(
            model,
            few[0],
            torch.utils.data.TensorDataset(x, labels),
            baseline=lambda x: x,
            config=tiny,
            progress=False,
        )
        for x in (images, spoiled)
    ]
    assert torch.allclose(results[0].solution.value, results[1].solution.value, rtol=1e-6, atol=1e-9)
    states = [result.fitted.state_dict() for result in results]
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-6) for key in states[0])
    assert results[0].gain != results[1].gain
    assert len(fitted.labels) > 400
