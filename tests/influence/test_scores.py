from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learned_aug.influence.head import HeadBatch, HeadTap, borrowed
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.refit import refit
from learned_aug.influence.scores import check_stationary, influence_aug, influence_up, predicted_val_drop
from learned_aug.influence.solvers import CG, Direct, solve
from learned_aug.influence.system import relative_damping

from .problems import LargestTensor, autograd_loss, dense_solution, influence_up_params, random_problem

N, D, K = 3_000, 8, 3


def clusters(n: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Three overlapping classes of features, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (n,), generator=generator)
    centers = 1.2 * torch.eye(K, D, dtype=torch.float64)
    return centers[labels] + spread / 2 * torch.randn(n, D, generator=generator, dtype=torch.float64), labels


def batch_at(problem: HeadProblem, features: Tensor, labels: Tensor) -> HeadBatch:
    return HeadBatch(features, F.linear(features, problem.weight, problem.bias), labels)


@pytest.fixture(scope="module")
def fitted() -> HeadProblem:
    """A stationary head with a little weight decay."""
    features, labels = clusters(N, 0)
    problem = HeadProblem(
        features=features,
        labels=labels,
        weight=torch.zeros(K, D, dtype=torch.float64),
        bias=torch.zeros(K, dtype=torch.float64),
        weight_decay=1e-3,
    )
    result = refit(problem, 1e-12)
    assert result.converged
    return result.problem


@pytest.fixture(scope="module")
def val() -> tuple[Tensor, Tensor]:
    return clusters(1_000, 1)


@pytest.fixture(scope="module")
def s_val(fitted: HeadProblem, val: tuple[Tensor, Tensor]) -> Tensor:
    return solve(fitted, fitted.validation_gradient(batch_at(fitted, *val)), 0.0, CG(tolerance=1e-9)).value


def val_change(fitted: HeadProblem, changed: HeadProblem, val: tuple[Tensor, Tensor]) -> float:
    """Actual change of the validation loss after refitting."""
    result = refit(changed, 1e-12)
    assert result.converged
    after, before = (F.cross_entropy(batch_at(problem, *val).logits, val[1]) for problem in (result.problem, fitted))
    return float(after - before)


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


class TestAgainstRefitting:
    def test_leave_one_out_on_a_stationary_head(
        self, fitted: HeadProblem, val: tuple[Tensor, Tensor], s_val: Tensor
    ) -> None:
        chosen = torch.arange(0, N, N // 100)[:100]
        predicted = -predicted_val_drop(-influence_up(s_val, fitted.batch)[chosen], N)
        actual = []
        for i in chosen:
            weights = torch.ones(N).double().index_fill(0, i, 0.0)
            actual.append(val_change(fitted, _with(fitted, sample_weights=weights), val))
        truth = torch.tensor(actual).double()
        assert pearson(predicted, truth) >= 0.99
        assert float((predicted * truth).sum() / predicted.square().sum()) == pytest.approx(1, abs=0.05)
        # Below a fifth of the usual effect the second order in 1 / N, not the refit's tolerance, can turn a sign.
        large = truth.abs() > 0.2 * truth.abs().median()
        assert int(large.sum()) >= 80
        assert torch.equal(predicted[large].sign(), truth[large].sign())

    def test_influence_sign_agrees_with_refit_head_for_replaced_copies(
        self, fitted: HeadProblem, val: tuple[Tensor, Tensor], s_val: Tensor
    ) -> None:
        chosen = torch.arange(7, N, N // 100)[:100]
        noise = torch.randn(100, D, generator=torch.Generator().manual_seed(2)).double()
        orig = HeadBatch(*(t[chosen] for t in fitted.batch))
        aug = batch_at(fitted, orig.features + noise, orig.labels)
        influence = influence_aug(s_val, aug, orig)
        predicted = predicted_val_drop(influence, N)
        actual = []
        for j, i in enumerate(chosen):
            features = fitted.features.clone()
            features[i] = aug.features[j]
            actual.append(-val_change(fitted, _with(fitted, features=features), val))
        truth = torch.tensor(actual).double()
        assert pearson(predicted, truth) >= 0.98
        large = truth.abs() > 0.2 * truth.abs().median()
        assert int(large.sum()) >= 80
        assert torch.equal(predicted[large].sign(), truth[large].sign())
        assert torch.equal(predicted, -influence / N)

    def test_params_influence_predicts_the_refitted_head(self, fitted: HeadProblem) -> None:
        i = 11
        one = HeadBatch(*(t[i : i + 1] for t in fitted.batch))
        change = influence_up_params(lambda g: solve(fitted, g, 0.0, Direct()).value, one)[0] / N
        weights = torch.ones(N).double()
        weights[i] = 2.0
        actual = refit(_with(fitted, sample_weights=weights), 1e-12).problem.theta - fitted.theta
        torch.testing.assert_close(change, actual, rtol=0.05, atol=0.05 * float(actual.abs().max()))


def _with(problem: HeadProblem, features: Tensor | None = None, sample_weights: Tensor | None = None) -> HeadProblem:
    return HeadProblem(
        features=problem.features if features is None else features,
        labels=problem.labels,
        weight=problem.weight,
        bias=problem.bias,
        sample_weights=sample_weights,
        weight_decay=problem.weight_decay,
    )


class TestClosedForm:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 1000), st.booleans(), st.sampled_from([0.0, 0.1]))
    def test_influences_equal_autograd_in_float64(self, seed: int, bias: bool, label_smoothing: float) -> None:
        problem = random_problem(seed, bias=bias, label_smoothing=label_smoothing, weighted=True, weight_decay=0.1)
        rhs = torch.randn(problem.theta.shape, generator=torch.Generator().manual_seed(seed)).double()
        s = dense_solution(problem, rhs, 0.01)
        batch = HeadBatch(*(t[:5] for t in problem.batch))
        gradients = torch.stack(
            [
                torch.func.grad(lambda t, i=i: autograd_loss(_sample(problem, i), t))(problem.theta)
                for i in range(len(batch.labels))
            ]
        )
        expected = -(gradients * s).sum((1, 2))
        torch.testing.assert_close(influence_up(s, batch, label_smoothing), expected, rtol=1e-10, atol=1e-10)
        params = influence_up_params(
            lambda g: dense_solution(problem, g, 0.01), batch, bias=bias, label_smoothing=label_smoothing
        )
        torch.testing.assert_close(params, -dense_solution(problem, gradients, 0.01), rtol=1e-10, atol=1e-10)
        # The change of the head, times the validation gradient, is the influence on the validation loss.
        torch.testing.assert_close((params * rhs).sum((1, 2)), expected, rtol=1e-8, atol=1e-10)
        other = HeadBatch(*(t[5 : 5 + len(batch.labels)] for t in problem.batch[:2]), batch.labels)
        if len(other.features) == len(batch.labels):
            torch.testing.assert_close(
                influence_aug(s, other, batch, label_smoothing),
                influence_up(s, other, label_smoothing) - influence_up(s, batch, label_smoothing),
            )

    def test_per_validation_sample_from_either_side(self) -> None:
        problem = random_problem(3, weight_decay=0.1)
        train, val = (HeadBatch(*(t[rows] for t in problem.batch)) for rows in (slice(4), slice(10, 16)))
        h = -influence_up_params(lambda g: g, val), -influence_up_params(lambda g: g, train)
        by_val = influence_up(solve(problem, h[0], 0.1, Direct()).value, train)
        by_train = influence_up(solve(problem, h[1], 0.1, Direct()).value, val)
        assert by_val.shape == (6, 4)
        torch.testing.assert_close(by_val, by_train.T, rtol=1e-10, atol=1e-12)
        s_val = solve(problem, h[0].mean(0), 0.1, Direct()).value
        torch.testing.assert_close(by_val.mean(0), influence_up(s_val, train), rtol=1e-10, atol=1e-12)

    def test_gradcheck_through_features_and_logits(self) -> None:
        problem = random_problem(2, n=5)
        s = torch.randn(problem.theta.shape, dtype=torch.float64)
        orig = problem.batch

        def influence(features: Tensor) -> Tensor:
            return influence_aug(s, batch_at(problem, features, orig.labels), orig, 0.1)

        assert torch.autograd.gradcheck(influence, problem.features.clone().requires_grad_())

    def test_differentiable_through_the_augmented_images(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        images = torch.randn(5, 3, 2, 2, dtype=torch.float64)
        labels = torch.arange(5) % 4
        s = torch.randn(4, 9, dtype=torch.float64)
        with borrowed(model), HeadTap(model, model[3]) as tap:
            orig = HeadBatch(*tap(images), labels)

            def influence(x: Tensor) -> Tensor:
                return influence_aug(s, HeadBatch(*tap(x), labels), orig)

            assert torch.autograd.gradcheck(influence, images.clone().requires_grad_())
            assert torch.equal(influence(images), torch.zeros(5, dtype=torch.float64))

    def test_ihvp_is_a_constant(self) -> None:
        problem = random_problem(2)
        s = torch.randn(problem.theta.shape, dtype=torch.float64, requires_grad=True)
        assert not influence_up(s, problem.batch).requires_grad

    def test_half_precision_features_are_computed_in_float32(self) -> None:
        batch = HeadBatch(torch.randn(4, 3).half(), torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
        assert influence_up(torch.randn(2, 4), batch).dtype == torch.float32

    def test_memory_is_linear_in_the_batch(self) -> None:
        b, d, k = 50, 40, 30

        batch = HeadBatch(torch.randn(b, d), torch.randn(b, k), torch.arange(b) % k)
        s = torch.randn(k, d + 1)
        with LargestTensor() as seen:
            influence_aug(s, batch, batch)
        assert seen.numel <= max(b * max(d, k), k * (d + 1))

    @pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3, 6), (4,), (1, 1, 3, 4)])
    def test_ihvp_of_another_head_is_refused(self, shape: tuple[int, ...]) -> None:
        batch = HeadBatch(torch.randn(5, 4), torch.randn(5, 3), torch.zeros(5).long())
        with pytest.raises(
            ValueError, match=r"ihvp must be \(3, 5\), or \(3, 4\) without bias.*, got .*; solve it for the head"
        ):
            influence_up(torch.zeros(shape), batch)

    def test_batches_of_different_samples_are_refused(self) -> None:
        batch = HeadBatch(torch.randn(5, 4), torch.randn(5, 3), torch.zeros(5).long())
        with pytest.raises(ValueError, match="repeat orig"):
            influence_aug(torch.zeros(3, 5), batch, HeadBatch(*(t[:4] for t in batch)))

    def test_predicted_drop_needs_a_training_set(self) -> None:
        with pytest.raises(ValueError, match="n_train must be >= 1, got 0; see HeadProblem"):
            predicted_val_drop(torch.zeros(2), 0)


def _sample(problem: HeadProblem, i: int) -> HeadProblem:
    """The loss of one sample alone, unweighted and without weight decay."""
    return HeadProblem(
        features=problem.features[i : i + 1],
        labels=problem.labels[i : i + 1],
        weight=problem.weight,
        bias=problem.bias,
        label_smoothing=problem.label_smoothing,
    )


class TestStationarity:
    def test_a_refitted_head_passes(self, fitted: HeadProblem, s_val: Tensor) -> None:
        result = check_stationary(fitted, s_val)
        assert result.relative < 1e-9
        assert result.gradient_norm < 1e-9

    def test_a_head_far_from_stationary_warns_with_the_effect(
        self, fitted: HeadProblem, val: tuple[Tensor, Tensor]
    ) -> None:
        found = fitted.with_theta(fitted.theta + 0.02 * torch.randn(fitted.theta.shape).double())
        found = found.with_theta(0.6 * found.theta)
        s = solve(found, found.validation_gradient(batch_at(found, *val)), relative_damping(found, 0)).value
        with pytest.warns(UserWarning, match=r"\|grad L\| = .* Refitting it alone is predicted to lower"):
            result = check_stationary(found, s)
        assert result.gradient_norm == pytest.approx(float(found.gradient().norm()))
        actual = -val_change(found, found, val)
        assert result.refit_drop == pytest.approx(actual, rel=1.0)
        assert result.refit_drop > 10 * result.typical_drop

    def test_samples_that_are_fitted_perfectly(self) -> None:
        features = torch.eye(2, dtype=torch.float64)
        problem = HeadProblem(features=features, labels=torch.arange(2), weight=1e6 * features, bias=None)
        assert check_stationary(problem, torch.zeros_like(problem.theta)).relative == 0.0


def test_what_gives_no_influence_is_refused(fitted: HeadProblem, s_val: Tensor) -> None:
    batch = HeadBatch(*(t[:8] for t in fitted.batch))
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        influence_up(s_val, batch, 2.0)
    with pytest.raises(ValueError, match="ihvp must be finite"):
        influence_up(s_val * float("nan"), batch)
    with pytest.raises(ValueError, match="same samples in the same order, got 8 of 8 labels that differ"):
        influence_aug(s_val, batch, batch._replace(labels=(batch.labels + 1) % K))
