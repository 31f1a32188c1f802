"""Warping and recoloring of images and masks, and small copies of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learned_aug.functional.fields import at_least_float32, constant, resize_field, sampling_grid

__all__ = ["pooled", "recolor", "shrunk", "warp", "warp_mask"]


def warp(images: Tensor, flow: Tensor, *, smooth: bool = False) -> Tensor:
    """Sample images where the flow points, bilinearly; outside the image its border is repeated.

    Args:
        images: (B, C, H, W), floating.
        flow: (B, 2, h, w), (x, y), pixels of the images; interpolated if coarser than they are.
        smooth: interpolate as :func:`resize_field` does with it.

    Returns:
        (B, C, H, W) in the dtype of `images`, computed in float32 at least. A sample whose flow is 0 everywhere comes
        back unchanged, to the last bit.
    """
    flow = flow if flow.dtype == images.dtype else flow.to(torch.promote_types(images.dtype, flow.dtype))
    grid = sampling_grid(flow, (images.shape[-2], images.shape[-1]), smooth=smooth)
    source = images.to(grid.dtype)
    out = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # grid_sample's units round, by 1e-5 px at 224, hence the identity by itself is not exact.
    # Whether all points moved, the usual case, is worth asking where the answer costs no synchronization.
    if flow.device.type != "cpu" or torch.compiler.is_compiling() or not flow.detach().all():
        moved = flow.detach().flatten(1).any(1)
        exact = torch.where(moved[:, None, None, None], out, source)
        # The correction carries no gradient, so that of the flow stays true.
        out = exact.detach() + (out - out.detach()) if out.requires_grad else exact
    return out.to(images.dtype)


def is_full(color: Tensor, channels: int) -> bool:
    """Whether a color filter mixes the channels, instead of having a gain for each."""
    return channels > 1 and color.shape[1] == channels * channels + channels


def recolor(images: Tensor, color: Tensor) -> Tensor:
    """Add a color filter: x + delta x with delta x = c_w x + c_b; zero fields give x.

    Args:
        images: (B, C, H, W).
        color: of three channels (B, 12, h, w), c_w as row-major 3x3 (output channel, input channel) and c_b in the
            units of `images`; else (B, 2 C, h, w), a gain and an offset for each channel. Interpolated to the image;
            h = w = 1 is one filter for all of it.

    Returns:
        (B, C, H, W) in the dtype of `images`; not clamped.
    """
    channels = images.shape[1]
    full = is_full(color, channels)
    if full and color.shape[-2:] == (1, 1):
        color = color.to(torch.promote_types(images.dtype, color.dtype))
        matrix = color[:, :-channels, 0, 0].unflatten(1, (channels, channels))
        matrix = matrix + torch.eye(channels, dtype=color.dtype, device=color.device)
        pixels = images.flatten(2).to(color.dtype)
        return torch.baddbmm(color[:, -channels:, 0], matrix, pixels).view_as(images).to(images.dtype)
    color = resize_field(color, (images.shape[-2], images.shape[-1]))
    result = images + color[:, -channels:]
    if full:
        # Fused multiply-adds instead of a (B, 3, 3, H, W) product.
        for k in range(channels):
            result = torch.addcmul(result, color[:, k : channels * channels : channels], images[:, k : k + 1])
    else:
        result = torch.addcmul(result, color[:, :channels], images)
    return result.to(images.dtype)


SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def warp_mask(masks: Tensor, flow: Tensor, *, smooth: bool = False) -> Tensor:
    """Sample masks where the flow points, nearest pixel; outside the image its border is repeated, as in :func:`warp`.

    Args:
        masks: (B, ..., H, W), any dtype: no value is converted.
        flow: (B, 2, h, w), (x, y), pixels of the masks; interpolated if coarser than they are.
        smooth: interpolate as :func:`resize_field` does with it.

    Returns:
        (B, ..., H, W) in the dtype of `masks`.
    """
    height, width = masks.shape[-2:]
    d = resize_field(flow, (height, width), smooth=smooth)
    x = (d[:, 0] + torch.arange(width, device=d.device)).round().long().clamp(0, width - 1)
    y = (d[:, 1] + torch.arange(height, device=d.device)[:, None]).round().long().clamp(0, height - 1)
    batch, channels = len(masks), masks.shape[1:-2].numel()
    index = (y * width + x).view(batch, 1, height * width).expand(-1, channels, -1)
    bits = masks.view(SIGNED.get(masks.dtype, masks.dtype))  # of these torch 2.6 gathers none on a CPU
    return bits.reshape(batch, channels, height * width).gather(2, index).view(masks.shape).view(masks.dtype)


def shrunk(images: Tensor, side: int) -> Tensor:
    """Resize images (B, C, H, W) to a square of `side` pixels, antialiased."""
    # Means of neighbors, as often as halves fit, at a fraction of the time of an interpolation.
    for dim in (-2, -1):
        length = images.shape[dim]
        factor = 1
        while length % (2 * factor) == 0 and length // (2 * factor) >= side:
            factor *= 2
        if factor > 1:
            first, second, *rest = images.unflatten(dim, (-1, factor)).unbind(dim)
            images = first + second
            for part in rest:  # in place: fresh memory would cost more than the sums
                images.add_(part)
            images.div_(factor)
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


SMALL = 2**14  # numbers below which calls cost more than what they do


def pooled(images: Tensor, side: int) -> Tensor:
    """Resize images (B, C, H, W) to a square of `side` pixels: the means over as many equal parts, (B, C, side, side).

    Where `side` divides neither H nor W, the parts share pixels, which count by their share. The result is in float32
    at least.
    """
    x = at_least_float32(images)
    height, width = x.shape[-2:]
    if torch.compiler.is_compiling() or height % side or width % side:
        rows, columns = (_parts(side, length, x.dtype, x.device) for length in (height, width))
        return rows @ x @ columns.mT
    down, across = height // side, width // side
    if x.device.type != "cpu" or x.numel() <= SMALL or (x.requires_grad and torch.is_grad_enabled()):
        return F.avg_pool2d(x, (down, across))  # one call, but on a CPU three times the time of what follows
    if down >= 16:
        x = x.unflatten(-2, (side, down)).sum(-2)
        columns = _parts(side, width, x.dtype, x.device)
        means: Tensor = (x @ columns.mT).div_(down)
        return means
    for dim, factor in ((-2, down), (-1, across)):
        if factor > 1:
            first, second, *rest = x.unflatten(dim, (side, factor)).unbind(dim)
            x = first + second
            for part in rest:  # in place: fresh memory would cost more than the sums
                x.add_(part)
    small: Tensor = x.mul_(1 / (down * across)) if down * across > 1 else x
    return small


@constant
def _parts(side: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(side, length): the share of each of `length` pixels in the mean over each of `side` equal parts."""
    pixel = torch.arange(length, dtype=dtype, device=device)
    ends = torch.arange(side + 1, dtype=dtype, device=device)[:, None] * length / side
    # How much of the pixel lies in the part.
    share = torch.minimum(pixel + 1, ends[1:]) - torch.maximum(pixel, ends[:-1])
    return share.clamp(min=0) * side / length
