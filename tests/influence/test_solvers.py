from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.solvers import CG, BlockDiagonal, Direct, LiSSA, PlainGradient, Solver, solve
from learned_aug.influence.system import ConvergenceError, relative_damping

from .problems import KINDS, LargestTensor, dense_hessian, dense_solution, random_problem


def rhs_of(problem: HeadProblem, seed: int = 0, stack: int | None = None) -> Tensor:
    shape = problem.theta.shape if stack is None else (stack, *problem.theta.shape)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


# Direct states no tolerance: float64 rounding at the condition numbers that occur here, or float32 of the result.
STATED = {Direct(): 1e-6, CG(): 1e-3, CG(preconditioner="none"): 1e-3}


class TestAccuracy:
    @pytest.mark.parametrize("solver", STATED, ids=str)
    @pytest.mark.parametrize("factor", [0.01, 1.0, 10.0])
    def test_solvers_match_the_dense_solution_on_200_problems(self, solver: Solver, factor: float) -> None:
        for seed in range(200):
            problem = random_problem(seed, KINDS[seed % 5], bias=seed % 3 > 0, dtype=torch.float32)
            damping = relative_damping(problem, factor)
            rhs = rhs_of(problem, seed)
            solution = solve(problem, rhs, damping, solver)
            error = relative_error(solution.value, dense_solution(problem, rhs, damping))
            assert solution.converged
            assert error <= STATED[solver]
            assert error <= solution.error_bound + 1e-6  # the result is rounded to float32

    def test_lissa_matches_the_dense_solution_on_200_problems(self) -> None:
        for seed in range(200):
            problem = random_problem(seed, KINDS[seed % 5], bias=seed % 3 > 0, dtype=torch.float32)
            damping = relative_damping(problem, 10)
            rhs = rhs_of(problem, seed)
            solution = solve(problem, rhs, damping, LiSSA())
            assert relative_error(solution.value, dense_solution(problem, rhs, damping)) <= 1e-2

    @pytest.mark.parametrize("solver", [CG(tolerance=1e-9), Direct()], ids=str)
    def test_float64_reaches_nine_digits_with_every_option(self, solver: Solver) -> None:
        for seed in range(20):
            problem = random_problem(seed, weighted=True, label_smoothing=0.1, weight_decay=0.01)
            rhs = rhs_of(problem, seed)
            assert relative_error(solve(problem, rhs, 0.001, solver).value, dense_solution(problem, rhs, 0.001)) < 1e-9

    def test_float32_problem_continues_in_float64_where_its_own_precision_ends(self) -> None:
        for problem, factor in ((random_problem(4, n=300, dtype=torch.float32), 1e-6), (_synthetic(500, 60, 10), 1e-7)):
            rhs = rhs_of(problem)
            damping = relative_damping(problem, factor)
            solution = solve(problem, rhs, damping, CG(tolerance=1e-5))
            assert solution.error_bound <= 1e-5
            assert relative_error(solution.value, dense_solution(problem, rhs, damping)) <= 1e-5

    @pytest.mark.parametrize("solver", [Direct(), CG(), LiSSA(), BlockDiagonal(), PlainGradient()], ids=str)
    def test_a_stack_of_right_hand_sides_equals_one_by_one(self, solver: Solver) -> None:
        problem = random_problem(3)
        rhs = rhs_of(problem, stack=3)
        rhs[1] = 0
        damping = relative_damping(problem, 10)
        value = solve(problem, rhs, damping, solver).value
        for one, b in zip(value, rhs, strict=True):
            torch.testing.assert_close(one, solve(problem, b, damping, solver).value, rtol=2e-2, atol=2e-2)
        assert torch.equal(value[1], torch.zeros_like(value[1]))

    @pytest.mark.parametrize(
        "solver", [Direct(), CG(tolerance=1e-8), CG(preconditioner="none", tolerance=1e-8)], ids=str
    )
    def test_without_damping_gives_the_least_norm_solution_for_a_gradient(self, solver: Solver) -> None:
        problem = random_problem(4, n=300)
        rhs = problem.gradient()
        exact = (torch.linalg.pinv(dense_hessian(problem), rtol=1e-10) @ rhs.flatten()).view_as(rhs)
        solution = solve(problem, rhs, 0.0, solver)
        assert relative_error(solution.value, exact) < 1e-6
        assert solution.error_bound == math.inf

    def test_auto_is_direct_for_small_heads_and_cg_for_large(self) -> None:
        small, large = random_problem(0), _synthetic(400, 100, 10)
        assert solve(small, rhs_of(small), 0.1).steps == 0
        assert solve(large, rhs_of(large), 0.1).steps > 0

    def test_solution_reports_residual_steps_and_seconds(self) -> None:
        problem = random_problem(1)
        rhs = rhs_of(problem)
        solution = solve(problem, rhs, 0.1, CG(preconditioner="none"))
        r = rhs - problem.hvp(solution.value) - 0.1 * solution.value
        assert solution.residual == pytest.approx(float(r.norm() / rhs.norm()))
        assert 0 < solution.residual <= 1e-3
        assert 0 < solution.steps < 40
        assert 0 < solution.seconds < 60

    def test_kronecker_preconditioner_saves_steps_at_small_damping(self) -> None:
        problem = _synthetic(500, 60, 10)
        damping = relative_damping(problem, 1e-3)
        rhs = rhs_of(problem)
        plain, kronecker = (
            solve(problem, rhs, damping, CG(preconditioner=name)).steps for name in ("none", "kronecker")
        )
        assert kronecker < plain / 2

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_the_gpu_as_on_the_cpu(self) -> None:
        problem = random_problem(4, n=300, dtype=torch.float32)
        moved = HeadProblem(
            features=problem.features.cuda(),
            labels=problem.labels.cuda(),
            weight=problem.weight.cuda(),
            bias=None if problem.bias is None else problem.bias.cuda(),
        )
        rhs = rhs_of(problem)
        for solver in (Direct(), CG(tolerance=1e-6), LiSSA()):
            damping = relative_damping(problem, 10)
            expected = dense_solution(problem, rhs, damping)
            assert relative_error(solve(moved, rhs.cuda(), damping, solver).value.cpu(), expected) <= 1e-2


class TestLimits:
    def test_plain_gradient_is_the_limit_of_large_damping(self) -> None:
        problem = random_problem(2)
        rhs = rhs_of(problem)
        errors = []
        for factor in (10.0, 1e3, 1e5):
            damping = relative_damping(problem, factor)
            solution = solve(problem, rhs, damping, PlainGradient())
            errors.append(relative_error(solution.value, dense_solution(problem, rhs, damping)))
            assert errors[-1] <= solution.error_bound
        assert errors[1] < errors[0] / 10
        assert errors[2] < 1e-3

    def test_block_diagonal_solves_the_blocks_and_states_what_it_leaves(self) -> None:
        problem = random_problem(2, weight_decay=0.1)
        rhs = rhs_of(problem)
        solution = solve(problem, rhs, 0.1, BlockDiagonal())
        h = dense_hessian(problem) + 0.1 * torch.eye(problem.theta.numel())
        size = problem.theta.shape[1]
        for k in range(len(rhs)):
            block = h[k * size : (k + 1) * size, k * size : (k + 1) * size]
            torch.testing.assert_close(block @ solution.value[k], rhs[k])
        assert solution.residual > 0.01


class TestFailure:
    @pytest.mark.parametrize("damping", [-1.0, math.nan, math.inf])
    def test_damping_out_of_range_is_refused(self, damping: float) -> None:
        problem = random_problem(0)
        with pytest.raises(ValueError, match=r"damping must be >= 0 and finite, got .*; try relative_damping"):
            solve(problem, rhs_of(problem), damping)

    @pytest.mark.parametrize("solver", [Direct(), CG()], ids=str)
    def test_no_damping_where_h_is_singular_is_refused(self, solver: Solver) -> None:
        few = random_problem(4, "more features than samples")
        with pytest.raises(ValueError, match=r"damping must be > 0 .* samples do not span"):
            solve(few, few.gradient(), 0.0, solver)
        one_hot = random_problem(0)
        one_hot = one_hot.with_theta(one_hot.theta * 1e6)
        with pytest.raises(ValueError, match=r"damping must be > 0 .* one-hot"):
            solve(one_hot, one_hot.gradient(), relative_damping(one_hot, 10), solver)
        shifted = random_problem(4)
        with pytest.raises(ValueError, match=r"damping must be > 0 .* rows do not sum to zero"):
            solve(shifted, torch.ones_like(shifted.theta), 0.0, solver)

    def test_no_damping_with_duplicated_features_fails_in_each_solver(self) -> None:
        problem = random_problem(4, "duplicated features", n=200)
        rhs = rhs_of(problem)
        rhs -= rhs.mean(0)
        with pytest.raises(ValueError, match="duplicated or constant"):
            solve(problem, rhs, 0.0, Direct())
        with pytest.raises(ValueError, match="duplicated or constant"):
            solve(problem, rhs, 0.0, BlockDiagonal())
        with pytest.raises(ConvergenceError, match="raise the damping"):
            solve(problem, rhs, 0.0, CG())
        with pytest.raises(ValueError, match="use CG"):
            solve(problem, rhs, 0.0, LiSSA())

    def test_weight_decay_stands_in_for_damping(self) -> None:
        problem = random_problem(4, "duplicated features", weight_decay=0.01)
        rhs = rhs_of(problem)
        assert relative_error(solve(problem, rhs, 0.0, CG()).value, dense_solution(problem, rhs, 0.0)) < 1e-3

    @pytest.mark.parametrize("name", ["none", "kronecker"])
    def test_cg_out_of_steps_raises_with_its_best(self, name: str) -> None:
        problem = random_problem(3, n=300)
        with pytest.raises(
            ConvergenceError, match=r"CG missed its tolerance 1.0e-03 after 3 steps .* max_steps"
        ) as info:
            solve(problem, rhs_of(problem), 1e-6, CG(max_steps=3, preconditioner=name))  # type: ignore[arg-type]
        assert not info.value.solution.converged
        assert info.value.solution.value.shape == problem.theta.shape
        assert info.value.solution.steps == 3

    def test_cg_beyond_float64_raises(self) -> None:
        problem = random_problem(4, "duplicated features")
        with pytest.raises(ConvergenceError, match="float64 rounding"):
            solve(problem, rhs_of(problem), 1e-16, CG(tolerance=1e-8))

    def test_lissa_names_too_small_a_damping(self) -> None:
        problem = random_problem(4)
        with pytest.raises(ConvergenceError, match="beyond max_steps = 1000; raise the damping"):
            solve(problem, rhs_of(problem), 1e-5, LiSSA(max_steps=1000))

    def test_lissa_that_diverges_names_cause_and_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = random_problem(4)
        monkeypatch.setattr(LiSSA, "_scale", lambda *_: 1e-4)
        with pytest.raises(ConvergenceError, match=r"diverges .* raise batch_size or the damping"):
            solve(problem, rhs_of(problem), 0.1, LiSSA())

    def test_lissa_repeats_for_a_seed_and_recovers_from_too_small_a_scale(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = random_problem(4)
        rhs = rhs_of(problem)
        first, again = (solve(problem, rhs, 0.1, LiSSA(seed=1)).value for _ in range(2))
        assert torch.equal(first, again)
        largest = float(torch.linalg.eigvalsh(dense_hessian(problem)).max())
        monkeypatch.setattr(LiSSA, "_scale", lambda *_: largest / 4)
        assert solve(problem, rhs, 0.1, LiSSA()).error_bound <= 1e-2

    def test_bad_right_hand_sides_are_refused(self) -> None:
        problem = random_problem(0)
        with pytest.raises(
            ValueError, match=r"rhs must be \(2, 4\) or a stack of such, got \(3, 3\); use validation_gradient"
        ):
            solve(problem, torch.zeros(3, 3), 0.1)
        with pytest.raises(ValueError, match="rhs must be finite, got nan; check the logits"):
            solve(problem, torch.full_like(problem.theta, math.nan), 0.1)

    def test_bad_options_are_refused_at_construction(self) -> None:
        with pytest.raises(ValueError, match=r"tolerance must be in \(0, 1\), got 0.0; 1e-3 is usual"):
            CG(tolerance=0.0)
        with pytest.raises(ValueError, match="max_steps must be >= 1, got 0; leave it out"):
            LiSSA(max_steps=0)
        with pytest.raises(ValueError, match=r"batch_size must be >= 1, got 0; 256 is the default"):
            LiSSA(batch_size=0)
        with pytest.raises(ValueError, match=r"preconditioner must be .*, got 'jacobi'; leave it out"):
            CG(preconditioner="jacobi")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"solver must be .*, got 'cg'; .auto. picks"):
            solve(random_problem(0), rhs_of(random_problem(0)), 0.1, "cg")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"factor must be >= 0 and finite, got -1.0; 0 is the default"):
            relative_damping(random_problem(0), -1.0)

    def test_direct_refuses_a_matrix_over_its_size(self) -> None:
        problem = random_problem(0)
        with pytest.raises(ValueError, match=r"use CG\(\), or Direct\(max_size="):
            solve(problem, rhs_of(problem), 0.1, Direct(max_size=4))


def _synthetic(n: int, d: int, k: int) -> HeadProblem:
    """Correlated non-negative features and a head that fits them in part."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator) * torch.arange(1, d + 1) ** -0.5
    features = (torch.randn(n, d, generator=generator) @ mix).relu()
    weight = torch.randn(k, d, generator=generator) / d**0.5
    labels = (features @ weight.T + torch.randn(n, k, generator=generator)).argmax(1)
    return HeadProblem(features=features, labels=labels, weight=weight, bias=torch.zeros(k))


class TestMemory:
    @pytest.mark.parametrize(
        "solver", [CG(), CG(preconditioner="none"), LiSSA(), BlockDiagonal(), PlainGradient()], ids=str
    )
    def test_no_square_matrix_of_theta_is_formed(self, solver: Solver) -> None:
        n, d, k = 500, 60, 20
        problem = _synthetic(n, d, k)
        with LargestTensor() as seen:
            solve(problem, rhs_of(problem), relative_damping(problem, 10), solver)
        # Nothing beyond the features (N, D+1), the logits (N, K), theta and the preconditioner's (D+1, D+1).
        assert seen.numel <= n * (d + 1)
        assert seen.numel < (k * (d + 1)) ** 2 / 40

    def test_direct_forms_it(self) -> None:
        problem = _synthetic(50, 10, 5)
        with LargestTensor() as seen:
            solve(problem, rhs_of(problem), 0.1, Direct())
        assert seen.numel == (5 * 11) ** 2

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_peak_on_the_gpu_is_a_few_logits_and_thetas(self) -> None:
        n, d, k = 20_000, 256, 100
        source = _synthetic(n, d, k)
        problem = HeadProblem(
            features=source.features.cuda(), labels=source.labels.cuda(), weight=source.weight.cuda(), bias=None
        )
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        solve(problem, rhs_of(problem).cuda(), relative_damping(problem, 10), CG())
        assert torch.cuda.max_memory_allocated() - start < 8 * n * (10 * k + 2 * d)
