"""fit(): an augmenter fitted to a classifier, stage by stage, with its settings and results."""

from learned_aug.fit.checkpoint import CheckpointError
from learned_aug.fit.config import FitConfig
from learned_aug.fit.diagnostics import effective_rank, measure
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.fit.pipeline import FitResult, fit
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.fit.prior import prior
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.events import Event, OnEvent, ProgressBars

__all__ = [
    "CheckpointError",
    "DropoutConfig",
    "Event",
    "FitConfig",
    "FitResult",
    "InfluenceConfig",
    "LinearConfig",
    "OnEvent",
    "PretrainConfig",
    "ProgressBars",
    "effective_rank",
    "fit",
    "measure",
    "prior",
]
