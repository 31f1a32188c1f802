"""Settings of a fit: one frozen dataclass per stage, FitConfig over them.

"Paper" marks what the paper states; it gives no learning rates, batch sizes or step counts, so the rest are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from learned_aug.fit.ihvp import Solver

__all__ = ["FitConfig", "InfluenceConfig", "MaximizeConfig", "PretrainConfig", "RetrainConfig"]


def _check_at_least(config: object, **bounds: float) -> None:
    for name, low in bounds.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= low):
            raise ValueError(f"{type(config).__name__}.{name} must be a finite number >= {low}, got {value}")
        if name in ("steps", "batch_size") and not isinstance(value, int):
            raise ValueError(f"{type(config).__name__}.{name} must be an integer, got {value!r}")


def _check_at_most_one(config: object, *names: str) -> None:
    for name in names:
        if (value := getattr(config, name)) > 1:
            raise ValueError(f"{type(config).__name__}.{name} must be in [0, 1], got {value}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stage 1: G learns to mimic the baseline augmentation by a relativistic average GAN (paper)."""

    steps: int = 300
    batch_size: int = 64
    lr: float = 1e-4  # Adam, E and G; at 1e-3 G collapses to one warp
    lr_image: float = 1e-4  # Adam, image discriminator
    lr_feature: float = 1e-3  # Adam, feature discriminator, one Linear: slower, and G runs ahead of it
    feature_weight: float = 1.0  # of the feature-space loss beside the image-space loss (paper: both, weight unstated)
    diversity_weight: float = 1.0  # of the terms that keep draws apart and without a shared change
    growth: float = 0.0  # share of the steps in which fields="pixel" grow from 4x4 points (paper: so, for ImageNet)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_at_least(self, steps=0, batch_size=2, feature_weight=0, diversity_weight=0)
        _check_at_least(self, lr=0, lr_image=0, lr_feature=0, growth=0)
        _check_at_most_one(self, "growth")


@dataclass(frozen=True, kw_only=True)
class InfluenceConfig:
    """Stage 2: the head, its Hessian and the inverse-Hessian-vector product of the validation gradient."""

    refit_head: bool = True  # bring a copy of the head to stationarity first, which Eq. 9 assumes
    # Of the head's loss, in units of the mean square of a feature. Without any, separable features have no optimum, and
    # with little the predictions are far from refits: ours, measured in benchmarks/influence/validity.py.
    weight_decay: float = 0.03
    damping: float = 0.0  # beyond the weight decay, in units of the Hessian's mean eigenvalue; costs accuracy there
    solver: Solver | Literal["auto"] = "auto"
    label_smoothing: float = 0.0  # of the loss that the model is trained with
    # Of the cached features; None as the model gives them. float16 halves the memory, and moved s_val by 4e-4 of its
    # length in benchmarks/fit/memory.py; bfloat16, for features beyond 65,504, by 3e-3.
    cache_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_at_least(self, weight_decay=0, damping=0, label_smoothing=0)
        _check_at_most_one(self, "label_smoothing")
        if self.solver != "auto" and not isinstance(self.solver, Solver):
            raise ValueError(f'InfluenceConfig.solver must be "auto" or a solver such as CG(), got {self.solver!r}')
        if self.cache_dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"InfluenceConfig.cache_dtype must be a floating dtype or None, got {self.cache_dtype!r}")


@dataclass(frozen=True, kw_only=True)
class MaximizeConfig:
    """Stage 3: what follows the influence.

    "dropout" (ours): E learns, for each image, which units of tau to keep; see :func:`learn_dropout`. "linear" (paper):
    E and G move along the influence. That is linear in the distribution of the augmented images, so its optimum is a
    single warp for all draws; on MNIST it destroyed the labels.
    """

    objective: Literal["dropout", "linear"] = "dropout"
    steps: int = 600
    batch_size: int = 64
    lr: float | None = (
        None  # Adam, the peak; None is 5e-3 for "dropout", 2e-4 for "linear"; 0, a control, learns nothing
    )
    tilt: float = 3.0  # of "dropout": root mean square of the logits, were all draws of an image to agree on them
    clip: float = 1.0  # of "linear": gradient norm

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.objective not in ("dropout", "linear"):
            raise ValueError(f'MaximizeConfig.objective must be "dropout" or "linear", got {self.objective!r}')
        _check_at_least(self, steps=0, batch_size=2, tilt=1e-6, clip=1e-12)
        if self.lr is not None:
            _check_at_least(self, lr=0)

    @property
    def rate(self) -> float:
        """`lr`, or its default."""
        if self.lr is not None:
            return self.lr
        return 5e-3 if self.objective == "dropout" else 2e-4


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Stage 4: training a classifier on augmented batches."""

    steps: int = 1200
    batch_size: int = 50
    lr: float = 0.05  # the peak: it rises for a tenth of the steps, then falls as a cosine to 0
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    mix: float = 0.5  # share of each batch that is augmented; all of it was worse on MNIST

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_at_least(self, steps=1, batch_size=1, lr=0, momentum=0, weight_decay=0, label_smoothing=0, mix=0)
        _check_at_most_one(self, "label_smoothing", "mix")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of :func:`learned_aug.fit`, one part for each stage.

    The strength of the start matters most. The default is a middle one: with few labels three pixels did better on
    MNIST, and .2 of colour, which is vivid and which dark images cannot reach, on CIFAR-10.
    :func:`learned_aug.fit.compare` shows what does on your data.
    """

    spread_pixels: float = 2.0  # start: mean distance of two draws' flows, in 1/32 of the image side
    spread_color: float = 0.1  # start: mean distance of two draws' colours, in the range [0, 1]
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    influence: InfluenceConfig = field(default_factory=InfluenceConfig)
    maximize: MaximizeConfig = field(default_factory=MaximizeConfig)
    batch_size: int = 256  # of passes that only read features
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_at_least(self, spread_pixels=1e-6, spread_color=1e-6, batch_size=2)
        for name, kind in (("pretrain", PretrainConfig), ("influence", InfluenceConfig), ("maximize", MaximizeConfig)):
            if not isinstance(part := getattr(self, name), kind):
                raise TypeError(f"FitConfig.{name} must be of type {kind.__name__}, got {type(part).__name__}")
