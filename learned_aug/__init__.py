"""A learned augmentation network for your own classifier."""

from learned_aug.augmenter import Augmented, Augmenter
from learned_aug.card import CardFacts, CardResult
from learned_aug.fit.pipeline import FitResult, fit
from learned_aug.nets import AugmenterConfig
from learned_aug.registry import list_pretrained
from learned_aug.transform import LearnedAugment
from learned_aug.weights import WeightsError

__all__ = [
    "Augmented",
    "Augmenter",
    "AugmenterConfig",
    "CardFacts",
    "CardResult",
    "FitResult",
    "LearnedAugment",
    "WeightsError",
    "fit",
    "list_pretrained",
]
