"""Two gloo processes on the CPU against one on all the data. They start once, for all that the tests ask of them."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.head import HeadBatch
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.refit import refit
from learned_aug.influence.s_val import InfluenceConfig, solve_s_val
from learned_aug.influence.scores import check_stationary
from learned_aug.influence.solvers import CG, BlockDiagonal, Direct, LiSSA, PlainGradient, solve
from learned_aug.influence.system import relative_damping
from learned_aug.runtime import distributed
from tests.influence.problems import random_problem
from tests.processes import run_processes

CUT = 23  # of 60 samples those before are on process 0: uneven shares
SOLVERS = {"direct": Direct(), "cg": CG(tolerance=1e-10), "blocks": BlockDiagonal(), "plain": PlainGradient()}


def share() -> slice:
    """The samples of this process."""
    if distributed.world_size() == 1:
        return slice(None)
    return slice(CUT) if distributed.rank() == 0 else slice(CUT, None)


def part(problem: HeadProblem) -> HeadProblem:
    """What this process holds of a problem."""
    rows = share()
    weights = problem.sample_weights
    return replace(
        problem,
        features=problem.features[rows],
        labels=problem.labels[rows],
        sample_weights=None if weights is None else weights[rows],
        sharded=True,
    )


def head_figures() -> dict[str, Tensor]:
    """All that a head problem computes over its samples."""
    problem = part(random_problem(11, weighted=True, label_smoothing=0.1, weight_decay=0.01))
    v = torch.randn(2, *problem.theta.shape, generator=torch.Generator().manual_seed(0)).double()
    refitted = refit(problem)
    figures = {
        "n_train": torch.tensor(problem.n_train),
        "loss": problem.loss(),
        "gradient": problem.gradient(),
        "hvp": problem.hvp(v),
        "hvp of rows": problem.hvp(v[0], torch.tensor([1, 59, 22, 23, 23])),
        "hvp of rows on one process": problem.hvp(v[0], torch.tensor([1, 2])),
        "hessian_block": problem.hessian_block(1, 0),
        "mean_eigenvalue": torch.tensor(problem.mean_eigenvalue),
        "mean_square_feature": torch.tensor(problem.mean_square_feature),
        "kronecker_inverse": problem.kronecker_inverse(0.1)(v[0]),
        "val_grad": problem.validation_gradient(problem.batch),
        "refitted": refitted.problem.theta,
        "refit steps": torch.tensor(refitted.steps),
    }
    for name, solver in SOLVERS.items():
        figures[name] = solve(problem, v[0], relative_damping(problem, 0.1), solver).value
    lissa = solve(problem, v[0], relative_damping(problem, 10), LiSSA(batch_size=16))
    figures["lissa"], figures["lissa steps"] = lissa.value, torch.tensor(lissa.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this head is far from stationary
        figures["stationarity"] = torch.tensor(check_stationary(problem, v[0]))
    return figures


def strided_preconditioner() -> Tensor:
    """Of so many samples that the preconditioner takes every third."""
    problem = part(random_problem(3, n=3333))
    return problem.kronecker_inverse(0.1)(torch.ones_like(problem.theta))


def s_val_figures() -> dict[str, Tensor]:
    """s_val of float32 features, and the refitted head."""
    train, val = (random_problem(2, n=n, dtype=torch.float32) for n in (60, 50))
    layer = nn.Linear(train.features.shape[1], len(train.weight))
    with torch.no_grad():
        layer.weight.copy_(train.weight)
        layer.bias.copy_(torch.zeros(len(train.weight)))
    batches = [HeadBatch(*(t[share()] for t in p.batch)) for p in (train, val)]
    head, solution = solve_s_val(*batches, layer, InfluenceConfig(), sharded=True)
    return {"s_val": solution.value, "weight": head.weight, "bias": head.bias, "n_train": torch.tensor(head.n_train)}


def trained_step() -> dict[str, Tensor]:
    """Gradients of a loss with a mean over all samples inside, as that of a relativistic average GAN."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    x, y = torch.randn(2, 40, 3).double()
    rows = (
        slice(20 * distributed.rank(), 20 * (distributed.rank() + 1)) if distributed.world_size() > 1 else slice(None)
    )
    one, two = model(x[rows]), model(y[rows]).square()
    loss = F.softplus(one - distributed.all_mean(two.mean())).mean() + distributed.all_mean(one.mean()).square()
    loss.backward()
    distributed.average_gradients_(model.parameters())
    return {"loss": distributed.all_mean(loss.detach()), **{name: p.grad for name, p in model.named_parameters()}}  # type: ignore[dict-item]


def together() -> dict[str, Any]:
    """What both processes compute."""
    return {
        "head": head_figures(),
        "strided": strided_preconditioner(),
        "s_val": s_val_figures(),
        "step": trained_step(),
    }


def worker() -> tuple[list[dict[str, Any]], str]:
    """On process 0: both results, and the error when process 1 has died."""
    result = together()
    rank = distributed.rank()
    result["place"] = rank, distributed.world_size(), *distributed.span(3 + rank)
    flat, strided = torch.full((3,), rank + 1.0), torch.full((2, 3), rank + 1.0).T
    distributed.broadcast_(flat, strided)
    result["broadcast"] = flat.sum() + strided.sum()
    result["from first"] = distributed.from_first({"rank": rank, "seen": [rank]})
    both: list[dict[str, Any]] = [{}, {}]
    torch.distributed.all_gather_object(both, result)
    if rank == 1:
        os._exit(0)
    with pytest.raises(RuntimeError) as info:
        distributed.all_sum_(torch.zeros(1000))
    return both, str(info.value)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    result: tuple[list[dict[str, Any]], str] = run_processes(worker, tmp_path_factory.mktemp("processes"))[0]
    return result


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return together()


Two = tuple[list[dict[str, Any]], str]


def test_uneven_shards_give_what_one_process_gives_on_all_samples(two: Two, one: dict[str, Any]) -> None:
    for result in two[0]:
        assert result["head"].keys() == one["head"].keys()
        for name, value in one["head"].items():
            torch.testing.assert_close(result["head"][name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: n + m)


def test_preconditioner_of_every_third_sample_is_that_of_one_process(two: Two, one: dict[str, Any]) -> None:
    for result in two[0]:
        torch.testing.assert_close(result["strided"], one["strided"], rtol=1e-9, atol=1e-9)


def test_s_val_of_sharded_features_is_that_of_one_process(two: Two, one: dict[str, Any]) -> None:
    for result in two[0]:
        for name, value in one["s_val"].items():
            torch.testing.assert_close(result["s_val"][name], value, rtol=1e-6, atol=1e-6)


def test_both_processes_get_the_same_bits(two: Two) -> None:
    for part_of in ("head", "s_val", "step"):
        for name, value in two[0][0][part_of].items():
            assert torch.equal(two[0][1][part_of][name], value), name


def test_averaged_gradients_are_those_of_one_process_on_both_batches(two: Two, one: dict[str, Any]) -> None:
    for name, value in one["step"].items():
        torch.testing.assert_close(two[0][0]["step"][name], value, rtol=1e-12, atol=1e-12)
    assert float(one["step"]["weight"].abs().max()) > 1e-3


def test_rank_span_and_what_process_0_sends(two: Two) -> None:
    assert [result["place"] for result in two[0]] == [(0, 2, 0, 7), (1, 2, 3, 7)]
    assert [float(result["broadcast"]) for result in two[0]] == [9.0, 9.0]
    assert [result["from first"] for result in two[0]] == [{"rank": 0, "seen": [0]}] * 2


def test_a_process_left_alone_says_so_and_what_to_do(two: Two) -> None:
    message = two[1]
    assert message.startswith("process 0 of 2 waited for the others in vain (")
    assert "start all of them again" in message


def test_in_one_process_nothing_changes() -> None:
    x = torch.randn(3, requires_grad=True)
    assert distributed.all_mean(x) is x
    (x**2).sum().backward()
    grad = x.grad.clone()  # type: ignore[union-attr]
    distributed.average_gradients_([x])
    distributed.broadcast_(x)
    assert distributed.from_first({"a": 1}) == {"a": 1}
    assert torch.equal(x.grad, grad)  # type: ignore[arg-type]
    assert torch.equal(distributed.all_sum_(grad.clone()), grad)
    assert (distributed.rank(), distributed.world_size(), distributed.span(5)) == (0, 1, (0, 5))
    problem = random_problem(0)
    assert torch.equal(replace(problem, sharded=True).gradient(), problem.gradient())
