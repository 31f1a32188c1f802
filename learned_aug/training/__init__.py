"""Training a classifier with augmented images: draws that follow it, a training loop, and paired comparisons."""

from learned_aug.training.arms import ARMS, each
from learned_aug.training.choice import DrawChoice
from learned_aug.training.compare import compare
from learned_aug.training.comparison import Comparison, Difference, Training
from learned_aug.training.curves import StrengthCurves, strength_curves
from learned_aug.training.retrain import RetrainConfig, evaluate, retrain
from learned_aug.training.steer import UNSTEERED, SteeredDraws

__all__ = [
    "ARMS",
    "UNSTEERED",
    "Comparison",
    "Difference",
    "DrawChoice",
    "RetrainConfig",
    "SteeredDraws",
    "StrengthCurves",
    "Training",
    "compare",
    "each",
    "evaluate",
    "retrain",
    "strength_curves",
]
