"""AugmenterConfig: all that is needed to build an augmenter, and the strengths of its families of changes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, Literal, get_args

from learned_aug.runtime.numbers import as_number, check_count, numbers

__all__ = ["FAMILIES", "SMALLEST", "UNITS", "VERSION_1", "AugmenterConfig", "Strength"]

CONFIG_VERSION = 2
SMALLEST = 4  # pixels, of the longer side
# Depths of the paper for MNIST, CIFAR and ImageNet.
PAPER_LAYERS = {28: 4, 32: 5, 224: 8}

FAMILIES = ("affine", "warp", "color")
# Strengths to which calibrate_ brings the networks, and of which ranges are multiples.
UNITS = {"affine": 0.0625, "warp": 0.0625, "color": 0.1}
# Fields that configurations of version 1 lack, and what they mean there.
VERSION_1 = {
    "affine": 0.0,
    "warp": None,
    "color": None,
    "centered": False,
    "color_points": None,
    "encoder": "conv",
}

Variant = Literal["parallel", "serial", "spatial", "appearance"]
Strength = float | tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmenterConfig:
    """All that is needed to build an :class:`~learned_aug.Augmenter`; saved as config.json beside its weights.

    **Strength.** Each of three families of changes has one: how far two draws for one image differ on average. It is a
    range (low, high), from which every image draws its own, uniformly; a number, the same for all images; 0, which
    switches the family off; or None, in files of version 1, the strength that their weights have.
    """

    channels: int = 3
    """Channels of the images. Three have a full color filter, others a gain and an offset for each channel."""
    size: int = 32
    """Side of the images of the fit, pixels. Any size works; the fields are interpolated to it."""
    affine: Strength = (0.0, 0.0625)
    """Strength of an affine map of the whole image (rotation, shift, zoom, shear), a share of the image side (ours)."""
    warp: Strength = (0.0, 0.125)
    """Strength of the local warp, a share of the image side (ours: drawn for each image)."""
    color: Strength = (0.0, 0.4)
    """Strength of the color filter, a share of the range [0, 1], on gray pixels of all levels (ours: drawn for each
    image)."""
    centered: bool = True
    """Whether what the code does without dropout is subtracted from each image's fields (ours), so that its draws are
    spread around the image itself. Without dropout it has no effect."""
    color_points: int | None = 1
    """Control points of the color filter along each side: 1 is one filter for the whole image (ours), None is as many
    as the warp has (paper)."""
    encoder: Literal["linear", "conv"] = "linear"
    """What E is made of. "conv": stride-2 convolutions (paper). "linear": two matrix products on the small copy (ours:
    in a tenth of the time)."""
    encoder_size: int | None = 8
    """Side of the square copy that E sees, pixels (ours); None is `size` (paper)."""
    layers: int | None = None
    """Stride-2 convolutions of E, for ``encoder="conv"``, and layers of G, for ``fields="pixel"``; by default 4, 5, 8
    for an `encoder_size` of 28, 32, 224 (paper), else as many as lead to one pixel."""
    tau_dim: int = 128
    """Length of the code tau (paper)."""
    tau_dropout: float = 0.5
    """Share of tau masked for each draw (paper)."""
    dropout: Literal["fixed", "learned"] = "learned"
    """"fixed": each unit of tau is kept with probability 1 - `tau_dropout` (paper). "learned": E also gives the logits
    of keeping each unit, for each image, which :func:`learned_aug.fit` learns (ours); they start as "fixed"."""
    width: int = 8
    """Channels of E's first convolution, doubled by each one, at most `tau_dim` (ours; the paper states none)."""
    fields: Literal["grid", "pixel"] = "grid"
    """"pixel": full-resolution fields with 4x4 pooling (paper). "grid": fields on `control_points` x `control_points`
    points, bounded by tanh and interpolated, smooth by construction and cheap (ours)."""
    control_points: int = 4
    """Control points along each side, for ``fields="grid"`` (ours)."""
    variant: Variant = "parallel"
    """"parallel": one tau and shared blocks for warp and color. "serial": two E/G one after the other. "spatial" or
    "appearance" alone (the paper's ablations)."""
    pooled: bool = False
    """Average each field over the image, which leaves one affine warp and one color filter (the paper's ablation)."""
    mean: tuple[float, ...] = (0.0,)
    """Mean of the normalization (x - mean) / std of the images that E and G were fitted on, x in [0, 1]: one number, or
    one for each channel."""
    std: tuple[float, ...] = (1.0,)
    """Standard deviation of that normalization: one number, or one for each channel."""
    version: int = CONFIG_VERSION
    """Version of this format."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            ValueError: if a field, which the message names, is out of its range or contradicts another.
        """
        for name, low in (("channels", 1), ("size", SMALLEST), ("tau_dim", 1), ("width", 1), ("control_points", 2)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), low))
        for name in ("encoder_size", "layers"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_count(name, value, 1))
        if self.color_points not in (1, None):
            raise ValueError(f"color_points must be 1 or None, got {self.color_points!r}")
        if not 0.0 <= (dropout := as_number(self.tau_dropout)) < 1.0:
            raise ValueError(f"tau_dropout must be a number in [0, 1), got {self.tau_dropout!r}")
        object.__setattr__(self, "tau_dropout", dropout)
        choices = {
            "encoder": ("linear", "conv"),
            "dropout": ("fixed", "learned"),
            "fields": ("grid", "pixel"),
            "variant": get_args(Variant),
            "centered": (True, False),
            "pooled": (True, False),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("mean", "std"):
            values = numbers(getattr(self, name))
            if len(values) not in (1, self.channels) or not all(math.isfinite(v) for v in values):
                raise ValueError(
                    f"{name} must be 1 or {self.channels} finite numbers, got {getattr(self, name)!r}; give one, or "
                    "one for each channel"
                )
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.version not in (1, CONFIG_VERSION):
            raise ValueError(
                f"config version must be 1 or {CONFIG_VERSION} for this release, got {self.version}; get one that "
                "matches"
            )
        if self.version == 1 and (self.encoder != "conv" or self.centered):
            raise ValueError(
                f'weights of version 1 have encoder="conv" and centered=False, got {self.encoder!r} and '
                f"{self.centered}; leave them out of their file"
            )
        for name in FAMILIES:
            object.__setattr__(self, name, self._strength(name))
        if self.variant in ("serial", "appearance") and not self.recolors:
            raise ValueError(
                f"variant={self.variant!r} needs a color filter, got color={self.color} for {self.channels} channels; "
                'use variant="parallel" or "spatial"'
            )

    def _strength(self, name: str) -> Strength:
        """Return a family's strength, checked and in floats; (x, x) as x.

        Raises:
            ValueError: if it is neither a number >= 0 nor a range of such, or if weights of version 1 cannot have it.
        """
        value = getattr(self, name)
        if value is None:
            if self.version != 1:
                raise ValueError(f"{name} must be a number or a range (low, high), got None; 0 switches it off")
            return None
        ends = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
        low, high = map(as_number, ends)
        if not 0 <= low <= high < math.inf:
            raise ValueError(
                f"{name} must be a strength >= 0 or a range (low, high) with 0 <= low <= high, finite, got {value!r}; "
                "0 switches the family off"
            )
        if self.version == 1 and high > 0:
            raise ValueError(
                f"{name}={value!r} cannot be asked of weights of version 1, which do not state their unit; use the "
                "factor strength=, or make weights with this release"
            )
        return low if low == high else (low, high)

    @classmethod
    def paper(cls, *, channels: int = 3, size: int = 32, **others: Any) -> AugmenterConfig:
        """Return the paper's choices: full-resolution fields, fixed dropout and strength, convolutions on whole images.

        Args:
            channels: channels of the images.
            size: side of the images, pixels.
            others: fields to set otherwise, such as ``mean`` and ``std``.
        """
        choices: dict[str, Any] = {
            "affine": 0.0,
            "centered": False,
            "warp": UNITS["warp"],
            "color": UNITS["color"] if channels == 3 else 0.0,
            "color_points": None,
            "encoder": "conv",
            "encoder_size": None,
            "dropout": "fixed",
            "fields": "pixel",
        }
        return cls(channels=channels, size=size, **{**choices, **others})

    @property
    def encoder_side(self) -> int:
        """`encoder_size`, or its default."""
        return self.size if self.encoder_size is None else self.encoder_size

    @property
    def depth(self) -> int:
        """`layers`, or its default for the encoder's side."""
        if self.layers is not None:
            return self.layers
        side = self.encoder_side
        return PAPER_LAYERS.get(side, max(2, math.ceil(math.log2(side))))

    @property
    def normalizes(self) -> bool:
        """Whether `mean` and `std` do anything."""
        return any(self.mean) or self.std != (1.0,) * len(self.std)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """0 and 1 in the units of the images: one number each, or one for each channel."""
        pairs = list(itertools.zip_longest(self.mean, self.std))
        filled = [(self.mean[0] if m is None else m, self.std[0] if s is None else s) for m, s in pairs]
        return tuple(-m / s for m, s in filled), tuple((1 - m) / s for m, s in filled)

    @property
    def centers(self) -> bool:
        """Whether `centered` has an effect."""
        return self.centered and self.tau_dropout > 0

    @property
    def stages(self) -> tuple[tuple[bool, bool], ...]:
        """(warps, recolors) of each E/G pair, in the order in which they are applied."""
        if self.variant == "serial":
            return (True, False), (False, True)
        return ((self.variant != "appearance", self.recolors),)

    @property
    def recolors(self) -> bool:
        """Whether there is a color filter; in files of version 1 only RGB images have one."""
        return (self.version > 1 or self.channels == 3) and self.variant != "spatial"

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """Strengths by family, in the order of ``FAMILIES``."""
        return self.affine, self.warp, self.color

    @property
    def draws_strength(self) -> bool:
        """Whether a family draws its strength for each image."""
        return any(isinstance(strength, tuple) for strength in self.strengths)

    @property
    def noise_dim(self) -> int:
        """Columns of the noise of a draw: one for each unit of tau, then one for each family that may be random."""
        return self.tau_dim + (len(FAMILIES) if self.draws_strength else 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for config.json."""
        values = {**dataclasses.asdict(self), "encoder_size": self.encoder_side, "layers": self.depth}
        return {k: v for k, v in values.items() if self.version > 1 or k not in VERSION_1}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AugmenterConfig:
        """Return the configuration of :meth:`to_dict`'s values, of this version or version 1.

        Raises:
            ValueError: on unknown keys, an unknown version or values that cannot be built.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"config has unknown keys {unknown}; known are {sorted(names)}")
        old = VERSION_1 if values.get("version", 1) == 1 else {}
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**{"version": 1, **old, **given})
        except TypeError as error:
            raise ValueError(f"config has a value of a wrong type ({error}); see AugmenterConfig") from error
