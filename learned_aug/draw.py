"""Fields once drawn for a batch, and how they are applied to images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learned_aug.functional import at_least_float32, recolor, recolor_into, resize_field, warp

__all__ = ["Augmented", "Draw", "Trace"]

SMALL = 2**14  # pixels of a batch below which the overhead of calls counts more than memory
CHUNK = 2**17  # pixels of a batch that are augmented at once on the CPU: more leaves the cache, less costs calls


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
    """(B, 12, h, w), c_w as row-major 3x3 and c_b in the units of the images; None without a color filter."""

    def apply(self, images: Tensor) -> Tensor:
        """Warp, then recolor (B, C, H, W): a new tensor in the dtype of `images`, float32 at least inside."""
        if torch.compiler.is_compiling() or images.device.type != "cpu" or images.numel() <= SMALL * images.shape[1]:
            return self._apply(images)
        trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (images, *self[1:]))
        if trained or self.coarse_flow is None:
            return self._apply(images)
        chunk = max(torch.get_num_threads(), CHUNK // (self.size[0] * self.size[1]))
        # Memory is taken once: on a CPU fresh pages, one fault each, cost more than the arithmetic on them.
        out = torch.empty(images.shape, dtype=torch.promote_types(images.dtype, torch.float32))
        scratch = torch.empty_like(out[:chunk])
        for k in range(0, len(images), chunk):
            part = Draw(self.size, *(t if t is None else t[k : k + chunk] for t in self[1:]))
            # A copy lies in the cache, where sampling along a flow takes a third of the time.
            values = scratch[: part.batch].copy_(images[k : k + chunk])
            warped = part.warp(values)
            if part.coarse_color is None:
                out[k : k + chunk] = warped
            else:
                recolor_into(out[k : k + chunk], warped, part.coarse_color, values)
        return out.to(images.dtype)

    def _apply(self, images: Tensor) -> Tensor:
        return self.recolor(self.warp(images)).to(images.dtype)

    @property
    def batch(self) -> int:
        """How many images it is for."""
        return next(len(field) for field in self[1:] if field is not None)

    def repeat(self, repeats: int) -> Draw:
        """The draw of a batch that holds every image `repeats` times in a row, as frames of a video."""
        return Draw(self.size, *(f if f is None else f.repeat_interleave(repeats, dim=0) for f in self[1:]))

    def flow(self) -> Tensor | None:
        """The dense flow (B, 2, H, W)."""
        return None if self.coarse_flow is None else resize_field(self.coarse_flow, self.size)

    def warp(self, images: Tensor) -> Tensor:
        """The first half of :meth:`apply`, in float32 at least."""
        images = at_least_float32(images)
        return images if self.coarse_flow is None else warp(images, self.coarse_flow)

    def recolor(self, images: Tensor) -> Tensor:
        """The second half of :meth:`apply`, in float32 at least."""
        if self.coarse_color is None:
            return images
        color = resize_field(self.coarse_color, self.size)
        return recolor(images, color[:, :9], color[:, 9:])


class Trace(NamedTuple):
    """A draw, and what it came from: :meth:`Augmenter.trace` makes it."""

    draw: Draw
    masks: Tensor
    """(B, stages, tau_dim), of the dropout: 0 or 1 / (1 - p)."""
    logits: Tensor | None
    """(B, stages, tau_dim), what E added to those of keeping each unit; None for ``dropout="fixed"``."""
