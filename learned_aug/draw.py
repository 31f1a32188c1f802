"""Fields once drawn for a batch, and how they are applied to images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learned_aug.functional import recolor, resize_field, warp
from learned_aug.functional.fields import at_least_float32
from learned_aug.functional.fused import augmented, widened
from learned_aug.functional.images import is_full

__all__ = ["Augmented", "Draw", "Trace"]


class Augmented(NamedTuple):
    """What :meth:`Augmenter.augment` did to a batch."""

    images: Tensor
    """(B, C, H, W), the augmented copies."""
    flow: Tensor
    """(B, 2, H, W), (x, y), pixels: output pixel q shows the input at q + flow(q); 0 without a spatial field."""
    delta: Tensor
    """(B, C, H, W), what the color filter added, in the units of the images; 0 without one."""


class Draw(NamedTuple):
    """The fields drawn for a batch, coarse until used: :meth:`Augmenter.draw` makes one, :meth:`apply` uses it.

    Applying one draw to several tensors of one size (frames of a video, the two images of a pair) keeps them aligned;
    for masks and depth maps, which have no colors, use :meth:`warp`.
    """

    size: tuple[int, int]
    """(H, W) of the images, pixels."""
    coarse_flow: Tensor | None = None
    """(B, 2, h, w), (x, y), pixels of an image of `size`; None without a spatial field."""
    coarse_color: Tensor | None = None
    """(B, 12, h, w), c_w as row-major 3x3 and c_b in the units of the images, or (B, 2 C, h, w), see
    :func:`~learned_aug.functional.recolor`; None without a color filter."""
    low: tuple[float, ...] = (0.0,)
    """Least value of an image, one number or one for each channel: 0 in the units of the images."""
    high: tuple[float, ...] = (1.0,)
    """Largest value of an image, likewise: 1 in the units of the images."""
    smooth: bool = False
    """Whether the flow is interpolated by splines, see :func:`~learned_aug.functional.resize_field`."""

    def apply(self, images: Tensor) -> Tensor:
        """Warp, then recolor (B, C, H, W): a new tensor in the dtype of `images`, float32 at least inside.

        Recolored values are clamped to the range of images, 0 to 1 in their units, widened by that of `images`.

        Args:
            images: floating; or, for a draw whose range is [0, 1], also uint8, whose 255 is 1.

        Raises:
            TypeError: if `images` are uint8, and the draw is for normalized images.
            ValueError: if they are not as many, of the size and the channels that the draw is for.
        """
        self._check(images, recolors=True)
        as_bytes = images.dtype == torch.uint8
        if as_bytes and (set(self.low), set(self.high)) != ({0.0}, {1.0}):
            raise TypeError("images must be floating for a draw of normalized ones, got torch.uint8; normalize them")
        fields = [f for f in (self.coarse_flow, self.coarse_color) if f is not None]
        plain = torch.compiler.is_compiling() or images.device.type != "cpu" or not fields
        dtype = torch.promote_types(images.dtype, torch.float32)
        if torch.is_grad_enabled():
            plain = plain or any(t.requires_grad for t in (images, *fields))
        if not plain and all(torch.promote_types(f.dtype, dtype) == dtype for f in fields):
            return augmented(images, *self[1:3], (self.low, self.high), smooth=self.smooth)
        values = images / 255 if as_bytes else images
        values = self.recolor(self.warp(values), values)
        return (255 * values).round().to(images.dtype) if as_bytes else values.to(images.dtype)

    def unnormalized(self, mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> Draw:
        """Return the draw for images x in [0, 1], of one for images (x - mean) / std.

        Args:
            mean: one number, or one for each channel.
            std: likewise.
            channels: of the images.
        """
        color = self.coarse_color
        if color is not None:
            color = at_least_float32(color)
            m, s = (color.new_tensor(v).expand(channels)[:, None, None] for v in (mean, std))
            weight, bias = color[:, :-channels], color[:, -channels:]
            if is_full(color, channels):
                weight = weight.unflatten(1, (channels, channels)) * s[:, None] / s
                bias, weight = s * bias - (weight * m).sum(2), weight.flatten(1, 2)
            else:
                bias = s * bias - weight * m
            color = torch.cat([weight, bias], dim=1)
        return self._replace(coarse_color=color, low=(0.0,), high=(1.0,))

    @property
    def batch(self) -> int:
        """How many images it is for."""
        return next(len(field) for field in (self.coarse_flow, self.coarse_color) if field is not None)

    def repeat(self, repeats: int) -> Draw:
        """The draw of a batch that holds every image `repeats` times in a row, as frames of a video."""
        flow, color = (
            f if f is None else f.repeat_interleave(repeats, dim=0) for f in (self.coarse_flow, self.coarse_color)
        )
        return self._replace(coarse_flow=flow, coarse_color=color)

    def sample(self, index: int) -> Draw:
        """The draw for one image of the batch."""
        flow, color = (f if f is None else f[index : index + 1] for f in (self.coarse_flow, self.coarse_color))
        return self._replace(coarse_flow=flow, coarse_color=color)

    def flow(self) -> Tensor | None:
        """The dense flow (B, 2, H, W)."""
        return None if self.coarse_flow is None else resize_field(self.coarse_flow, self.size, smooth=self.smooth)

    def warp(self, images: Tensor) -> Tensor:
        """Warp images of any channels, the first half of :meth:`apply`, in float32 at least.

        Raises:
            ValueError: if they are not as many, or of the size, that the draw is for.
        """
        self._check(images)
        images = at_least_float32(images)
        return images if self.coarse_flow is None else warp(images, self.coarse_flow, smooth=self.smooth)

    def _check(self, images: Tensor, *, recolors: bool = False) -> None:
        """Refuse images that the fields do not fit, which they would be applied to askew or in a mix of samples.

        Raises:
            ValueError: with what fits, and what came.
        """
        color = self.coarse_color
        field = color if self.coarse_flow is None else self.coarse_flow
        if field is None:
            return
        count = field.shape[0]  # not self.batch, which exports cannot follow
        if images.ndim != 4 or images.shape[0] != count or images.shape[2:] != self.size:
            raise ValueError(
                f"images must be (B, C, H, W) = ({count}, C, {self.size[0]}, {self.size[1]}) as the draw is, got "
                f"{tuple(images.shape)}; resize them, take repeat() or sample() of the draw, or draw anew"
            )
        channels = images.shape[1]
        if recolors and color is not None and not is_full(color, channels) and color.shape[1] != 2 * channels:
            raise ValueError(
                f"images must have the channels that the draw's color filter of {color.shape[1]} numbers is for, got "
                f"{channels}; use warp() for masks and depth maps, or draw from a configuration of {channels}"
            )

    def recolor(self, images: Tensor, original: Tensor | None = None) -> Tensor:
        """Recolor, the second half of :meth:`apply`, in float32 at least; `original` are the images before the first.

        Raises:
            ValueError: if they are not as many, of the size and the channels that the draw is for.
        """
        if self.coarse_color is None:
            return images
        self._check(images, recolors=True)
        images = at_least_float32(images)
        out = recolor(images, at_least_float32(self.coarse_color))
        original = at_least_float32((images if original is None else original).detach())
        return out.clamp(*widened(original, (self.low, self.high)))


class Trace(NamedTuple):
    """A draw, and what it came from: :meth:`Augmenter.trace` makes it."""

    draw: Draw
    masks: Tensor
    """(B, stages, tau_dim), of the dropout: 0 or 1 / (1 - p)."""
    strengths: Tensor | None
    """(B, 3), strength of each family, in the order of ``config.FAMILIES`` and the units of the configuration; None
    where the configuration draws none."""
    logits: Tensor | None
    """(B, stages, tau_dim), what E added to those of keeping each unit; None for ``dropout="fixed"``."""
