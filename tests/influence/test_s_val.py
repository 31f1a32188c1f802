from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.head import HeadBatch, HeadTap, borrowed
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.s_val import InfluenceConfig, predicted_influence, solve_s_val
from learned_aug.influence.scores import influence_aug
from learned_aug.influence.solvers import CG, LiSSA
from learned_aug.influence.system import ConvergenceError
from learned_aug.runtime.events import Event

from .problems import LargestTensor

EXACT = InfluenceConfig(solver=CG(tolerance=1e-10), weight_decay=0.05)


def batch(n: int, seed: int) -> HeadBatch:
    """Three overlapping classes in five non-negative features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    features = (torch.randn(n, 5, generator=generator) + 2 * F.one_hot(labels, 5)).relu().double()
    return HeadBatch(features, torch.empty(n, 0), labels)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3).double()


def val_loss(theta: Tensor, val: HeadBatch) -> Tensor:
    return F.cross_entropy(F.linear(val.features, theta[:, :-1], theta[:, -1]), val.labels)


@pytest.mark.parametrize("refit_head", [True, False])
@pytest.mark.parametrize(("label_smoothing", "weight_decay"), [(0.0, 0.05), (0.2, 0.05), (0.2, 0.5)])
def test_smoothing_and_decay_enter_the_optimum_and_the_hessian(
    refit_head: bool, label_smoothing: float, weight_decay: float
) -> None:
    train, val, head = batch(90, 0), batch(60, 1), layer()
    config = dataclasses.replace(
        EXACT, refit_head=refit_head, label_smoothing=label_smoothing, weight_decay=weight_decay, damping=0.1
    )
    if refit_head:
        found, solution = solve_s_val(train, val, head, config)
    else:
        with pytest.warns(UserWarning, match="far from stationary"):
            found, solution = solve_s_val(train, val, head, config)
    # The training loss as stated, written out with torch's cross-entropy.
    decay = weight_decay * float(train.features.square().mean())

    def loss(theta: Tensor) -> Tensor:
        logits = F.linear(train.features, theta[:, :-1], theta[:, -1])
        return F.cross_entropy(logits, train.labels, label_smoothing=label_smoothing) + decay / 2 * theta.square().sum()

    assert (found.label_smoothing, found.n_train) == (label_smoothing, 90)
    theta = torch.cat([found.weight, found.bias[:, None]], 1)
    gradient = torch.func.grad(loss)(theta)
    if refit_head:
        assert float(gradient.norm()) < 1e-8
    else:
        assert torch.equal(found.weight, head.weight)
    hessian = torch.func.jacrev(torch.func.grad(loss))(theta).reshape(theta.numel(), theta.numel())
    data = hessian - decay * torch.eye(len(hessian)).double()
    hessian = hessian + 0.1 * data.trace() / len(data) * torch.eye(len(hessian)).double()
    expected = torch.linalg.solve(hessian, torch.func.grad(val_loss)(theta, val).flatten()).view_as(theta)
    torch.testing.assert_close(solution.value, expected, rtol=1e-7, atol=1e-9)


def test_head_as_found_is_not_changed() -> None:
    head = layer()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    solve_s_val(batch(90, 0), batch(60, 1), head, EXACT)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_how_far_the_head_was_from_stationary_is_reported() -> None:
    events: list[Event] = []
    train, head = batch(90, 0), layer()
    solve_s_val(train, batch(60, 1), head, EXACT, on_event=events.append)
    decay = EXACT.weight_decay * float(train.features.square().mean())
    found = HeadProblem.from_batch(train, head, weight_decay=decay)
    norms = [event.metrics["gradient_norm"] for event in events]
    assert norms[0] == pytest.approx(float(found.gradient().norm()))
    assert norms[-1] < 1e-8 < norms[0]


def test_features_that_vanish_are_not_passed_over() -> None:
    train, val = (part._replace(features=1e-10 * part.features) for part in (batch(90, 0), batch(60, 1)))
    with (
        pytest.warns(UserWarning, match="could not be refitted in .* raise InfluenceConfig.weight_decay"),
        pytest.raises(ConvergenceError, match="raise the damping"),
    ):
        solve_s_val(train, val, layer(), dataclasses.replace(EXACT, solver=CG()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_features_in_half_precision_move_s_val_little(dtype: torch.dtype, tolerance: float) -> None:
    train, val, head = batch(300, 0), batch(200, 1), layer()
    _, exact = solve_s_val(train, val, head, EXACT)
    halves = (part._replace(features=part.features.to(dtype)) for part in (train, val))
    _, half = solve_s_val(*halves, head, EXACT)
    assert 0 < float((half.value - exact.value).norm() / exact.value.norm()) < tolerance


@pytest.mark.parametrize("refit_head", [True, False])
@pytest.mark.filterwarnings("ignore:the head is far from stationary")
def test_features_are_never_copied_as_a_whole(refit_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[HeadProblem.__module__], "_CPU_BLOCK_BYTES", 1 << 16)
    n, dim = 5_000, 64
    generator = torch.Generator().manual_seed(0)
    batch = HeadBatch(torch.randn(n, dim, generator=generator), torch.empty(n, 0), torch.arange(n) % 3)
    with LargestTensor() as seen:
        solve_s_val(batch, batch, nn.Linear(dim, 3), InfluenceConfig(refit_head=refit_head, solver=CG()))
    assert seen.numel < n * dim / 2


def test_solver_of_the_config_is_used() -> None:
    config = dataclasses.replace(EXACT, solver=LiSSA(tolerance=0.1, batch_size=64))
    exact, rough = (solve_s_val(batch(90, 0), batch(60, 1), layer(), c)[1] for c in (EXACT, config))
    error = float((rough.value - exact.value).norm() / exact.value.norm())
    assert 1e-6 < error < 0.1


def test_predicted_influence_is_that_of_the_refitted_head_on_the_models_features() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    images, augmented = torch.randn(2, 6, 3, 2, 2)
    labels = torch.arange(6) % 3
    with borrowed(model), HeadTap(model, model[3]) as tap:
        head, solution = solve_s_val(batch(90, 0), batch(60, 1), layer(), EXACT)
        augmented.requires_grad_()
        influence, logits = predicted_influence(tap, head, solution.value, images, augmented, labels)
        (grad,) = torch.autograd.grad(influence.sum(), augmented)
        features = [model[:3](x).double().detach() for x in (augmented, images)]
    torch.testing.assert_close(logits, model(augmented))
    at = [HeadBatch(h, F.linear(h, head.weight, head.bias), labels) for h in features]
    torch.testing.assert_close(influence.double(), influence_aug(solution.value, *at), rtol=1e-4, atol=1e-5)
    assert float(grad.abs().sum()) > 0
