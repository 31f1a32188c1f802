"""The two networks: Encoder (E: image -> tau) and Generator (G: tau -> fields), and their configuration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.functional import at_least_float32

__all__ = ["AugmenterConfig", "Code", "Encoder", "Fields", "Generator"]

CONFIG_VERSION = 1
# Depths of the paper for MNIST, CIFAR and ImageNet.
PAPER_LAYERS = {28: 4, 32: 5, 224: 8}
ENCODER_SIZE = 64  # pixels, at most, for "grid"; ours
SLOPE = 0.2  # of LeakyReLU
# Full scale of each field, reached when tanh saturates ("grid") or at a raw value of 1 ("pixel").
WARP_WEIGHT_SCALE = 0.3  # dimensionless: 17 degrees, or 30 % larger
WARP_BIAS_SCALE = 0.1  # of the image side
COLOR_WEIGHT_SCALE = 0.5  # dimensionless
COLOR_BIAS_SCALE = 0.3  # of the range [0, 1], before the normalization that the config states

Variant = Literal["parallel", "serial", "spatial", "appearance"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmenterConfig:
    """All that is needed to build an :class:`~learned_aug.Augmenter`; saved as config.json beside its weights.

    Attributes:
        channels: of the images; 3 has a color filter, any other number is warped only.
        size: side of the images of the fit, pixels. Any size works; the fields are interpolated to it.
        encoder_size: side of the square copy that E sees, pixels; by default `size`, but for ``fields="grid"`` halved
            until at most 64, as 224 to 56: halves are cheap to make, and E costs a sixteenth (paper: `size`).
        layers: stride-2 convolutions of E; by default 4, 5, 8 for an `encoder_size` of 28, 32, 224 (paper), else down
            to one pixel.
        tau_dim: length of the code tau (paper: 128).
        tau_dropout: share of tau struck for each draw, the only source of randomness (paper: .5).
        dropout: "fixed", each unit of tau is kept with probability 1 - `tau_dropout` (paper); or "learned", E also
            gives the logits of keeping each unit, for each image, which :func:`learned_aug.fit` learns (ours). They
            start at those of "fixed".
        width: channels of E's first layer; doubled by each layer, at most `tau_dim` (paper: unstated).
        fields: "pixel", the paper's full-resolution fields with 4x4 pooling; or "grid", fields on
            `control_points` x `control_points` points, bounded by tanh and interpolated: smooth by construction, cheap.
        control_points: along each side, for ``fields="grid"``.
        variant: "parallel", one tau and shared blocks for warp and color; "serial", two E/G one after the other;
            "spatial" or "appearance" alone (paper's ablations).
        pooled: average each field over the image, which leaves one affine warp and one color filter (ablation).
        mean: per channel, of the normalization (x - mean) / std of the images E and G were fitted on, x in [0, 1].
        std: per channel; see `mean`. One value stands for all channels.
        version: of this format.
    """

    channels: int = 3
    size: int = 32
    encoder_size: int | None = None
    layers: int | None = None
    tau_dim: int = 128
    tau_dropout: float = 0.5
    dropout: Literal["fixed", "learned"] = "learned"
    width: int = 8
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
        _check_int("encoder_size", self.encoder_side, 1)
        _check_int("layers", self.depth, 1)
        if not 0.0 <= self.tau_dropout < 1.0:
            raise ValueError(f"tau_dropout must be in [0, 1), got {self.tau_dropout}")
        choices = {
            "dropout": ("fixed", "learned"),
            "fields": ("grid", "pixel"),
            "variant": get_args(Variant),
            "pooled": (True, False),
        }
        for name, allowed in choices.items():
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
            raise ValueError(
                f"config version must be {CONFIG_VERSION} for this release, got {self.version}; get one that matches"
            )

    @property
    def encoder_side(self) -> int:
        """`encoder_size`, or its default."""
        if self.encoder_size is not None:
            return self.encoder_size
        side = self.size
        while self.fields == "grid" and side > ENCODER_SIZE:
            side = (side + 1) // 2
        return side

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
    def stages(self) -> tuple[tuple[bool, bool], ...]:
        """(warps, recolors) of each E/G pair, in the order in which they are applied."""
        if self.variant == "serial":
            return (True, False), (False, True)
        return ((self.variant != "appearance", self.recolors),)

    @property
    def recolors(self) -> bool:
        """Whether there is a color filter."""
        return self.channels == 3 and self.variant != "spatial"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return {**dataclasses.asdict(self), "encoder_size": self.encoder_side, "layers": self.depth}

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
            kwargs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**kwargs)
        except TypeError as error:
            raise ValueError(f"config has a value of a wrong type ({error}); see AugmenterConfig") from error


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Weights of E and G that keep the variance through LeakyReLU, zero biases; nothing learned about dropout.

    torch's default shrinks the signal, and then tau no longer depends on the image.
    """
    gain = math.sqrt(2 / (1 + SLOPE**2))
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None:
            taps = math.prod(layer.kernel_size)
            if isinstance(layer, nn.ConvTranspose2d):  # how many input pixels reach an output pixel
                taps = taps // math.prod(layer.stride) if layer.padding != (0, 0) else 1
            nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.in_channels * taps), generator=generator)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, Encoder) and layer.keep is not None:
            first, last = cast(list[nn.Linear], list(layer.keep))
            nn.init.normal_(first.weight, 0, gain / math.sqrt(first.in_features), generator=generator)
            for values in (first.bias, last.weight, last.bias):
                nn.init.zeros_(values)


def bias_of(layer: nn.ConvTranspose2d) -> Tensor:
    """The bias, which our layers all have, with its type."""
    return cast(Tensor, layer.bias)


def _check_int(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")


class Fields(NamedTuple):
    """What G makes of a code: (B, C, h, w) each, None where the variant has no such field."""

    warp: Tensor | None
    """6 channels: s_w as row-major 2x2 in (i, j), dimensionless; then s_b, (i, j), pixels of the training size."""
    color: Tensor | None
    """12 channels: c_w as row-major 3x3, dimensionless; then c_b, units of the images."""


class Code(NamedTuple):
    """What E makes of an image."""

    tau: Tensor
    """(B, tau_dim), dropout not yet applied."""
    keep: Tensor | None
    """(B, tau_dim), what is added to the logit of keeping each unit; None for ``dropout="fixed"``."""


class Encoder(nn.Module):
    """E: stride-2 3x3 convolutions with LeakyReLU .2, then the mean over what is left of the image.

    Each image is standardized first, which makes tau independent of the value range. There is no normalization layer:
    a sample's code must not depend on its batch.

    With ``dropout="learned"`` two linear layers read the map before the last two convolutions, which still shows where
    things are, and give the logits of keeping the units of tau; 0 at the start. (Adaptive dropout: Ba and Frey,
    "Standout", NeurIPS 2013.)
    """

    def __init__(self, config: AugmenterConfig) -> None:
        super().__init__()
        hidden = [min(config.width * 2**k, config.tau_dim) for k in range(config.depth - 1)]
        channels = [config.channels, *hidden, config.tau_dim]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(channels))
        self.keep: nn.ModuleList | None = None
        self.seen_by_keep = max(0, config.depth - 2)
        if config.dropout == "learned":
            side = math.ceil(config.encoder_side / 2**self.seen_by_keep)
            seen = channels[self.seen_by_keep] * side**2
            self.keep = nn.ModuleList([nn.Linear(seen, config.tau_dim), nn.Linear(config.tau_dim, config.tau_dim)])
        self.to(memory_format=torch.channels_last)  # faster on every device, five times for one image on a CPU

    def forward(self, images: Tensor) -> Code:
        """Images (B, C, S, S) to their codes."""
        x = images.permute(0, 2, 3, 1).contiguous()  # channels last, in which order the mean is the same
        x = F.layer_norm(x, x.shape[1:], eps=1e-6).permute(0, 3, 1, 2)
        *convs, last = cast(list[nn.Conv2d], list(self.convs))
        x = _convolved(x, convs[: self.seen_by_keep])
        keep = self._keep(x)
        x = _convolved(x, convs[self.seen_by_keep :])
        x = F.conv2d(x, last.weight, last.bias, 2, 1)
        return Code(x.flatten(1) if x.shape[2:] == (1, 1) else x.mean(dim=(2, 3)), keep)

    def _keep(self, x: Tensor) -> Tensor | None:
        """The logits of keeping, (B, tau_dim), of a map."""
        if self.keep is None:
            return None
        first, last = cast(list[nn.Linear], list(self.keep))
        x = x.detach().permute(0, 2, 3, 1).flatten(1)  # they read the map as it is; whether a unit is kept has no slope
        x = F.leaky_relu(F.linear(x, first.weight, first.bias), SLOPE)
        return F.linear(x, last.weight, last.bias)


def _convolved(x: Tensor, convs: list[nn.Conv2d]) -> Tensor:
    for conv in convs:  # not called as modules, which for one image takes a quarter of the time
        x = F.leaky_relu(F.conv2d(x, conv.weight, conv.bias, 2, 1), SLOPE, inplace=True)
    return x


class Generator(nn.Module):
    """G: transposed convolutions with LeakyReLU .2 from a code at one pixel to the raw fields.

    "pixel": the first layer makes a small square of it and each further one doubles the side; the middle of the last is
    kept. "grid": the first layer makes all control points, the second is point-wise; a code may bend them freely, and
    both layers are plain matrix products. There is no normalization layer: it would make the pooled fields constant.

    `center`, the mean raw field that :meth:`Augmenter.calibrate_` measures, is subtracted so that an untrained G has no
    constant warp or color cast.

    `level` bounds how fine "pixel" fields are while they grow, see :meth:`Augmenter.grown_to`; it is no part of the
    weights.
    """

    scale: Tensor
    center: Tensor
    level: float = math.inf

    def __init__(self, config: AugmenterConfig, *, warp: bool, color: bool) -> None:
        super().__init__()
        self.config, self.warp, self.color = config, warp, color
        pixel = config.fields == "pixel"
        self.side = config.size if pixel else config.control_points
        layers = max(2, config.depth) if pixel else 2
        first, kernel, stride = (math.ceil(self.side / 2 ** (layers - 1)), 4, 2) if pixel else (self.side, 1, 1)
        hidden = [max(config.width, config.tau_dim >> (k + 1 + (not pixel))) for k in range(layers - 1)]
        channels = [config.tau_dim, *hidden, 6 * warp + 12 * color]
        self.deconvs = nn.ModuleList([nn.ConvTranspose2d(channels[0], channels[1], first)])
        for a, b in itertools.pairwise(channels[1:]):
            self.deconvs.append(nn.ConvTranspose2d(a, b, kernel, stride, padding=(kernel - stride) // 2))
        scale = [WARP_WEIGHT_SCALE] * 4 + [WARP_BIAS_SCALE * config.size] * 2 if warp else []
        if color:
            std = config.std * 3 if len(config.std) == 1 else config.std
            scale += [COLOR_WEIGHT_SCALE] * 9 + [COLOR_BIAS_SCALE / s for s in std]
        self.register_buffer("scale", torch.tensor(scale)[:, None, None], persistent=False)
        self.register_buffer("center", torch.zeros(len(scale), self.side, self.side))

    def raw(self, codes: Tensor) -> Tensor:
        """Codes (B, tau_dim) to unbounded, uncenterd fields (B, C, side, side)."""
        # On one pixel, or with one tap, a transposed convolution is a matrix product, which is faster.
        first, *rest = cast(list[nn.ConvTranspose2d], list(self.deconvs))
        x = (codes @ first.weight.flatten(1)).view(len(codes), *first.weight.shape[1:])
        x = x + bias_of(first)[:, None, None]
        for deconv in rest:
            x = F.leaky_relu(x, SLOPE, inplace=True)
            if deconv.kernel_size == (1, 1):
                matrix = deconv.weight.flatten(1).T.expand(len(x), -1, -1)
                points = torch.baddbmm(bias_of(deconv)[:, None], matrix, x.flatten(2))
                x = points.view(len(x), deconv.out_channels, *x.shape[2:])
            else:
                x = deconv(x)
        margin = (x.shape[-1] - self.side) // 2
        return x[..., margin : margin + self.side, margin : margin + self.side] if margin else x

    def forward(self, codes: Tensor) -> Fields:
        """Codes (B, tau_dim), dropout applied, to fields (B, C, side, side), pooled (B, C, 2, 2); float32 at least."""
        return self.fields(self.raw(codes))

    def fields(self, raw: Tensor) -> Fields:
        """The second half of :meth:`forward`: what :meth:`raw` gave, centerd, bounded and scaled."""
        x = at_least_float32(raw) - self.center
        if self.config.pooled:  # to four equal corners; before the bound, as means of bounded points stay small
            x = x.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 2, 2)
        if self.config.fields == "grid":
            x = torch.tanh(x)
        x = x * self.scale
        if self.level < math.log2(self.side) and not self.config.pooled:
            x = self._grown(x)
        return Fields(x[:, :6] if self.warp else None, x[:, -12:] if self.color else None)

    def _grown(self, fields: Tensor) -> Tensor:
        """Fields no finer than 2 ** level points along a side; between whole levels a blend of both."""
        whole = math.floor(self.level)

        def coarse(points: int) -> Tensor:
            if points >= self.side:
                return fields
            return F.interpolate(F.adaptive_avg_pool2d(fields, points), (self.side, self.side), mode="bilinear")

        return torch.lerp(coarse(2**whole), coarse(2 ** (whole + 1)), self.level - whole)
