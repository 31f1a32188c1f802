"""Random image augmentations that need no search, steered by your classifier while it trains."""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learned_aug.augmenter import Augmenter
    from learned_aug.config import AugmenterConfig
    from learned_aug.dataset import AugmentedDataset
    from learned_aug.fit import DropoutConfig, FitConfig, FitResult, LinearConfig, PretrainConfig, fit, prior
    from learned_aug.fit.checkpoint import CheckpointError
    from learned_aug.influence import ConvergenceError, InfluenceConfig
    from learned_aug.training import Comparison, DrawChoice, RetrainConfig, SteeredDraws, compare, evaluate, retrain
    from learned_aug.transform import LearnedAugment
    from learned_aug.weights import CardFacts, CardResult, WeightsError, list_pretrained

__version__ = "0.2.0.dev0"

__all__ = [
    "AugmentedDataset",
    "Augmenter",
    "AugmenterConfig",
    "CardFacts",
    "CardResult",
    "CheckpointError",
    "Comparison",
    "ConvergenceError",
    "DrawChoice",
    "DropoutConfig",
    "FitConfig",
    "FitResult",
    "InfluenceConfig",
    "LearnedAugment",
    "LinearConfig",
    "PretrainConfig",
    "RetrainConfig",
    "SteeredDraws",
    "WeightsError",
    "__version__",
    "compare",
    "evaluate",
    "fit",
    "list_pretrained",
    "prior",
    "retrain",
]

# Names are imported when they are first used, so that `learned-aug --help` need not wait for torchvision.
_HOMES = {
    "augmenter": ["Augmenter"],
    "fit": [
        "DropoutConfig",
        "FitConfig",
        "FitResult",
        "LinearConfig",
        "PretrainConfig",
        "CheckpointError",
        "fit",
        "prior",
    ],
    "influence": ["ConvergenceError", "InfluenceConfig"],
    "config": ["AugmenterConfig"],
    "dataset": ["AugmentedDataset"],
    "training": ["Comparison", "DrawChoice", "RetrainConfig", "SteeredDraws", "compare", "evaluate", "retrain"],
    "transform": ["LearnedAugment"],
    "weights": ["CardFacts", "CardResult", "WeightsError", "list_pretrained"],
}
_SUBMODULES = {"functional", "influence", "training", "viz"}


def __getattr__(name: str) -> Any:
    """Import a public name, or one of the public submodules.

    Raises:
        AttributeError: for any other name.
    """
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"learned_aug.{home}"), name)
            break
    else:
        if name not in _SUBMODULES:
            raise AttributeError(f"module 'learned_aug' has no attribute {name!r}; it has {', '.join(__all__)}")
        value = importlib.import_module(f"learned_aug.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_SUBMODULES]


class _Package(types.ModuleType):
    """Keeps `learned_aug.fit` the function where importing the subpackage of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "fit" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
