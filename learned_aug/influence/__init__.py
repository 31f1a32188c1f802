"""The influence engine: what a training image does to the validation loss, through a classifier's last Linear.

It is useful without any augmenter: open a :class:`HeadTap` on a model, :func:`collect` the features of its data, make
a :class:`HeadProblem` of them, :func:`refit` the head, :func:`solve` for s_val, and read :func:`influence_up` of any
image.
"""

from learned_aug.influence.head import HeadBatch, HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.problem import Head, HeadProblem
from learned_aug.influence.refit import RefitResult, refit
from learned_aug.influence.s_val import InfluenceConfig, predicted_influence, solve_s_val
from learned_aug.influence.scores import (
    Stationarity,
    check_stationary,
    influence_aug,
    influence_up,
    predicted_val_drop,
)
from learned_aug.influence.solvers import CG, BlockDiagonal, Direct, LiSSA, PlainGradient, Solver, solve
from learned_aug.influence.system import ConvergenceError, Solution, relative_damping

__all__ = [
    "CG",
    "BlockDiagonal",
    "ConvergenceError",
    "Direct",
    "Head",
    "HeadBatch",
    "HeadProblem",
    "HeadTap",
    "InfluenceConfig",
    "LiSSA",
    "PlainGradient",
    "RefitResult",
    "Solution",
    "Solver",
    "Stationarity",
    "borrowed",
    "check_stationary",
    "collect",
    "find_head",
    "influence_aug",
    "influence_up",
    "predicted_influence",
    "predicted_val_drop",
    "refit",
    "relative_damping",
    "solve",
    "solve_s_val",
]
