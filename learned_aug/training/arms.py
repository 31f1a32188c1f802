"""Ready-made arms of a comparison: what people would pick, each as its authors use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from learned_aug.augmenter import Augmenter
from learned_aug.config import AugmenterConfig
from learned_aug.fit.config import FitConfig
from learned_aug.fit.pipeline import fit
from learned_aug.runtime.data import Data, as_pair
from learned_aug.runtime.numbers import numbers
from learned_aug.training.augment import Augment, Chain, Cutout, Mixing, batched, each
from learned_aug.training.choice import DrawChoice
from learned_aug.training.described import described
from learned_aug.training.retrain import RetrainConfig, retrain
from learned_aug.training.steer import UNSTEERED, SteeredDraws
from learned_aug.transform import LearnedAugment

__all__ = ["ARMS", "CONTROL", "READS_VAL", "Arm", "Setting", "build", "describe", "each", "reads_val"]

SMALL = 64  # pixels; larger images get the policy that AutoAugment found on ImageNet


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a ready-made arm is built for."""

    model: nn.Module
    """The fresh classifier that will be trained."""
    make_model: Callable[[], nn.Module]
    """Gives further ones."""
    train: Data
    """Training data, without augmentation."""
    val: Data | None = None
    """The hyper-validation set, for the arms that read one."""
    config: RetrainConfig | None = None
    """The schedule of the trainings."""
    baseline: Callable[[Tensor], Tensor] | None = None
    """Augmentation of single images in all arms."""
    mean: float | Sequence[float] | None = None
    """Mean of the images' normalization; None for [0, 1]."""
    std: float | Sequence[float] | None = None
    """Standard deviation of that normalization."""
    seed: int = 0
    """Seed of the arm's own draws."""


Arm = str | Augmenter | nn.Module | Callable[..., Augment | None] | None
"""None, an Augmenter, a transform, a ready-made arm's name, or a function from the fresh classifier to what `retrain`
takes as `augment`; it gets the training's seed as well where it is a class with a parameter `seed`, or has such a one
without a default. A LearnedAugment is drawn for each image at its own p and strength."""


def _steered(setting: Setting, **options: Any) -> SteeredDraws:
    return SteeredDraws(setting.model, mean=setting.mean, std=setting.std, seed=setting.seed, **options)


def _drawn(setting: Setting, networks: Augmenter, **options: float) -> SteeredDraws:
    """Draw from given networks, whose normalization must be that of the images, without steering."""
    mean, std = (0.0 if setting.mean is None else setting.mean, 1.0 if setting.std is None else setting.std)
    settings = {**UNSTEERED, **options}
    return SteeredDraws(setting.model, augmenter=networks, mean=mean, std=std, seed=setting.seed, **settings)


def _policy(make: Callable[[], Any]) -> Callable[[Setting], Augment]:
    return lambda setting: each(make(), mean=setting.mean, std=setting.std)


def _auto_augment(setting: Setting) -> Augment:
    """AutoAugment's policy for images of this size."""
    small = max(_image(setting).shape[-2:]) <= SMALL
    policy = v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET
    return each(v2.AutoAugment(policy), mean=setting.mean, std=setting.std)


def _steered_influence(setting: Setting) -> SteeredDraws:
    return _steered(setting, by="influence", train=setting.train, val=setting.val)


def _chosen_influence(setting: Setting) -> DrawChoice:
    """The better by influence of two draws, each of our prior or of TrivialAugmentWide."""
    sources = {"prior": _steered(setting, **{**UNSTEERED, "share": 1.0}), "TrivialAugmentWide": v2.TrivialAugmentWide()}
    return DrawChoice(
        setting.model,
        sources,
        train=setting.train,
        val=setting.val,
        mean=setting.mean,
        std=setting.std,
        seed=setting.seed,
    )


def _fitted(setting: Setting) -> SteeredDraws:
    """Train a classifier, and fit an augmenter to it."""
    model = setting.make_model()
    retrain(model, setting.train, setting.config, baseline=setting.baseline, seed=setting.seed)
    networks = None
    if setting.mean is not None or setting.std is not None:
        image = _image(setting)
        mean, std = (numbers(v, x) for v, x in ((setting.mean, 0.0), (setting.std, 1.0)))
        networks = AugmenterConfig(channels=image.shape[0], size=max(image.shape[-2:]), mean=mean, std=std)
    val = setting.val
    assert val is not None  # compare sees to that
    config = FitConfig(seed=setting.seed)
    result = fit(
        model, setting.train, val, config=config, baseline=setting.baseline, augmenter=networks, progress=False
    )
    return _steered(setting, augmenter=result.augmenter, **UNSTEERED)


ARMS: dict[str, Callable[[Setting], Augment | None]] = {
    "baseline": lambda setting: None,
    "TrivialAugmentWide": _policy(v2.TrivialAugmentWide),
    "RandAugment": _policy(v2.RandAugment),
    "AutoAugment": _auto_augment,
    "AugMix": _policy(v2.AugMix),
    "Cutout": lambda setting: Cutout(),
    "Mixup": lambda setting: Mixing(setting.model, v2.MixUp),
    "CutMix": lambda setting: Mixing(setting.model, v2.CutMix, p=0.5),
    "prior": lambda setting: _steered(setting, **UNSTEERED),
    "steered": _steered,
    "steered-influence": _steered_influence,
    "chosen-influence": _chosen_influence,
    "fitted": _fitted,
}
"""Ready-made arms. Policies and Cutout work on every image, each with its own draw; ours on half of each batch; Mixup
(alpha 1) on every batch and CutMix (alpha 1) on every second, as their authors do on CIFAR-10. AutoAugment is its
policy of CIFAR-10 for images of up to 64 pixels, that of ImageNet above; AugMix is without its consistency loss."""

READS_VAL = ("steered-influence", "chosen-influence", "fitted")
CONTROL = "steered, train + val"
"""What the labels of `val` would be worth as training labels: steered draws, which read no further label."""


def reads_val(arm: object) -> bool:
    """Whether an arm goes by a name of which a part reads the hyper-validation set."""
    return isinstance(arm, str) and any(part in READS_VAL for part in _names(arm))


def build(arm: Arm, setting: Setting) -> Augment | None:
    """Make the augmentation of an arm for a fresh classifier.

    Args:
        arm: see :data:`Arm`; names may be joined as "A+B", A first.
        setting: what it is built for.

    Returns:
        What :func:`retrain` takes as `augment`.

    Raises:
        ValueError: for an unknown name, with the list.
    """
    if isinstance(arm, str):
        made = [ARMS[name](setting) for name in _names(arm)]
        stages = [stage for stage in made if stage is not None]
        return Chain(*stages) if len(stages) > 1 else stages[0] if stages else None
    if isinstance(arm, Augmenter):
        return _drawn(setting, arm)
    if isinstance(arm, LearnedAugment):
        return _drawn(setting, arm.augmenter, share=arm.p, strength=arm.strength)
    if arm is None or isinstance(arm, nn.Module) or type(arm).__module__.startswith("torchvision.transforms"):
        return None if arm is None else batched(arm, mean=setting.mean, std=setting.std)
    if isinstance(arm, (SteeredDraws, DrawChoice)):
        raise ValueError(
            f"an arm must be a function that makes a {type(arm).__name__} for each fresh classifier, got one that is "
            f"made; give lambda model: {type(arm).__name__}(model)"
        )
    make: Any = arm
    if not callable(make) or (isinstance(make, type) and issubclass(make, nn.Module)):
        got = f"the class {make.__name__}, make one" if isinstance(make, type) else type(make).__name__
        raise ValueError(
            f"an arm must be None, an Augmenter, a transform, a name, or a function of the classifier, got {got}; "
            f"known names are {', '.join(ARMS)}"
        )
    try:
        given = make(setting.model, seed=setting.seed) if _takes_seed(make) else make(setting.model)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"an arm's function gets the fresh classifier and gives the augmentation, {described(arm)} failed on it "
            f"({error}); give a function of batches as lambda model: function"
        ) from error
    return None if given is None else batched(given, mean=setting.mean, std=setting.std)


def _takes_seed(make: Callable[..., Any]) -> bool:
    """Tell whether an arm is a class, or a function without a default, that has a parameter `seed` which none bound."""
    inner: Any = make
    while isinstance(inner, partial):
        if "seed" in inner.keywords:
            return False
        inner = inner.func
    try:
        seed = inspect.signature(make).parameters.get("seed")
    except (TypeError, ValueError):  # of functions that are not Python's
        return False
    if seed is None or seed.kind is seed.POSITIONAL_ONLY:
        return False
    return isinstance(inner, type) or seed.default is seed.empty


def describe(arm: Arm) -> str:
    """Say in a few words what an arm is, to notice in a checkpoint that it is another one.

    Raises:
        ValueError: for an unknown name, with the list.
    """
    if arm is None or isinstance(arm, str):
        return "+".join(_names(arm or "baseline"))
    return described(arm)


def _names(arm: str) -> list[str]:
    names = [name.strip() for name in arm.split("+")]
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(
            f"arms must be of {', '.join(ARMS)}, or several joined by +, got {', '.join(map(repr, unknown))}; give "
            "others as a mapping from a name to the augmentation"
        )
    return names


def _image(setting: Setting) -> Tensor:
    """Return an image of the training data, (C, H, W)."""
    data = setting.train
    source = as_pair(next(iter(data)), "train")[0] if isinstance(data, DataLoader) else [as_pair(data[0], "train")[0]]
    return torch.as_tensor(source[0])
