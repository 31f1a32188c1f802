from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learned_aug.influence.head import HeadBatch
from learned_aug.influence.problem import HeadProblem, residuals
from learned_aug.influence.refit import refit
from learned_aug.runtime.events import Event

from .problems import KINDS, autograd_loss, dense_hessian, random_problem

OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "kind": st.sampled_from(KINDS),
        "bias": st.booleans(),
        "label_smoothing": st.sampled_from([0.0, 0.1]),
        "weighted": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.03]),
    }
)


PLAIN = {"label_smoothing": 0.0, "weighted": False, "weight_decay": 0.0}


class TestHeadProblem:
    @settings(max_examples=40, deadline=None)
    @given(OPTIONS)
    def test_closed_form_equals_autograd_in_float64(self, options: dict[str, object]) -> None:
        problem = random_problem(**options)  # type: ignore[arg-type]
        theta = problem.theta
        loss = autograd_loss(problem, theta)
        gradient = torch.func.grad(lambda t: autograd_loss(problem, t))(theta)
        hessian = dense_hessian(problem)
        v = torch.randn(2, *theta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(problem.loss(), loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(problem.gradient(), gradient, rtol=1e-10, atol=1e-10)
        expected = (v.flatten(1) @ hessian).view_as(v)
        torch.testing.assert_close(problem.hvp(v), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(problem.hvp(v[0]), expected[0], rtol=1e-10, atol=1e-10)
        size = theta.shape[1]
        data = hessian - problem.weight_decay * torch.eye(len(hessian), dtype=torch.float64)
        torch.testing.assert_close(problem.hessian_block(1, 0), data[size : 2 * size, :size], rtol=1e-10, atol=1e-10)
        assert problem.mean_eigenvalue == pytest.approx(float(data.trace()) / len(data), rel=1e-8, abs=1e-14)

    def test_gradcheck_of_the_loss_agrees_with_the_gradient(self) -> None:
        problem = random_problem(0, label_smoothing=0.1, weight_decay=0.01)
        theta = problem.theta.requires_grad_()

        class ClosedForm(torch.autograd.Function):
            @staticmethod
            def forward(ctx: torch.autograd.function.FunctionCtx, theta: Tensor) -> Tensor:
                return problem.with_theta(theta.detach()).loss()

            @staticmethod
            def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
                return grad * problem.gradient()

        assert torch.autograd.gradcheck(ClosedForm.apply, theta, atol=1e-7)

    def test_blocks_of_rows_do_not_change_the_result(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = random_problem(3, n=500, weighted=True)
        v = torch.randn_like(problem.theta)
        whole = problem.hvp(v), problem.gradient(), problem.mean_eigenvalue, problem.hessian_block(0, 1)
        monkeypatch.setattr(sys.modules[HeadProblem.__module__], "_CPU_BLOCK_BYTES", 1)
        small = problem.to(torch.float32).to(torch.float64)
        torch.testing.assert_close(
            (small.hvp(v), small.gradient(), torch.tensor(small.mean_eigenvalue), small.hessian_block(0, 1)),
            (whole[0], whole[1], torch.tensor(whole[2]), whole[3]),
            rtol=1e-5,
            atol=1e-6,
        )

    def test_class_shift_is_in_the_null_space_and_gradients_are_orthogonal_to_it(self) -> None:
        problem = random_problem(5, label_smoothing=0.1, weighted=True)
        shift = torch.randn(problem.theta.shape[1]).double().expand_as(problem.theta)
        assert float(problem.hvp(shift).abs().max()) < 1e-14
        assert float(problem.gradient().sum(0).abs().max()) < 1e-14

    def test_batch_rows_average_over_the_batch(self) -> None:
        problem = random_problem(2, weighted=True)
        v = torch.randn_like(problem.theta)
        halves = [problem.hvp(v, rows) for rows in torch.arange(60).split(30)]
        torch.testing.assert_close((halves[0] + halves[1]) / 2, problem.hvp(v))

    def test_kronecker_inverse_is_exact_for_one_sample(self) -> None:
        problem = random_problem(0, n=1, weight_decay=0.1)
        v = torch.randn_like(problem.theta)
        torch.testing.assert_close(problem.hvp(problem.kronecker_inverse(0.0)(v)), v)

    def test_half_precision_head_is_computed_in_float32(self) -> None:
        head = nn.Linear(3, 2).half()
        batch = HeadBatch(torch.randn(5, 3).half(), torch.randn(5, 2).half(), torch.arange(5) % 2)
        problem = HeadProblem.from_batch(batch, head)
        assert problem.gradient().dtype == torch.float32
        assert problem.validation_gradient(batch).dtype == torch.float32

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"features": torch.zeros(5)}, r"features must be \(N, D\) with N >= 1, got \(5,\); see collect"),
            ({"weight": torch.zeros(2, 4)}, r"weight must be \(K, 3\), got \(2, 4\); take it from the head"),
            ({"weight": torch.zeros(2, 3).half()}, "float32 or float64 to compute in, got torch.float16; cast it"),
            ({"bias": torch.zeros(3)}, r"bias must be \(2,\), got \(3,\); use None"),
            ({"labels": torch.full((5,), 2)}, r"in 0\.\.1, the head's classes; sample 0 has label 2"),
            ({"sample_weights": -torch.ones(5)}, r"finite and >= 0, got \(5,\), minimum -1.0; a negative"),
            ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5; use that of the training"),
            ({"weight_decay": -1.0}, "weight_decay must be >= 0 and finite, got -1.0; use that of the training loss"),
        ],
    )
    def test_bad_settings_are_refused(self, change: dict[str, object], reason: str) -> None:
        good: dict[str, object] = {
            "features": torch.zeros(5, 3),
            "labels": torch.zeros(5).long(),
            "weight": torch.zeros(2, 3),
            "bias": None,
        }
        with pytest.raises(ValueError, match=reason):
            HeadProblem(**{**good, **change})  # type: ignore[arg-type]

    def test_non_finite_feature_names_the_sample(self) -> None:
        problem = random_problem(0)
        problem.features[7, 0] = torch.nan
        with pytest.raises(ValueError, match="features must be finite; sample 7"):
            problem.gradient()

    def test_hvp_of_a_wrong_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"v must be \(2, 4\) or a stack of such, got \(3, 3\); shape it as theta"):
            random_problem(0).hvp(torch.zeros(3, 3))


class TestValidationGradient:
    @pytest.mark.filterwarnings("ignore:the validation set has no sample")
    @settings(max_examples=20, deadline=None)
    @given(OPTIONS)
    def test_equals_autograd_of_the_plain_mean_whatever_the_training_loss_adds(self, options: dict[str, Any]) -> None:
        problem, plain = (random_problem(**{**options, **change}) for change in ({}, PLAIN))
        expected = torch.func.grad(lambda t: autograd_loss(plain, t))(problem.theta)
        gradient = problem.validation_gradient(problem.batch)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
        assert float(gradient.sum(0).abs().max()) < 1e-12

    def test_is_taken_at_the_weights_of_the_problem_not_at_the_logits_of_the_batch(self) -> None:
        problem = random_problem(3)
        val = random_problem(3, n=20).batch
        expected = problem.validation_gradient(val)
        assert torch.equal(problem.validation_gradient(val._replace(logits=torch.empty(0))), expected)
        moved = problem.with_theta(2 * problem.theta)
        assert not torch.equal(moved.validation_gradient(val), expected)

    @pytest.mark.parametrize("labels", [[0, 1, -1], [0.0, 1.0, 1.0]])
    def test_labels_that_are_no_classes_are_refused_before_they_are_counted(self, labels: list[float]) -> None:
        problem = random_problem(0, n=3)
        with pytest.raises(ValueError, match=r"labels must be"):
            problem.validation_gradient(problem.batch._replace(labels=torch.tensor(labels)))

    def test_missing_class_warns_what_it_means(self) -> None:
        labels = torch.tensor([0, 1, 2, 1])
        problem = HeadProblem(features=torch.randn(4, 2), labels=labels, weight=torch.randn(9, 2), bias=None)
        with pytest.warns(UserWarning, match=r"6 of the head's 9 classes \(3, 4, 5, 6, 7, ...\).*is not seen"):
            problem.validation_gradient(problem.batch)


class TestRefit:
    @pytest.mark.parametrize("kind", KINDS)
    def test_reaches_stationarity_on_a_copy(self, kind: str) -> None:
        problem = random_problem(4, kind, weight_decay=1e-3, label_smoothing=0.05, dtype=torch.float32)
        before = problem.theta.clone()
        result = refit(problem)
        theta = result.problem.theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(autograd_loss(result.problem, theta), theta)
        assert result.converged
        assert result.gradient_norm == pytest.approx(float(gradient.norm()), abs=1e-12)
        assert float(gradient.norm()) < 1e-8
        assert theta.dtype == torch.float64
        assert torch.equal(problem.theta, before)

    def test_without_weight_decay_and_overlapping_classes(self) -> None:
        assert refit(random_problem(4, n=300)).converged

    def test_each_step_reports_the_gradient_norm_from_the_head_as_found(self) -> None:
        problem = random_problem(4, weight_decay=1e-3)
        events: list[Event] = []
        result = refit(problem, on_event=events.append)
        assert [event.step for event in events] == list(range(result.steps + 1))
        norms = [event.metrics["gradient_norm"] for event in events]
        assert norms[0] == pytest.approx(float(problem.gradient().norm()))
        assert norms[-1] == result.gradient_norm < 1e-8
        events.clear()
        assert refit(result.problem, on_event=events.append).steps == 0
        assert len(events) == 1

    def test_too_few_steps_are_reported(self) -> None:
        result = refit(random_problem(4, weight_decay=1e-4), max_steps=1)
        assert not result.converged
        assert result.steps == 1

    def test_rounding_ends_it_unconverged(self) -> None:
        result = refit(random_problem(4, weight_decay=1e-3), tolerance=1e-30)
        assert not result.converged
        assert result.gradient_norm < 1e-10


def test_residuals_take_soft_labels():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    soft = torch.nn.functional.one_hot(labels, 3).float()
    for smoothing in (0.0, 0.1):
        torch.testing.assert_close(residuals(logits, soft, smoothing), residuals(logits, labels, smoothing))
    mixed = 0.3 * soft + 0.7 * soft.roll(1, 0)
    leaf = logits.clone().requires_grad_()
    torch.nn.functional.cross_entropy(leaf, mixed, reduction="sum").backward()
    torch.testing.assert_close(residuals(logits, mixed), leaf.grad)
