"""Warp, color filter and clamp in one pass over the pixels, on the CPU and without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_aug.functional.fields import constant, identity_grid, interpolation, without_autocast
from learned_aug.functional.images import is_full, recolor

__all__ = ["augmented"]

CHUNK = 2**16  # pixels that are augmented at once: more leaves the cache, less costs calls


@torch.no_grad()
@without_autocast
def augmented(
    images: Tensor,
    flow: Tensor | None,
    color: Tensor | None,
    bounds: tuple[tuple[float, ...], tuple[float, ...]],
    *,
    smooth: bool,
) -> Tensor:
    """Warp and recolor images, as :func:`warp`, :func:`recolor` and a clamp do one after the other.

    Images that lie in the cache are sampled along a flow in a third of the time. Therefore the batch is worked in
    chunks, and one filter for the whole image comes before the warp, whose weights sum to 1: the colors of a chunk are
    written where they are sampled. The clamp writes the result.

    Args:
        images: (B, C, H, W), uint8 (0 to 255, for fields of images in [0, 1]) or floating, on the CPU.
        flow: (B, 2, h, w), (x, y), pixels of the images; None for no warp.
        color: see :func:`recolor`; None for no color filter.
        bounds: least and largest value of recolored images, one number or one for each channel each, which is widened
            by the values of each image.
        smooth: see :func:`warp`.

    Returns:
        (B, C, H, W) in the dtype of `images`, computed in float32 at least.
    """
    batch, (height, width) = images.shape[0], images.shape[-2:]
    as_bytes = images.dtype == torch.uint8
    dtype = torch.float32 if as_bytes else torch.promote_types(images.dtype, torch.float32)
    chunk = max(1, min(batch, max(torch.get_num_threads(), CHUNK // (height * width))))
    # Memory is taken once: on a CPU fresh pages, one fault each, cost more than the arithmetic on them.
    out = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    scratch = torch.empty((chunk, *images.shape[1:]), dtype=dtype, device=images.device)
    raw = None if images.dtype == dtype else torch.empty_like(scratch)
    integers = scratch.new_empty(scratch.shape, dtype=torch.int16) if as_bytes else None
    warp = None if flow is None else _Warp(flow.to(dtype), (height, width), smooth)
    colors = None if color is None else _Filter(color.to(dtype), images.shape[1], as_bytes)
    for k in range(0, batch, chunk):
        here = slice(k, k + chunk)
        part = images[here]
        x = scratch[: part.shape[0]]
        source = part if raw is None else raw[: part.shape[0]].copy_(part)
        if colors is None or not colors.whole:
            x.copy_(source)
        else:
            colors.write(source, here, x)
        if warp is not None:
            x = warp(x, here)
        if colors is not None and not colors.whole:
            x = recolor(x, colors.color[here])
        if integers is not None:
            if colors is None or not colors.whole:
                x.add_(0.5)  # the conversion cuts off
            # Both conversions are fast; the direct one takes four times as long.
            out[here] = integers[: part.shape[0]].copy_(x.clamp_(0.5, 255.5))
        elif colors is None:
            out[here] = x
        else:
            low, high = _bounds(source, bounds)
            torch.clamp(x, low, high, out=out[here] if raw is None else x)  # type: ignore[arg-type]  # two of a kind
            if raw is not None:
                out[here] = x
    return out


class _Warp:
    """Samples slices of a batch along its flow."""

    def __init__(self, flow: Tensor, size: tuple[int, int], smooth: bool) -> None:
        points = (flow.shape[-2], flow.shape[-1])
        identity, scale = identity_grid(*points, *size, flow.dtype, flow.device)
        self.lines = torch.addcmul(identity, flow, scale)
        self.rows: Tensor | None = None
        if points != size:
            self.rows, columns = interpolation(*points, *size, smooth, flow.dtype, flow.device)
            self.lines = self.lines @ columns
        self.moved = None if flow.all() else flow.flatten(1).any(1)

    def __call__(self, images: Tensor, here: slice) -> Tensor:
        lines = self.lines[here]
        if self.moved is None or self.moved[here].all():
            return self.sampled(images, lines)
        # grid_sample's units round, by 1e-5 px at 224, hence what stays is not sampled.
        some = self.moved[here].nonzero()[:, 0]
        if some.numel():
            images[some] = self.sampled(images[some], lines[some])
        return images

    def sampled(self, images: Tensor, lines: Tensor) -> Tensor:
        grid = lines if self.rows is None else self.rows @ lines
        return torch.grid_sampler_2d(images, grid.permute(0, 2, 3, 1), 0, 1, False)  # bilinear, border


class _Filter:
    """A color filter in the units of the scratch: levels plus one half for bytes, if it is `whole`.

    Sampling does not change a constant, so that the half is still there when the conversion to bytes cuts off.
    """

    def __init__(self, color: Tensor, channels: int, as_bytes: bool) -> None:
        self.whole = color.shape[-2:] == (1, 1)
        weight, bias = color[:, :-channels], color[:, -channels:]
        if as_bytes:
            bias = bias * 255 + 0.5 * self.whole
        self.full = is_full(color, channels)
        if not self.whole:
            self.color = torch.cat([weight, bias], 1) if as_bytes else color
        elif self.full:
            self.weight = weight.reshape(-1, channels, channels) + _identity_matrix(channels, color.dtype)
            self.bias = bias.flatten(2)
        else:
            self.weight, self.bias = 1 + weight, bias

    def write(self, images: Tensor, here: slice, out: Tensor) -> None:
        """Write the recolored images of a slice."""
        if self.full:
            torch.baddbmm(self.bias[here], self.weight[here], images.flatten(2), out=out.flatten(2))
        else:
            torch.addcmul(self.bias[here], self.weight[here], images, out=out)


@constant
def _identity_matrix(size: int, dtype: torch.dtype) -> Tensor:
    """The identity, (size, size)."""
    return torch.eye(size, dtype=dtype)


def _bounds(
    images: Tensor, bounds: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[float, float] | tuple[Tensor, Tensor]:
    if len(bounds[0]) == len(bounds[1]) == 1:  # one pass where, as is usual, the images are within them
        ((low,), (high,)) = bounds
        if images.amin() >= low and images.amax() <= high:  # two thirds of the time of aminmax
            return low, high
    return widened(images, bounds)


def widened(images: Tensor, bounds: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[Tensor, Tensor]:
    """Widen bounds by the values of each image and channel, for no sample to depend on its batch.

    Args:
        images: (B, C, H, W), floating.
        bounds: least and largest value, one number or one for each channel each.

    Returns:
        Both, (B, C, 1, 1).
    """
    low, high = (images.new_tensor(ends)[:, None, None] for ends in bounds)
    # Two passes take a tenth of the time of aminmax along dimensions.
    least, largest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.minimum(low, least), torch.maximum(high, largest)
