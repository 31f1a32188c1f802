"""s_val of a classifier, and the influence of its images through it: what stage 3 and the choice of masks share."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.fit.config import InfluenceConfig
from learned_aug.fit.events import OnEvent
from learned_aug.fit.head import HeadBatch, HeadTap
from learned_aug.fit.ihvp import Solution, relative_damping, solve
from learned_aug.fit.influence import check_stationary, influence_aug
from learned_aug.fit.problem import Head, HeadProblem, refit, warn_of_missing_classes

__all__ = ["at_head", "predicted_influence", "solve_s_val"]


def solve_s_val(
    train: HeadBatch,
    val: HeadBatch,
    layer: nn.Linear,
    config: InfluenceConfig,
    *,
    sharded: bool = False,
    on_event: OnEvent | None = None,
) -> tuple[HeadProblem, Solution]:
    """The head, refitted if asked for, and s_val at it.

    Args:
        train: of all training images, features (N, D); its logits are not used.
        val: of all hyper-validation images; likewise.
        layer: the head as found; not changed.
        config: settings.
        sharded: `train` and `val` are one process's parts; all processes get the same result.
        on_event: gets the events of :func:`refit`.

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
    warn_of_missing_classes(val.labels, len(problem.weight), sharded)
    gradient = replace(problem, features=val.features, labels=val.labels, label_smoothing=0, weight_decay=0).gradient()
    solution = solve(problem, gradient, relative_damping(problem, config.damping), config.solver)
    if not config.refit_head:
        check_stationary(problem, solution.value)
    return problem, solution


def predicted_influence(
    tap: HeadTap, head: Head, ihvp: Tensor, images: Tensor, augmented: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`influence_aug` of images, and the logits of the user's model on the augmented ones.

    Args:
        tap: open, on the borrowed model.
        head: whose weights give the logits of the influence; a refitted copy, or the model's own.
        ihvp: s_val, (K, D + 1), computed for `head`.
        images: originals, (B, C, H, W).
        augmented: their copies, (B, C, H, W).
        labels: (B,).

    Returns:
        Influence (B,), negative is good, and logits (B, K); both differentiable through `augmented`.
    """
    with torch.no_grad():
        orig = at_head(head, tap(images)[0], labels)
    features, logits = tap(augmented)
    return influence_aug(ihvp, at_head(head, features, labels), orig, head.label_smoothing), logits


def at_head(head: Head, features: Tensor, labels: Tensor) -> HeadBatch:
    """What a head, as a refitted copy, sees of features (B, D); in their dtype."""
    bias = None if head.bias is None else head.bias.to(features.dtype)
    return HeadBatch(features, F.linear(features, head.weight.to(features.dtype), bias), labels)
