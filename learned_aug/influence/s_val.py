"""s_val of a classifier's head, and the influence of its images through it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from learned_aug.influence.head import HeadBatch, HeadTap
from learned_aug.influence.problem import Head, HeadProblem, warn_of_missing_classes
from learned_aug.influence.refit import refit
from learned_aug.influence.scores import check_stationary, influence_aug
from learned_aug.influence.solvers import Solver, solve
from learned_aug.influence.system import Solution, relative_damping
from learned_aug.runtime.events import OnEvent
from learned_aug.runtime.numbers import check_at_least, check_at_most_one

__all__ = ["InfluenceConfig", "predicted_influence", "solve_s_val"]


@dataclass(frozen=True, kw_only=True)
class InfluenceConfig:
    """Settings of stage 2: the head, its Hessian and the inverse-Hessian-vector product of the validation gradient."""

    refit_head: bool = True
    """Bring a copy of the head to stationarity first, which Eq. 9 assumes (ours)."""
    weight_decay: float = 0.03
    """Weight decay of the head's loss, in units of the mean square of a feature. Without any, separable features have
    no optimum, and with little the predictions are far from refits (ours, measured in
    benchmarks/influence/validity.py)."""
    damping: float = 0.0
    """Damping beyond the weight decay, in units of the Hessian's mean eigenvalue. It costs accuracy (ours, measured in
    benchmarks/influence/validity.py)."""
    solver: Solver | Literal["auto"] = "auto"
    """Solver of the linear system, such as CG(); "auto" is Direct for small heads and CG for others (ours)."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss that the model is trained with, in [0, 1]."""
    cache_dtype: torch.dtype | None = None
    """Dtype of the cached features; None keeps what the model gives. float16 halves the memory, and moved s_val by 4e-4
    of its length in benchmarks/fit/memory.py; bfloat16, for features beyond 65,504, by 3e-3 (ours)."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: naming the field.
        """
        check_at_least(self, weight_decay=0, damping=0, label_smoothing=0)
        check_at_most_one(self, "label_smoothing")
        if self.solver != "auto" and not isinstance(self.solver, Solver):
            raise ValueError(f'InfluenceConfig.solver must be "auto" or a solver such as CG(), got {self.solver!r}')
        if self.cache_dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"InfluenceConfig.cache_dtype must be a floating dtype or None, got {self.cache_dtype!r}")


def solve_s_val(
    train: HeadBatch,
    val: HeadBatch,
    layer: nn.Linear,
    config: InfluenceConfig,
    *,
    also: Sequence[HeadBatch] = (),
    sharded: bool = False,
    on_event: OnEvent | None = None,
) -> tuple[Head, Solution]:
    """Refit a copy of the head, if asked for, and solve for s_val at it.

    Args:
        train: features (N, D) and labels (N,) of all training images; the logits are not used.
        val: features and labels of all hyper-validation images; the logits are not used.
        layer: the head as found; not changed.
        config: settings of the solver, its damping and the refit.
        also: further validation sets, solved for in the same passes over the features.
        sharded: whether `train` and `val` are one process's parts; all processes get the same result.
        on_event: gets the events of :func:`refit`.

    Returns:
        The head at which influences are to be read, and s_val: (K, D + 1), or a stack (1 + len(also), K, D + 1).

    Raises:
        ConvergenceError: if the solver's tolerance is not reached.

    Warns:
        UserWarning: if the head could not be refitted, or is used as found and far from stationary.
    """
    problem = HeadProblem.from_batch(train, layer, label_smoothing=config.label_smoothing, sharded=sharded)
    problem = replace(problem, weight_decay=config.weight_decay * problem.mean_square_feature)
    if config.refit_head:
        refitted = refit(problem, on_event=on_event)
        problem = refitted.problem
        if not refitted.converged:
            warnings.warn(
                f"the head could not be refitted in {refitted.steps} steps, its gradient is still "
                f"{refitted.gradient_norm:.1e}: predictions will be off; raise InfluenceConfig.weight_decay",
                stacklevel=3,
            )
    gradient = problem.gradient_on(val)
    if also:
        gradient = torch.stack([gradient, *(problem.gradient_on(part) for part in also)])
    labels = torch.cat([part.labels for part in (val, *also)])
    warn_of_missing_classes(labels, len(problem.weight), sharded)
    solution = solve(problem, gradient, relative_damping(problem, config.damping), config.solver)
    if not config.refit_head:
        check_stationary(problem, solution.value[0] if also else solution.value)
    return problem.head, solution


def predicted_influence(
    tap: HeadTap, head: Head, ihvp: Tensor, images: Tensor, augmented: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict the influence of replacing images by augmented copies, Eq. 18, through a model.

    Args:
        tap: open, on the borrowed model.
        head: whose weights give the logits of the influence; a refitted copy, or the model's own.
        ihvp: s_val, (K, D + 1), computed for `head`.
        images: originals, (B, C, H, W).
        augmented: augmented copies of `images`, (B, C, H, W).
        labels: class indices (B,).

    Returns:
        The influence (B,), negative is good, and the model's logits (B, K) on the copies; both differentiable through
        `augmented`.
    """
    with torch.no_grad():
        orig = head(tap(images)[0], labels)
    features, logits = tap(augmented)
    return influence_aug(ihvp, head(features, labels), orig, head.label_smoothing), logits
