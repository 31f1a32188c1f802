"""Fitting an augmenter to a classifier: the stages, their settings and their results."""

from learned_aug.fit.config import FitConfig, InfluenceConfig, MaximizeConfig, PretrainConfig, RetrainConfig
from learned_aug.fit.diagnostics import effective_rank, measure
from learned_aug.fit.events import Event, OnEvent, ProgressBars
from learned_aug.fit.gan import pretrain, ragan_d_loss, ragan_g_loss
from learned_aug.fit.maximize import maximize
from learned_aug.fit.pipeline import FitResult, fit
from learned_aug.fit.retrain import evaluate, retrain

__all__ = [
    "Event",
    "FitConfig",
    "FitResult",
    "InfluenceConfig",
    "MaximizeConfig",
    "OnEvent",
    "PretrainConfig",
    "ProgressBars",
    "RetrainConfig",
    "effective_rank",
    "evaluate",
    "fit",
    "maximize",
    "measure",
    "pretrain",
    "ragan_d_loss",
    "ragan_g_loss",
    "retrain",
]
