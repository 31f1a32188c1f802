"""The two networks: Encoder (E: image -> tau) and Generator (G: tau -> fields)."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.config import FAMILIES, AugmenterConfig
from learned_aug.functional.fields import at_least_float32, constant

__all__ = ["Code", "Encoder", "Fields", "Generator"]

SLOPE = 0.2  # of LeakyReLU
# Full scale of each field, reached when tanh saturates ("grid") or at a raw value of 1 ("pixel").
WARP_WEIGHT_SCALE = 0.3  # dimensionless: 17 degrees, or 30 % larger
WARP_BIAS_SCALE = 0.1  # of the image side
COLOR_WEIGHT_SCALE = 0.5  # dimensionless
COLOR_BIAS_SCALE = 0.3  # of the range [0, 1], before the normalization that the config states


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


def _turned(affine: Tensor) -> Tensor:
    """Weigh rotation three times against zoom, stretch and shear (ours: better on color-coded digits)."""
    spin = affine[:, 1:2] - affine[:, 2:3]
    return torch.cat([affine[:, :1], affine[:, 1:2] + spin, affine[:, 2:3] - spin, affine[:, 3:]], dim=1)


@constant
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values by channel, (C, 1, 1); no buffer, which a module built on the meta device would lose."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


class Fields(NamedTuple):
    """What G makes of a code, None where the variant has no such field."""

    affine: Tensor | None
    """(B, 6, 1, 1): the generator of an affine map, row-major 2x2 in (i, j), and a shift (i, j), pixels."""
    warp: Tensor | None
    """(B, 6, h, w): s_w as row-major 2x2 in (i, j), dimensionless; then s_b, (i, j), pixels of the training size."""
    color: Tensor | None
    """(B, 12, h, w), c_w as row-major 3x3, dimensionless, then c_b, units of the images; of images without three
    channels (B, 2 C, h, w), gains less 1 and offsets. h = w = 1 for one filter for the whole image."""


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

    The warp is made of the raw warp fields, the affine map of their mean over the image; likewise the color filter of
    the raw color fields or of their mean. `center`, the mean raw field that :meth:`Augmenter.calibrate_` measures, is
    subtracted so that an untrained G has no constant warp or color cast, and `gain` brings each family to its unit.

    `level` bounds how fine "pixel" fields are while they grow, see :meth:`Augmenter.grown_to`; it is no part of the
    weights.
    """

    center: Tensor
    gain: Tensor
    level: float = math.inf

    def __init__(self, config: AugmenterConfig, *, warp: bool, color: bool) -> None:
        super().__init__()
        self.config, self.warp, self.color = config, warp, color
        self.filters = 0 if not color else 12 if config.channels == 3 else 2 * config.channels
        pixel = config.fields == "pixel"
        self.side = config.size if pixel else config.control_points
        layers = max(2, config.depth) if pixel else 2
        first, kernel, stride = (math.ceil(self.side / 2 ** (layers - 1)), 4, 2) if pixel else (self.side, 1, 1)
        hidden = [max(config.width, config.tau_dim >> (k + 1 + (not pixel))) for k in range(layers - 1)]
        channels = [config.tau_dim, *hidden, 6 * warp + self.filters]
        self.deconvs = nn.ModuleList([nn.ConvTranspose2d(channels[0], channels[1], first)])
        for a, b in itertools.pairwise(channels[1:]):
            self.deconvs.append(nn.ConvTranspose2d(a, b, kernel, stride, padding=(kernel - stride) // 2))
        scale = [WARP_WEIGHT_SCALE] * 4 + [WARP_BIAS_SCALE * config.size] * 2 if warp else []
        if color:
            std = config.std * config.channels if len(config.std) == 1 else config.std
            scale += [COLOR_WEIGHT_SCALE] * (self.filters - config.channels) + [COLOR_BIAS_SCALE / s for s in std]
        self.scale = tuple(scale)
        self.register_buffer("center", torch.zeros(len(scale), self.side, self.side))
        if config.version > 1:
            self.register_buffer("gain", torch.ones(len(FAMILIES)))

    def raw(self, codes: Tensor) -> Tensor:
        """Map codes (B, tau_dim) to unbounded, uncentered fields (B, C, side, side)."""
        # On one pixel, or with one tap, a transposed convolution is a matrix product, which is faster.
        first, *rest = cast(list[nn.ConvTranspose2d], list(self.deconvs))
        x = (codes @ first.weight.flatten(1)).view(codes.shape[0], *first.weight.shape[1:])
        x = x + bias_of(first)[:, None, None]
        for deconv in rest:
            x = F.leaky_relu(x, SLOPE, inplace=True)
            if deconv.kernel_size == (1, 1):
                matrix = deconv.weight.flatten(1).T.expand(x.shape[0], -1, -1)
                points = torch.baddbmm(bias_of(deconv)[:, None], matrix, x.flatten(2))
                x = points.view(x.shape[0], deconv.out_channels, *x.shape[2:])
            else:
                x = deconv(x)
        margin = (x.shape[-1] - self.side) // 2
        return x[..., margin : margin + self.side, margin : margin + self.side] if margin else x

    def forward(self, codes: Tensor) -> Fields:
        """Map codes (B, tau_dim), dropout applied, to the fields of each family at its unit; float32 at least."""
        return self.fields(self.raw(codes))

    def fields(self, raw: Tensor) -> Fields:
        """Center, scale and bound what :meth:`raw` gave: the second half of :meth:`forward`."""
        x = at_least_float32(raw) - self.center
        config, scale = self.config, _column(self.scale, x.dtype, x.device)
        mean = x.mean(dim=(2, 3), keepdim=True)
        if config.pooled:  # to four equal corners; before the bound, as means of bounded points stay small
            x = mean.expand(-1, -1, 2, 2)
        affine = warp = color = None
        if self.warp and config.warp != 0.0:
            warp = self._bounded(x[:, :6], 1) * scale[:6]
        if self.warp and config.affine != 0.0:
            affine = _turned(mean[:, :6]) * self._gain(0) * scale[:6]
        if self.color and config.color != 0.0:
            points = mean if config.color_points == 1 else x
            color = self._bounded(points[:, -self.filters :], 2) * scale[-self.filters :]
        if self.level < math.log2(self.side) and not config.pooled:
            warp, color = (f if f is None or f.shape[-1] == 1 else self._grown(f) for f in (warp, color))
        return Fields(affine, warp, color)

    def _gain(self, family: int) -> Tensor | float:
        return self.gain[family] if self.config.version > 1 else 1.0

    def _bounded(self, x: Tensor, family: int) -> Tensor:
        x = x * self._gain(family)
        return torch.tanh(x) if self.config.fields == "grid" else x

    def _grown(self, fields: Tensor) -> Tensor:
        """Average fields to 2 ** level points along a side; between whole levels, blend both."""
        whole = math.floor(self.level)

        def coarse(points: int) -> Tensor:
            if points >= self.side:
                return fields
            return F.interpolate(F.adaptive_avg_pool2d(fields, points), (self.side, self.side), mode="bilinear")

        return torch.lerp(coarse(2**whole), coarse(2 ** (whole + 1)), self.level - whole)
