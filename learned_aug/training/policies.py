"""What was chosen among draws, down to a policy's operations, and the plain transform that draws accordingly."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from learned_aug.augmenter import Augmenter
from learned_aug.training.augment import Augment
from learned_aug.training.steer import SteeredDraws
from learned_aug.transform import LearnedAugment
from learned_aug.viz import interval_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Recorder", "Tally", "WeightedRandAugment", "WeightedTrivialAugment"]

POLICIES = (v2.TrivialAugmentWide, v2.RandAugment)
LEVELS = ("low", "middle", "high")
DOUBT = 10.0  # candidates of each operation that are counted before the first: few choices move little
Operation = tuple[str, float]


class Recorder:
    """Draws from TrivialAugmentWide or RandAugment, and notes the operations and magnitudes of each image.

    Args:
        policy: one of torchvision's v2 transforms; it is left as it is.
    """

    def __init__(self, policy: Any) -> None:
        self._given = policy
        self.policy = copy.copy(policy)
        self.space: dict[str, Any] = policy._AUGMENTATION_SPACE
        self.bins: int = policy.num_magnitude_bins
        self._images: list[list[tuple[str, str]]] = []
        self._side = (0, 0)
        apply = policy._apply_image_or_video_transform

        def noted(image: Any, transform_id: str, magnitude: float, **options: Any) -> Any:
            self._images[-1].append((transform_id, self._level(transform_id, magnitude)))
            return apply(image, transform_id, magnitude, **options)

        # On the instance, where it hides the method of the class, in all of torchvision's releases from 0.21 on.
        object.__setattr__(self.policy, "_apply_image_or_video_transform", noted)

    def __call__(self, image: Tensor) -> Tensor:
        """Return an augmented copy of an image (C, H, W), uint8."""
        self._images.append([])
        self._side = (image.shape[-2], image.shape[-1])
        drawn: Tensor = self.policy(image)
        return drawn

    def __reduce__(self) -> tuple[type[Recorder], tuple[Any]]:
        """Copy and pickle it as one of the same policy, for what is on the instance would note to this one."""
        return Recorder, (self._given,)

    @staticmethod
    def fits(source: object) -> bool:
        """Whether a source is a policy whose operations can be noted."""
        return type(source) in POLICIES

    def take(self, count: int) -> list[tuple[tuple[str, str], ...]]:
        """Return operation and level of the magnitude for each of the last `count` images, and forget them."""
        taken, self._images = self._images[-count:], []
        return [tuple(image) for image in taken]

    def _level(self, name: str, magnitude: float) -> str:
        """Return the third of its range that a magnitude lies in; "" for operations that have none."""
        magnitudes = self.space[name][0](self.bins, *self._side)
        if magnitudes is None:
            return ""
        nearest = int((torch.as_tensor(magnitudes, device="cpu").double().abs() - abs(magnitude)).abs().argmin())
        return LEVELS[min(2, 3 * nearest // len(magnitudes))]


class Tally:
    """How often each source was offered and chosen: by class, over time, and by a policy's operations.

    Args:
        sources: names.
        every: calls that make a point of the curve.

    Attributes:
        offered: (source, class) to candidates; the class is -1 where labels have none, as with several per image.
        chosen: (source, class) to images.
        curve: source to its share of the images chosen, for each point in time.
        operations: (source, operation, level of its magnitude) to (offered, chosen).
    """

    def __init__(self, sources: list[str], every: int) -> None:
        self.sources, self.every = sources, every
        self.offered: Counter[tuple[str, int]] = Counter()
        self.chosen: Counter[tuple[str, int]] = Counter()
        self.operations: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._times: list[Counter[str]] = []

    def add(self, call: int, source: Tensor, chosen: Tensor, classes: Tensor, operations: list[Any]) -> None:
        """Count a batch: the source, class and operations of each candidate, and which ones were chosen."""
        if call % self.every == 0 or not self._times:
            self._times.append(Counter())
        taken = set(chosen.tolist())
        for place, (k, label) in enumerate(zip(source.tolist(), classes.tolist(), strict=True)):
            name = self.sources[k]
            self.offered[name, label] += 1
            if place in taken:
                self.chosen[name, label] += 1
                self._times[-1][name] += 1
            if operations[place]:
                for operation, level in operations[place][1]:
                    offers, choices = self.operations.get((name, operation, level), (0, 0))
                    self.operations[name, operation, level] = offers + 1, choices + (place in taken)

    @property
    def shares(self) -> dict[str, float]:
        """By source, its share of the images chosen."""
        total = max(1, self.chosen.total())
        return {name: sum(n for (s, _), n in self.chosen.items() if s == name) / total for name in self.sources}

    @property
    def curve(self) -> dict[str, list[float]]:
        """By source, its share of the images chosen in each stretch of `every` calls."""
        return {name: [time[name] / max(1, time.total()) for time in self._times] for name in self.sources}

    def rates(self) -> dict[str, tuple[int, float, float]]:
        """By source and operation: candidates offered, the share of them chosen, and half a 95 % interval of it."""
        counts: dict[str, tuple[int, int]] = {}
        for name in self.sources:
            counts[name] = (
                sum(n for (s, _), n in self.offered.items() if s == name),
                sum(n for (s, _), n in self.chosen.items() if s == name),
            )
        for (name, operation, _), (offers, choices) in self.operations.items():
            before = counts.get(f"{name}: {operation}", (0, 0))
            counts[f"{name}: {operation}"] = before[0] + offers, before[1] + choices
        out = {}
        for key, (offers, choices) in counts.items():
            share = choices / max(1, offers)
            out[key] = offers, share, 1.96 * (share * (1 - share) / max(1, offers)) ** 0.5
        return out

    def __str__(self) -> str:
        """A table: how often each source, and each operation of a policy, was offered and chosen."""
        rates = self.rates()
        width = max(map(len, rates))
        lines = [f"{'':{width}}   offered  chosen of these, %"]
        for name, (offers, share, margin) in rates.items():
            lines.append(f"{name:{width}}  {offers:8,}  {100 * share:5.1f} +- {100 * margin:.1f}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the share of their candidates that was chosen, by source and by operation of a policy.

        Raises:
            ImportError: without matplotlib, the extra "viz".
        """
        rates = self.rates()
        return interval_chart(
            {name: [100 * share] for name, (_, share, _) in rates.items()},
            {name: 100 * margin for name, (_, _, margin) in rates.items()},
            what="chosen of the candidates offered, %",
        )

    def transform(self, sources: Mapping[str, Augment | None], recorders: Mapping[str, Recorder]) -> nn.Module:
        """Return a transform for single images that draws each source as often as it was chosen.

        Raises:
            ValueError: if a source cannot be drawn without its batch, or no batch came yet.
        """
        if not self.chosen:
            raise ValueError("transform() must come after some batches, got none; call the choice on them first")
        weights = {name: self._weights(name) for name in recorders}
        made = [_plain(name, sources[name], weights.get(name)) for name in self.sources]
        if len(made) == 1:
            return made[0]
        out: nn.Module = v2.RandomChoice(made, p=list(self.shares.values()))
        return out

    def _weights(self, source: str) -> dict[str, dict[str, float]]:
        """By operation and level: the share of its candidates that were chosen, over that of all."""
        mine = {(op, level): n for (name, op, level), n in self.operations.items() if name == source}
        mean = sum(n[1] for n in mine.values()) / max(1, sum(n[0] for n in mine.values())) or 1.0
        weights: dict[str, dict[str, float]] = {}
        for (operation, level), (offers, choices) in mine.items():
            weights.setdefault(operation, {})[level] = (choices + DOUBT * mean) / (offers + DOUBT) / mean
        return weights


class _Weighted:
    """Draws a policy's operations and magnitudes by weights, in place of all equally."""

    weights: dict[str, dict[str, float]]

    def _get_random_item(self, dct: dict[str, Any]) -> tuple[str, Any]:
        names = list(dct)
        odds = torch.tensor([sum(w.values()) / len(w) if (w := self.weights.get(n)) else 1.0 for n in names])
        name = names[int(torch.multinomial(odds, 1))]
        magnitudes, signed = dct[name]
        levels = self.weights.get(name, {})

        def weighted(bins: int, height: int, width: int) -> Tensor | None:
            values: Tensor | None = magnitudes(bins, height, width)
            if values is None or len(levels) < 2:
                return values
            odds = torch.tensor([levels.get(LEVELS[min(2, 3 * k // len(values))], 1.0) for k in range(len(values))])
            picked: Tensor = values[torch.multinomial(odds, len(values), replacement=True)]
            return picked

        return name, (weighted, signed)


class WeightedTrivialAugment(_Weighted, v2.TrivialAugmentWide):  # type: ignore[misc]  # torchvision has no types
    """TrivialAugmentWide whose operations and magnitudes are drawn by weights.

    Args:
        weights: operation to level of magnitude ("low", "middle", "high", or "" for none) to weight; 1 is average.
    """

    def __init__(self, weights: dict[str, dict[str, float]], **options: Any) -> None:
        super().__init__(**options)
        self.weights = weights


class WeightedRandAugment(_Weighted, v2.RandAugment):  # type: ignore[misc]
    """RandAugment whose operations are drawn by weights; its magnitude is fixed.

    Args:
        weights: as those of :class:`WeightedTrivialAugment`.
    """

    def __init__(self, weights: dict[str, dict[str, float]], **options: Any) -> None:
        super().__init__(**options)
        self.weights = {name: {"": sum(w.values()) / len(w)} for name, w in weights.items()}


def _plain(name: str, source: Any, weights: dict[str, dict[str, float]] | None) -> nn.Module:
    """Return a source as a transform of single images.

    Raises:
        ValueError: if it cannot be one.
    """
    identity: nn.Module = v2.Identity()
    if isinstance(source, SteeredDraws):
        share, strength = source.share_and_strength
        return identity if source.augmenter is None else LearnedAugment(source.augmenter, p=share, strength=strength)
    if source is None:
        return identity
    if isinstance(source, Augmenter):
        return LearnedAugment(source)
    if weights is not None:
        options = {key: getattr(source, key) for key in ("num_magnitude_bins", "interpolation", "fill")}
        if isinstance(source, v2.RandAugment):
            return WeightedRandAugment(weights, num_ops=source.num_ops, magnitude=source.magnitude, **options)
        return WeightedTrivialAugment(weights, **options)
    if isinstance(source, nn.Module):
        return source
    raise ValueError(f"source {name!r} must be a transform to be exported, got {type(source).__name__}; wrap it in one")
