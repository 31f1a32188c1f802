"""Fitting an augmenter to a classifier: the stages, their settings and their results."""

from learned_aug.fit.checkpoint import CheckpointError
from learned_aug.fit.choose import DrawChoice, SteeredDraws
from learned_aug.fit.compare import Comparison, compare
from learned_aug.fit.config import (
    FitConfig,
    InfluenceConfig,
    MaximizeConfig,
    PretrainConfig,
    RetrainConfig,
)
from learned_aug.fit.diagnostics import effective_rank, measure
from learned_aug.fit.dropout import learn_dropout
from learned_aug.fit.events import Event, OnEvent, ProgressBars
from learned_aug.fit.gan import pretrain, ragan_d_loss, ragan_g_loss
from learned_aug.fit.head import HeadBatch, HeadTap, borrowed, collect, find_head
from learned_aug.fit.ihvp import (
    CG,
    BlockDiagonal,
    ConvergenceError,
    Direct,
    LiSSA,
    PlainGradient,
    Solution,
    Solver,
    relative_damping,
    solve,
)
from learned_aug.fit.influence import (
    Stationarity,
    check_stationary,
    influence_aug,
    influence_up,
    influence_up_params,
    predicted_val_drop,
)
from learned_aug.fit.maximize import maximize
from learned_aug.fit.pipeline import FitResult, fit
from learned_aug.fit.problem import Head, HeadProblem, RefitResult, mean_gradient, refit
from learned_aug.fit.retrain import evaluate, retrain
from learned_aug.fit.s_val import predicted_influence, solve_s_val

__all__ = [
    "CG",
    "BlockDiagonal",
    "CheckpointError",
    "Comparison",
    "ConvergenceError",
    "Direct",
    "DrawChoice",
    "Event",
    "FitConfig",
    "FitResult",
    "Head",
    "HeadBatch",
    "HeadProblem",
    "HeadTap",
    "InfluenceConfig",
    "LiSSA",
    "MaximizeConfig",
    "OnEvent",
    "PlainGradient",
    "PretrainConfig",
    "ProgressBars",
    "RefitResult",
    "RetrainConfig",
    "Solution",
    "Solver",
    "Stationarity",
    "SteeredDraws",
    "borrowed",
    "check_stationary",
    "collect",
    "compare",
    "effective_rank",
    "evaluate",
    "find_head",
    "fit",
    "influence_aug",
    "influence_up",
    "influence_up_params",
    "learn_dropout",
    "maximize",
    "mean_gradient",
    "measure",
    "predicted_influence",
    "predicted_val_drop",
    "pretrain",
    "ragan_d_loss",
    "ragan_g_loss",
    "refit",
    "relative_damping",
    "retrain",
    "solve",
    "solve_s_val",
]
