from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learned_aug.fit.events import Event
from learned_aug.fit.head import (
    HeadBatch,
    HeadProblem,
    HeadTap,
    borrowed,
    check_finite,
    collect,
    find_head,
    mean_gradient,
    refit,
)

from .problems import KINDS, autograd_loss, dense_hessian, random_problem


class Classifier(nn.Module):
    """Batch norm, dropout and a head that is not the last registered module."""

    def __init__(self, end: nn.Module | None = None, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 4, bias=bias)
        self.end = end or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(self.fc(self.body(x)))
        return out


def images(n: int = 10) -> Tensor:
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def labels(n: int = 10) -> Tensor:
    return torch.arange(n) % 4


def tapped(model: nn.Module, head: nn.Linear | None = None, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    with borrowed(model), HeadTap(model, head or find_head(model)) as tap:
        return tap(images() if x is None else x)


class TestFindHead:
    def test_default_is_last_registered_linear(self) -> None:
        model = Classifier()
        assert find_head(model) is model.fc

    def test_name_selects_another(self) -> None:
        model = Classifier()
        assert find_head(model, "body.1") is model.body[1]

    def test_wrappers_are_looked_through(self) -> None:
        class Compiled(nn.Module):  # as torch.compile gives, without starting the compiler
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self._orig_mod = inner

        model = Classifier()
        assert find_head(Compiled(nn.DataParallel(model))) is model.fc

    def test_unknown_or_wrong_name_lists_the_linears(self) -> None:
        with pytest.raises(ValueError, match=r"got BatchNorm1d; its Linear layers are \['body.1', 'fc'\]"):
            find_head(Classifier(), "body.2")
        with pytest.raises(ValueError, match="got nothing"):
            find_head(Classifier(), "classifier")

    def test_model_without_linear_names_the_kinds_found(self) -> None:
        with pytest.raises(ValueError, match="found only Conv2d, ReLU; replace a 1x1-convolution head"):
            find_head(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))


class TestBorrowed:
    @pytest.mark.parametrize("fail", [False, True])
    def test_model_comes_back_bit_identical(self, fail: bool) -> None:
        model = Classifier().train()
        model.body[2].eval()
        model.fc.weight.requires_grad_(False)
        model.fc.bias.grad = torch.ones(4)
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        buffers, grad = list(model.buffers()), model.fc.bias.grad

        def body() -> None:
            with borrowed(model), HeadTap(model, model.fc) as tap:
                assert not any(m.training for m in model.modules())
                assert not any(p.requires_grad for p in model.parameters())
                tap(images())
                model.body[2].running_mean.add_(1)
                model.body[2].running_var = torch.zeros(8)
                model.fc.bias.grad = None
                if fail:
                    raise KeyError("body")

        if fail:
            with pytest.raises(KeyError):
                body()
        else:
            body()
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == [
            name != "fc.weight" for name, _ in model.named_parameters()
        ]
        assert model.fc.bias.grad is grad
        assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TestHeadTap:
    def test_gives_features_and_logits_of_the_head(self) -> None:
        model = Classifier()
        features, logits = tapped(model)
        model.eval()
        torch.testing.assert_close(features, model.body(images()))
        torch.testing.assert_close(logits, model(images()))

    def test_features_are_differentiable_by_the_images(self) -> None:
        x = images().requires_grad_()
        features, logits = tapped(Classifier(), x=x)
        (grad,) = torch.autograd.grad(features.sum() + logits.sum(), x)
        assert grad.abs().sum() > 0

    def test_sees_through_data_parallel_and_keyword_calls(self) -> None:
        class Keyword(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.fc(input=self.body(x))
                return out

        features, _ = tapped(nn.DataParallel(Keyword()))
        assert features.shape == (10, 8)

    @pytest.mark.parametrize(
        ("end", "reason"),
        [
            (nn.Sigmoid(), "something after the head changes them"),
            (nn.Softmax(1), "something after the head changes them"),
            (nn.Linear(4, 3), r"must be its head's, \(10, 4\), got \(10, 3\)"),
        ],
    )
    def test_output_that_is_not_the_heads_is_refused(self, end: nn.Module, reason: str) -> None:
        model = Classifier(end)
        with pytest.raises(ValueError, match=reason):
            tapped(model, model.fc)

    def test_scaled_output_is_refused(self) -> None:
        class Scaled(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return 10 * super().forward(x)

        with pytest.raises(ValueError, match=r"differ by 900\.0%"):
            tapped(Scaled())

    def test_tuple_output_is_refused(self) -> None:
        class Pair(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x), x  # type: ignore[return-value]

        with pytest.raises(ValueError, match="one tensor, got tuple"):
            tapped(Pair())

    def test_head_that_runs_twice_or_never_is_refused(self) -> None:
        class Twice(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + super().forward(x)

        with pytest.raises(ValueError, match="ran 2 times"):
            tapped(Twice())
        unused = Classifier()
        unused.register_module("aux", nn.Linear(2, 2))
        with pytest.raises(ValueError, match="ran 0 times"):
            tapped(unused)

    def test_features_that_are_not_one_vector_per_image_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got \(10, 3, 2, 2\); the head must see one vector per image"):
            tapped(nn.Sequential(nn.Identity(), nn.Linear(2, 4)))

    def test_train_mode_is_refused(self) -> None:
        model = Classifier().train()
        with HeadTap(model, model.fc) as tap, pytest.raises(ValueError, match="train mode"):
            tap(images())

    def test_dropout_active_in_eval_mode_is_detected(self) -> None:
        class Dropping(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.fc(F.dropout(self.body(x), 0.2, training=True))
                return out

        with pytest.raises(ValueError, match="active dropout"):
            tapped(Dropping())

    def test_features_that_depend_on_the_batch_are_detected(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, 4))
        with pytest.raises(ValueError, match="normalisation over the batch"):
            tapped(model)

    def test_head_of_another_model_and_closed_tap_are_refused(self) -> None:
        with pytest.raises(ValueError, match="find_head"):
            HeadTap(Classifier(), Classifier().fc)
        model = Classifier()
        with pytest.raises(RuntimeError, match="not open"):
            HeadTap(model, model.fc)(images())


class TestCollect:
    def collected(self, x: Tensor, y: Tensor, dtype: torch.dtype | None = None) -> HeadBatch:
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            return collect(tap, zip(x.split(4), y.split(4), strict=True), dtype)

    def test_streams_in_order_and_without_grad(self) -> None:
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            batch = collect(tap, zip(images().split(4), labels().int().split(4), strict=True))
            features, logits = tap(images())
        torch.testing.assert_close(batch.features, features.detach())
        torch.testing.assert_close(batch.logits, logits.detach())
        assert torch.equal(batch.labels, labels())
        assert not batch.features.requires_grad

    def test_half_precision_cache_gives_the_same_gradient(self) -> None:
        torch.manual_seed(0)
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            half = collect(tap, [(images(), labels())], torch.float16)
            full = collect(tap, [(images(), labels())])
        assert half.features.dtype == torch.float16
        torch.testing.assert_close(mean_gradient(half), mean_gradient(full), rtol=1e-2, atol=1e-3)
        problem = HeadProblem.from_batch(half, model.fc)
        v = torch.randn(4, 9)
        torch.testing.assert_close(problem.hvp(v), HeadProblem.from_batch(full, model.fc).hvp(v), rtol=1e-2, atol=1e-3)

    @pytest.mark.parametrize("count", [0, 3, 10, 12])
    def test_count_only_changes_the_memory(self, count: int) -> None:
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            given = [(images().split(4), labels().split(4)) for _ in range(2)]
            expected = collect(tap, [(images(), labels())])
            batch = collect(tap, zip(*given[0], strict=True), count=count)
            bare = collect(tap, zip(*given[1], strict=True), count=count, keep_logits=False)
        for one, two in zip(batch, expected, strict=True):
            torch.testing.assert_close(one, two)
        assert torch.equal(bare.features, batch.features)
        assert bare.logits.shape == (10, 0)
        if count >= 10:
            assert batch.features.untyped_storage().nbytes() == count * 8 * 4

    def test_overflow_of_the_cache_names_its_remedy(self) -> None:
        model = Classifier()
        with torch.no_grad():
            model.body[1].weight.mul_(1e6)
        with borrowed(model), HeadTap(model, model.fc) as tap:
            with pytest.raises(ValueError, match="float16 for overflow, which bfloat16 does not have"):
                collect(tap, [(images(), labels())], torch.float16)
            assert collect(tap, [(images(), labels())], torch.bfloat16).features.dtype == torch.bfloat16

    def test_non_finite_sample_is_named(self) -> None:
        x = images()
        x[6] = torch.inf
        with pytest.raises(ValueError, match="features must be finite; sample 6 is the first of 1"):
            self.collected(x, labels())

    def test_label_outside_the_heads_classes_is_named(self) -> None:
        y = labels()
        y[5] = 4
        with pytest.raises(ValueError, match=r"0\.\.3, the head's classes; sample 5 has label 4"):
            self.collected(images(), y)
        y[5] = -1
        with pytest.raises(ValueError, match="sample 5 has label -1"):
            self.collected(images(), y)

    @pytest.mark.parametrize("y", [labels().float(), labels() > 1, F.one_hot(labels())])
    def test_labels_that_are_not_indices_are_refused(self, y: Tensor) -> None:
        with pytest.raises(ValueError, match="integer class indices"):
            self.collected(images(), y)

    def test_no_batch_is_refused(self) -> None:
        model = Classifier()
        with (
            borrowed(model),
            HeadTap(model, model.fc) as tap,
            pytest.raises(ValueError, match=r"at least one batch of .*, got none; check the loader"),
        ):
            collect(tap, [])

    def test_non_finite_logit_is_named(self) -> None:
        batch = HeadBatch(torch.zeros(3, 2), torch.tensor([[0.0, 0], [0, torch.nan], [0, 0]]), torch.zeros(3).long())
        with pytest.raises(ValueError, match="logits must be finite; sample 101"):
            check_finite(batch, 100)


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
        batch = HeadBatch(torch.randn(5, 3).half(), torch.randn(5, 2).half(), labels(5) % 2)
        problem = HeadProblem.from_batch(batch, head)
        assert problem.gradient().dtype == torch.float32
        assert mean_gradient(batch).dtype == torch.float32

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


class TestMeanGradient:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 1000), st.booleans(), st.sampled_from([0.0, 0.2]))
    def test_equals_autograd(self, seed: int, bias: bool, label_smoothing: float) -> None:
        problem = random_problem(seed, bias=bias, label_smoothing=label_smoothing)
        gradient = mean_gradient(problem.batch, bias, label_smoothing)
        torch.testing.assert_close(gradient, problem.gradient(), rtol=1e-10, atol=1e-12)

    def test_missing_class_warns_what_it_means(self) -> None:
        batch = HeadBatch(torch.randn(4, 2), torch.randn(4, 9), torch.tensor([0, 1, 2, 1]))
        with pytest.warns(UserWarning, match=r"6 of the head's 9 classes \(3, 4, 5, 6, 7, ...\).*is not seen"):
            mean_gradient(batch)


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
