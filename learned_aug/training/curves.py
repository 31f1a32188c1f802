"""Strength curves: how strong may each family of changes be for these data and this classifier?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.config import FAMILIES
from learned_aug.fit.judge import Estimate, deal, estimate
from learned_aug.fit.prior import prior
from learned_aug.influence.head import HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head, placement
from learned_aug.influence.s_val import InfluenceConfig, solve_s_val
from learned_aug.influence.scores import influence_aug
from learned_aug.runtime.checks import check_range
from learned_aug.runtime.data import Data
from learned_aug.runtime.numbers import check_count, check_seed, numbers
from learned_aug.runtime.overlap import check_disjoint
from learned_aug.runtime.rng import generator
from learned_aug.runtime.stream import Stream, check_alike
from learned_aug.viz import strength_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["StrengthCurves", "strength_curves"]

LEVELS = (0.25, 0.5, 0.75, 1.0, 1.5)


@dataclass(frozen=True)
class StrengthCurves:
    """What :func:`strength_curves` measured.

    Attributes:
        strengths: by family, the strengths tried, shares of the image side or of the range [0, 1].
        drops: by family, for each strength the predicted fall of the validation loss if all training images were
            replaced by draws of that family alone, at that strength; nats, positive is good, with a 95 % interval over
            images and validation images. It is a linear prediction at the head: its sign and order mean more than its
            size.
    """

    strengths: dict[str, list[float]]
    drops: dict[str, list[Estimate]]

    @property
    def warnings(self) -> dict[str, float]:
        """By family, the least strength from which on the predicted loss rises with 95 % confidence, where there is."""
        found = {}
        for family, drops in self.drops.items():
            harmful = [s for s, d in zip(self.strengths[family], drops, strict=True) if d.sign < 0]
            if harmful:
                found[family] = min(harmful)
        return found

    @property
    def verdict(self) -> str:
        """What the curves say, in one sentence."""
        if self.warnings:
            parts = [f"{family} of {strength:.3g} and more" for family, strength in self.warnings.items()]
            return f"{' and '.join(parts)} is predicted to raise the validation loss here."
        if not any(drop.sign for drops in self.drops.values() for drop in drops):
            return "No evidence: every interval contains 0; more validation images make them narrower."
        return "No strength that was tried is predicted to raise the validation loss."

    def figure(self) -> Figure:
        """Draw the curves, one panel for each family.

        Raises:
            ImportError: without matplotlib, the extra "viz".
        """
        return strength_panels(self.strengths, self.drops, self.verdict)

    def __str__(self) -> str:
        """A table: family, strength and predicted fall of the validation loss, nats, with its interval."""
        lines = ["family    strength   predicted fall of the validation loss, nats (95 % interval)"]
        for family, drops in self.drops.items():
            for strength, (mean, margin) in zip(self.strengths[family], drops, strict=True):
                lines.append(f"{family:9} {strength:8.4f}   {mean:+8.4f} [{mean - margin:+.4f}, {mean + margin:+.4f}]")
        return "\n".join([*lines, self.verdict])


@torch.no_grad()
def strength_curves(
    model: nn.Module,
    train: Data,
    val: Data,
    augmenter: Augmenter | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    images: int = 512,
    config: InfluenceConfig | None = None,
    head: str | None = None,
    seed: int = 0,
) -> StrengthCurves:
    """Predict what each family of changes does to the validation loss, by its strength.

    The influence (Eq. 18) of draws of one family alone is averaged over images, for some strengths. The influence of a
    single draw is mostly noise; the mean over hundreds is not. A curve is advice: it changes no range.

    Args:
        model: a trained classifier with a Linear head; it comes back as it was.
        train: (image, label) pairs without augmentation, as :func:`learned_aug.fit` takes them.
        val: the hyper-validation set, likewise.
        augmenter: the networks to draw from; by default those of :func:`learned_aug.prior`.
        levels: strengths to try, in units of the upper end of the family's range, positive.
        images: training images, at most, that are drawn for.
        config: settings of s_val.
        head: name of the last Linear, by default the last one registered.
        seed: of the choice of images and of the draws.

    Raises:
        ValueError: if a level is not positive, the augmenter's weights are of version 1 or for images of another
            normalization, or data do not fit.
    """
    if not (values := numbers(levels)) or not all(0 < level < math.inf for level in values):
        raise ValueError(f"levels must be positive finite numbers, got {levels!r}; leave them out for {LEVELS}")
    check_count("images", images, 1)
    if augmenter is not None and augmenter.config.version == 1:
        raise ValueError("augmenter must have strengths by family, got weights of version 1; use learned_aug.prior")
    check_disjoint(train=train, val=val)
    check_alike(train=train, val=val)
    config, seed = config if config is not None else InfluenceConfig(), check_seed(seed)
    tap = HeadTap(model, find_head(model, head))
    device, dtype = placement(model)
    with borrowed(model), tap:

        def stream(data: Data, name: str, *, shuffle: bool = False) -> Stream:
            return Stream(data, name, "curves", seed=seed, batch_size=64, device=device, dtype=dtype, shuffle=shuffle)

        seen = collect(tap, stream(train, "train").once())
        folds = deal(collect(tap, stream(val, "val").once()))
        free, solution = solve_s_val(seen, folds[0], tap.head, config, also=folds[1:])
        s_val = solution.value if len(folds) > 1 else solution.value[None]
        source = generator(seed, "strength curves", 0)
        parts: dict[tuple[str, float], list[Tensor]] = {}
        done = 0
        for batch, labels in stream(train, "train", shuffle=True).once():
            if augmenter is None:
                augmenter = prior(batch, seed=seed)
            elif not done:
                check_range(batch, augmenter.config.mean, augmenter.config.std)
            batch, labels = batch[: images - done], labels[: images - done]
            masks = augmenter.trace(batch, augmenter.draw_noise(len(batch), generator=source, device=device)).masks
            original = free(tap(batch)[0].to(s_val.dtype), labels)
            for k, (family, top) in enumerate(_tops(augmenter).items()):
                for level in values if top else ():
                    strengths = torch.zeros(len(batch), len(FAMILIES), device=device)
                    strengths[:, k] = level * top
                    drawn = augmenter.trace(batch, masks=masks, strengths=strengths).draw.apply(batch)
                    changed = free(tap(drawn)[0].to(s_val.dtype), labels)
                    influence = influence_aug(s_val, changed, original, free.label_smoothing)
                    parts.setdefault((family, level * top), []).append(-influence)
            done += len(batch)
            if done >= images:
                break
    curves = StrengthCurves({}, {})
    for (family, strength), drops in parts.items():
        curves.strengths.setdefault(family, []).append(strength)
        curves.drops.setdefault(family, []).append(estimate(torch.cat(drops, 1).double()))
    return curves


def _tops(augmenter: Augmenter) -> dict[str, float]:
    """The upper end of each family's range."""
    values = zip(FAMILIES, augmenter.config.strengths, strict=True)
    return {family: float(max(s) if isinstance(s, tuple) else s or 0.0) for family, s in values}
