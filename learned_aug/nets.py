"""The two networks: Encoder (E: image -> tau) and Generator (G: tau -> fields), and their configuration."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AugmenterConfig", "Encoder", "Fields", "Generator"]

CONFIG_VERSION = 1
# Depths of the paper for MNIST, CIFAR and ImageNet.
PAPER_LAYERS = {28: 4, 32: 5, 224: 8}
SLOPE = 0.2  # of LeakyReLU
# Full scale of each field, reached when tanh saturates ("grid") or at a raw value of 1 ("pixel").
WARP_WEIGHT_SCALE = 0.3  # dimensionless: 17 degrees, or 30 % larger
WARP_BIAS_SCALE = 0.1  # of the image side
COLOR_WEIGHT_SCALE = 0.5  # dimensionless
COLOR_BIAS_SCALE = 0.3  # of the range [0, 1], before the normalisation that the config states

Variant = Literal["parallel", "serial", "spatial", "appearance"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmenterConfig:
    """All that is needed to build an :class:`~learned_aug.Augmenter`; saved as config.json beside its weights.

    Attributes:
        channels: of the images; 3 has a colour filter, any other number is warped only.
        size: side of the square that E sees, pixels. Other inputs are resized for E and get resized fields.
        layers: stride-2 convolutions of E; by default 4, 5, 8 for 28, 32, 224 px (paper), else down to one pixel.
        tau_dim: length of the code tau (paper: 128).
        tau_dropout: share of tau struck for each draw, the only source of randomness (paper: .5).
        width: channels of E's first layer; doubled by each layer, at most `tau_dim` (paper: unstated).
        fields: "pixel", the paper's full-resolution fields with 4x4 pooling; or "grid", fields on
            `control_points` x `control_points` points, bounded by tanh and interpolated: smooth by construction, cheap.
        control_points: along each side, for ``fields="grid"``.
        variant: "parallel", one tau and shared blocks for warp and colour; "serial", two E/G one after the other;
            "spatial" or "appearance" alone (paper's ablations).
        pooled: average each field over the image, which leaves one affine warp and one colour filter (ablation).
        mean: per channel, of the normalisation (x - mean) / std of the images E and G were fitted on, x in [0, 1].
        std: per channel; see `mean`. One value stands for all channels.
        version: of this format.
    """

    channels: int = 3
    size: int = 32
    layers: int | None = None
    tau_dim: int = 128
    tau_dropout: float = 0.5
    width: int = 16
    fields: Literal["grid", "pixel"] = "grid"
    control_points: int = 4
    variant: Variant = "parallel"
    pooled: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    version: int = CONFIG_VERSION

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming the field."""
        for name, low in (("channels", 1), ("size", 4), ("tau_dim", 1), ("width", 1), ("control_points", 2)):
            _check_int(name, getattr(self, name), low)
        _check_int("layers", self.depth, 1)
        if not 0.0 <= self.tau_dropout < 1.0:
            raise ValueError(f"tau_dropout must be in [0, 1), got {self.tau_dropout}")
        for name, allowed in (("fields", ("grid", "pixel")), ("variant", get_args(Variant)), ("pooled", (True, False))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.channels != 3 and self.variant in ("serial", "appearance"):
            raise ValueError(
                f"variant={self.variant!r} needs RGB images, got channels={self.channels}; "
                'use variant="parallel" or "spatial", which only warp such images'
            )
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) not in (1, self.channels) or not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name} must be 1 or {self.channels} finite numbers, got {getattr(self, name)}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.version != CONFIG_VERSION:
            raise ValueError(f"config version {self.version} is unknown to this release, which reads {CONFIG_VERSION}")

    @property
    def depth(self) -> int:
        """`layers`, or its default for `size`."""
        return (
            self.layers
            if self.layers is not None
            else PAPER_LAYERS.get(self.size, max(2, math.ceil(math.log2(self.size))))
        )

    @property
    def stages(self) -> tuple[tuple[bool, bool], ...]:
        """(warps, recolours) of each E/G pair, in the order in which they are applied."""
        if self.variant == "serial":
            return (True, False), (False, True)
        return ((self.variant != "appearance", self.channels == 3 and self.variant != "spatial"),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return {**dataclasses.asdict(self), "layers": self.depth}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AugmenterConfig:
        """The reverse of :meth:`to_dict`.

        Raises:
            ValueError: on unknown keys, an unknown version or values that cannot be built.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"config has unknown keys {unknown}; known are {sorted(names)}")
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except TypeError as error:
            raise ValueError(f"config has a value of a wrong type: {error}") from error


def _check_int(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")


class Fields(NamedTuple):
    """What G makes of a code: (B, C, h, w) each, None where the variant has no such field."""

    warp_weight: Tensor | None
    """s_w, 4 channels, dimensionless."""
    warp_bias: Tensor | None
    """s_b, 2 channels, pixels of the training size."""
    color_weight: Tensor | None
    """c_w, 9 channels, dimensionless."""
    color_bias: Tensor | None
    """c_b, 3 channels, units of the images."""


class Encoder(nn.Module):
    """E: stride-2 3x3 convolutions with LeakyReLU .2, then the mean over what is left of the image.

    Each image is standardised first, which makes tau independent of the value range. There is no normalisation layer:
    a sample's code must not depend on its batch.
    """

    def __init__(self, config: AugmenterConfig) -> None:
        super().__init__()
        hidden = [min(config.width * 2**k, config.tau_dim) for k in range(config.depth - 1)]
        channels = [config.channels, *hidden, config.tau_dim]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:], strict=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) to codes (B, tau_dim)."""
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        var = images.var(dim=(1, 2, 3), keepdim=True, correction=0)
        x = (images - mean) * torch.rsqrt(var + 1e-6)
        for conv in self.convs[:-1]:
            x = F.leaky_relu(conv(x), SLOPE)
        codes: Tensor = self.convs[-1](x)
        return codes.mean(dim=(2, 3))


class Generator(nn.Module):
    """G: transposed convolutions with LeakyReLU .2 from a code at one pixel to the raw fields.

    The first layer makes a small square of it and each further one doubles the side; the middle of the last is kept.
    `center`, the mean raw field that :meth:`Augmenter.calibrate_` measures, is subtracted so that an untrained G has no
    constant warp or colour cast. There is no normalisation layer: it would make the pooled fields constant.
    """

    scale: Tensor
    center: Tensor

    def __init__(self, config: AugmenterConfig, *, warp: bool, color: bool) -> None:
        super().__init__()
        self.config, self.warp, self.color = config, warp, color
        pixel = config.fields == "pixel"
        self.side = config.size if pixel else config.control_points
        layers = config.depth if pixel else max(2, math.ceil(math.log2(self.side)))
        first = math.ceil(self.side / 2 ** (layers - 1))
        hidden = [max(config.width, config.tau_dim >> (k + 1)) for k in range(layers - 1)]
        channels = [config.tau_dim, *hidden, 6 * warp + 12 * color]
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, first if k == 0 else 4, stride=1 if k == 0 else 2, padding=0 if k == 0 else 1)
            for k, (a, b) in enumerate(zip(channels, channels[1:], strict=False))
        )
        scale = [WARP_WEIGHT_SCALE] * 4 + [WARP_BIAS_SCALE * config.size] * 2 if warp else []
        if color:
            std = config.std * 3 if len(config.std) == 1 else config.std
            scale += [COLOR_WEIGHT_SCALE] * 9 + [COLOR_BIAS_SCALE / s for s in std]
        self.register_buffer("scale", torch.tensor(scale)[:, None, None], persistent=False)
        self.register_buffer("center", torch.zeros(len(scale), self.side, self.side))

    def raw(self, codes: Tensor) -> Tensor:
        """Codes (B, tau_dim) to unbounded, uncentred fields (B, C, side, side)."""
        x = codes[:, :, None, None]
        for deconv in self.deconvs[:-1]:
            x = F.leaky_relu(deconv(x), SLOPE)
        x = self.deconvs[-1](x)
        margin = (x.shape[-1] - self.side) // 2
        return x[..., margin : margin + self.side, margin : margin + self.side]

    def forward(self, codes: Tensor) -> Fields:
        """Codes (B, tau_dim), dropout applied, to fields (B, C, side, side); (B, C, 2, 2) if pooled."""
        x = self.raw(codes) - self.center
        if self.config.fields == "grid":
            x = torch.tanh(x)
        x = x * self.scale
        if self.config.pooled:
            x = x.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 2, 2)  # the four corners of the image
        parts = iter(torch.split(x, [4, 2] * self.warp + [9, 3] * self.color, dim=1))
        warp = (next(parts), next(parts)) if self.warp else (None, None)
        color = (next(parts), next(parts)) if self.color else (None, None)
        return Fields(*warp, *color)
