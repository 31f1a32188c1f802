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
HIDDEN = 128  # units between E's two linear layers
EPSILON = 1e-6  # added to the variance of an image when it is standardized
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
        elif isinstance(layer, Encoder):
            drawn, still = cast(list[nn.Linear], list(layer.layers or [])), []
            if layer.keep is not None:
                first, last = cast(list[nn.Linear], list(layer.keep))
                drawn, still = [*drawn, first], [last.weight, last.bias]
            for linear in drawn:
                nn.init.normal_(linear.weight, 0, gain / math.sqrt(linear.in_features), generator=generator)
                nn.init.zeros_(linear.bias)
            for values in still:
                nn.init.zeros_(values)


def bias_of(layer: nn.ConvTranspose2d) -> Tensor:
    """The bias, which our layers all have, with its type."""
    return cast(Tensor, layer.bias)


def _turned(affine: Tensor) -> Tensor:
    """Weigh rotation three times against zoom, stretch and shear (ours: better on color-coded digits)."""
    sign = _column((0.0, 1.0, -1.0, 0.0, 0.0, 0.0), affine.dtype, affine.device)
    return torch.addcmul(affine, affine[:, 1:2] - affine[:, 2:3], sign)


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
    """E: from the small copy of an image to its code.

    ``encoder="linear"``: two linear layers with LeakyReLU 0.2 between them. ``encoder="conv"``: stride-2 3x3
    convolutions with LeakyReLU 0.2, then the mean over what is left of the image.

    Each image is standardized first, which makes tau independent of the value range. There is no normalization layer:
    a sample's code must not depend on its batch.

    With ``dropout="learned"`` two linear layers give the logits of keeping the units of tau; 0 at the start. They read
    what the first layer reads, of convolutions the map before the last two, which still shows where things are.
    (Adaptive dropout: Ba and Frey, "Standout", NeurIPS 2013.)
    """

    def __init__(self, config: AugmenterConfig) -> None:
        super().__init__()
        self.convs: nn.ModuleList | None = None
        self.layers: nn.ModuleList | None = None
        self.keep: nn.ModuleList | None = None
        self.seen_by_keep = 0  # convolutions that come before `keep`
        seen = config.channels * config.encoder_side**2
        if config.encoder == "conv":
            hidden = [min(config.width * 2**k, config.tau_dim) for k in range(config.depth - 1)]
            channels = [config.channels, *hidden, config.tau_dim]
            self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(channels))
            self.seen_by_keep = max(0, config.depth - 2)
            seen = channels[self.seen_by_keep] * math.ceil(config.encoder_side / 2**self.seen_by_keep) ** 2
        else:
            self.layers = nn.ModuleList([nn.Linear(seen, HIDDEN), nn.Linear(HIDDEN, config.tau_dim)])
        if config.dropout == "learned":
            self.keep = nn.ModuleList([nn.Linear(seen, config.tau_dim), nn.Linear(config.tau_dim, config.tau_dim)])
        self.to(memory_format=torch.channels_last)  # faster on every device, five times for one image on a CPU

    def forward(self, images: Tensor) -> Code:
        """Images (B, C, S, S) to their codes."""
        if self.convs is not None:
            return self._convolved(images, cast(list[nn.Conv2d], list(self.convs)))
        x = images.flatten(1)
        x = F.layer_norm(x, x.shape[1:], eps=EPSILON)
        return Code(_two_layers(x, cast(nn.ModuleList, self.layers)), self._keep(x))

    def _convolved(self, images: Tensor, convs: list[nn.Conv2d]) -> Code:
        x = images.permute(0, 2, 3, 1).contiguous()  # channels last, in which order the mean is the same
        x = F.layer_norm(x, x.shape[1:], eps=EPSILON).permute(0, 3, 1, 2)
        keep = None
        for k, conv in enumerate(convs):  # not called as modules, which for one image takes a quarter of the time
            if k == self.seen_by_keep:
                keep = self._keep(x.permute(0, 2, 3, 1).flatten(1))
            x = F.conv2d(x, conv.weight, conv.bias, 2, 1)
            if k < len(convs) - 1:
                x = F.leaky_relu(x, SLOPE, inplace=True)
        return Code(x.flatten(1) if x.shape[2:] == (1, 1) else x.mean(dim=(2, 3)), keep)

    def _keep(self, x: Tensor) -> Tensor | None:
        """The logits of keeping, (B, tau_dim), of what E sees, (B, n)."""
        # They read it as it is: whether a unit is kept has no slope.
        return None if self.keep is None else _two_layers(x.detach(), self.keep)


def _two_layers(x: Tensor, layers: nn.ModuleList) -> Tensor:
    first, last = cast(list[nn.Linear], list(layers))
    return F.linear(F.leaky_relu_(F.linear(x, first.weight, first.bias), SLOPE), last.weight, last.bias)


class Generator(nn.Module):
    """G: transposed convolutions with LeakyReLU .2 from a code at one pixel to the raw fields.

    "pixel": the first layer makes a small square of it and each further one doubles the side; the middle of the last is
    kept. "grid": the first layer makes all control points, the second is point-wise; a code may bend them freely, and
    both layers are plain matrix products. There is no normalization layer: it would make the pooled fields constant.

    The warp is made of the raw warp fields, the affine map of their mean over the image; likewise the color filter of
    the raw color fields or of their mean. `center`, the mean raw field that :meth:`Augmenter.calibrate_` measures, is
    subtracted so that an untrained G has no constant warp or color cast; see :meth:`drawn` for that of each image; and
    `gain` brings each family to its unit.

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
        self.deconvs[0].to(memory_format=torch.channels_last)
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
        _, *rest = cast(list[nn.ConvTranspose2d], list(self.deconvs))
        x = self._hidden(codes)
        if rest[0].kernel_size == (1, 1):
            return self._at_points(x, bias_of(rest[0]))
        x = x.permute(0, 3, 1, 2)
        for k, deconv in enumerate(rest):
            x = deconv(F.leaky_relu_(x, SLOPE) if k else x)
        margin = (x.shape[-1] - self.side) // 2
        return x[..., margin : margin + self.side, margin : margin + self.side] if margin else x

    # On one pixel, or with one tap, a transposed convolution is a product, which is faster. The channels are last,
    # as in memory, so that the second product is one for all points of all images.
    def _hidden(self, codes: Tensor) -> Tensor:
        """What the first layer makes of codes, (B, h, w, C)."""
        first = cast(nn.ConvTranspose2d, self.deconvs[0])
        _, channels, height, width = first.weight.shape
        x = (codes @ first.weight.permute(0, 2, 3, 1).flatten(1)).view(-1, channels) + bias_of(first)
        return F.leaky_relu_(x, SLOPE).view(-1, height, width, channels)

    def _at_points(self, x: Tensor, bias: Tensor) -> Tensor:
        """What the second layer of a control grid makes of the first one's values."""
        last = cast(nn.ConvTranspose2d, self.deconvs[1])
        points = torch.addmm(bias, x.flatten(0, 2), last.weight.flatten(1))
        return points.view(*x.shape[:3], last.out_channels).permute(0, 3, 1, 2)

    def drawn(self, tau: Tensor, mask: Tensor) -> Tensor:
        """Map codes and masks of dropout, (B, tau_dim) both, to raw fields, less those of the code without dropout.

        What the code alone does to an image is the same at each draw: not subtracted, it is a constant warp of this
        image, two thirds as long as all that a draw does.
        """
        code = tau * mask.to(tau.dtype)
        if not self.config.centers:
            return self.raw(code)
        if self.config.fields == "pixel":
            return self.raw(code) - self.raw(tau)
        one, other = self._hidden(torch.stack([code, tau]).flatten(0, 1)).unflatten(0, (2, -1)).unbind(0)
        # The second layer is linear, and its bias cancels; it keeps its gradient, 0, as parameters are expected to.
        return self._at_points(one - other, 0 * bias_of(cast(nn.ConvTranspose2d, self.deconvs[1])))

    def forward(self, tau: Tensor, mask: Tensor | None = None) -> Fields:
        """Map codes, and masks of dropout unless it is applied, to the fields of each family at its unit."""
        return self.fields(self.raw(tau) if mask is None else self.drawn(tau, mask))

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
