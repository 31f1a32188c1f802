"""Fields once drawn for a batch, and how they are applied to images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learned_aug.functional import recolor, resize_field, warp
from learned_aug.functional.fields import at_least_float32

__all__ = ["Augmented", "Draw", "Trace"]

SMALL = 2**14  # pixels of a batch below which the overhead of calls counts more than memory
CHUNK = 2**16  # pixels of a batch that are augmented at once on the CPU: more leaves the cache, less costs calls


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

    Applying one draw to several tensors (frames of a video, an image and its mask) keeps them aligned.
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
        """
        fields = self.coarse_flow, self.coarse_color
        plain = torch.compiler.is_compiling() or images.device.type != "cpu"
        if plain or images.numel() <= SMALL * images.shape[1] or self.coarse_flow is None:
            return self._apply(images)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (images, *fields)):
            return self._apply(images)
        chunk = max(torch.get_num_threads(), CHUNK // (self.size[0] * self.size[1]))
        color = None if self.coarse_color is None else at_least_float32(self.coarse_color)
        whole = color is not None and color.shape[-2:] == (1, 1)
        bounds = None if color is None else self.bounds(images)
        # Memory is taken once: on a CPU fresh pages, one fault each, cost more than the arithmetic on them.
        out = torch.empty(images.shape, dtype=torch.promote_types(images.dtype, torch.float32))
        scratch = torch.empty_like(out[:chunk])
        for k in range(0, images.shape[0], chunk):
            part = images[k : k + chunk]
            # Images that lie in the cache are sampled along a flow in a third of the time. One filter for the whole
            # image may come before the warp, whose weights sum to 1, and be the copy.
            values = scratch[: part.shape[0]]
            if color is not None and whole:
                recolor(part.to(out.dtype), color[k : k + chunk], out=values)
            else:
                values.copy_(part)
            values = warp(values, self.coarse_flow[k : k + chunk], smooth=self.smooth)
            if color is not None and not whole:
                values = recolor(values, color[k : k + chunk])
            if bounds is None:
                out[k : k + chunk] = values
            else:
                torch.clamp(values, *(bound[k : k + chunk] for bound in bounds), out=out[k : k + chunk])
        return out.to(images.dtype)

    def _apply(self, images: Tensor) -> Tensor:
        return self.recolor(self.warp(images), images).to(images.dtype)

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

    def flow(self) -> Tensor | None:
        """The dense flow (B, 2, H, W)."""
        return None if self.coarse_flow is None else resize_field(self.coarse_flow, self.size, smooth=self.smooth)

    def warp(self, images: Tensor) -> Tensor:
        """The first half of :meth:`apply`, in float32 at least."""
        images = at_least_float32(images)
        return images if self.coarse_flow is None else warp(images, self.coarse_flow, smooth=self.smooth)

    def recolor(self, images: Tensor, original: Tensor | None = None) -> Tensor:
        """The second half of :meth:`apply`, in float32 at least; `original` are the images before the first half."""
        if self.coarse_color is None:
            return images
        images = at_least_float32(images)
        out = recolor(images, at_least_float32(self.coarse_color))
        return out.clamp(*self.bounds(images if original is None else original))

    def bounds(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest values, (B, C, 1, 1): those of images in their units, widened by each channel's own."""
        # By image, so that no sample depends on its batch.
        values = at_least_float32(images.detach())
        low, high = (values.new_tensor(ends)[:, None, None] for ends in (self.low, self.high))
        # Two passes take a tenth of the time of aminmax along dimensions.
        least, largest = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
        return torch.minimum(low, least), torch.maximum(high, largest)


class Trace(NamedTuple):
    """A draw, and what it came from: :meth:`Augmenter.trace` makes it."""

    draw: Draw
    masks: Tensor
    """(B, stages, tau_dim), of the dropout: 0 or 1 / (1 - p)."""
    strengths: Tensor | None
    """(B, 3), strength of each family, in the order of ``nets.FAMILIES`` and the units of the configuration; None where
    the configuration draws none."""
    logits: Tensor | None
    """(B, stages, tau_dim), what E added to those of keeping each unit; None for ``dropout="fixed"``."""
