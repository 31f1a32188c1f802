"""Pure tensor functions of the augmentation network: Eq. 20, smoothing, warping, recolouring.

Conventions, used everywhere after :func:`flow_field`:

* pixel centres lie at integers, x runs right and y down;
* a *flow* d is (B, 2, H, W), channels (x, y), in pixels: output pixel q shows the input at s(q) = q + d(q);
* a *grid* is s in the units of :func:`torch.nn.functional.grid_sample` with ``align_corners=False``, (B, H, W, 2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["flow_field", "recolor", "resize_field", "sampling_grid", "smooth", "warp"]


def flow_field(warp_weight: Tensor, warp_bias: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Displacement of the point-wise affine map, Eq. 20 less the identity: s(q) - q = s_w(q) (q - c) + s_b(q).

    The paper writes pixels as (i, j), row first; the one conversion to (x, y) happens here. c is the image centre, so
    that a constant s_w rotates, scales and shears about it (the paper leaves the origin open; any other only moves a
    part of s_w into s_b).

    Args:
        warp_weight: s_w, (B, 4, h, w), row-major 2x2 in (i, j), dimensionless; 0 is the identity.
        warp_bias: s_b, (B, 2, h, w), (i, j), pixels.
        size: (H, W) in pixels of the image over which the h x w points are spread, first and last on the border
            pixels; by default one point per pixel.

    Returns:
        Flow (B, 2, h, w), (x, y), pixels, in float32 at least (bfloat16 coordinates are off by .2 px at 224).
    """
    h, w = warp_bias.shape[-2:]
    height, width = size if size is not None else (h, w)
    dtype, device = torch.promote_types(warp_bias.dtype, torch.float32), warp_bias.device
    i = torch.linspace(-(height - 1) / 2, (height - 1) / 2, h, dtype=dtype, device=device)[:, None]
    j = torch.linspace(-(width - 1) / 2, (width - 1) / 2, w, dtype=dtype, device=device)
    of_i, of_j = warp_weight.to(dtype).reshape(len(warp_weight), 2, 2, h, w).unbind(2)
    return torch.addcmul(torch.addcmul(warp_bias.to(dtype), of_i, i), of_j, j).flip(1)


def smooth(field: Tensor, window: int = 4) -> Tensor:
    """Average pooling with stride 1 that keeps the size; the paper's 4x4 pooling of the spatial field.

    The borders are replicated, so a constant field (zero, hence the identity) comes back unchanged. An even window has
    no centre: it reaches one pixel further right and down, which moves the field, not the image, by half a pixel.

    Args:
        field: (B, C, H, W).
        window: side of the pooling window, pixels.

    Returns:
        (B, C, H, W).
    """
    before, after = (window - 1) // 2, window // 2
    padded = F.pad(field, (before, after, before, after), mode="replicate")
    # A box is separable, and sums of slices cost a quarter of F.avg_pool2d with stride 1 on a CPU.
    height, width = field.shape[-2:]
    rows = sum((padded[:, :, k : k + height] for k in range(1, window)), padded[:, :, :height])
    return sum((rows[..., k : k + width] for k in range(1, window)), rows[..., :width]) / window**2


def resize_field(field: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize whose border points stay on the border, so that an affine flow stays exactly affine.

    Args:
        field: (..., h, w); a flow keeps its units, scaling it to the new image is the caller's business.
        size: (H, W) of the result.

    Returns:
        (..., H, W) in float32 at least, under autocast too.
    """
    field = field.to(torch.promote_types(field.dtype, torch.float32))
    if field.shape[-2:] == size:
        return field
    if torch.is_autocast_enabled(field.device.type):
        with torch.autocast(field.device.type, enabled=False):
            return resize_field(field, size)
    # For the few points of a control grid, two products with small matrices take a tenth of F.interpolate's time.
    (h, w), (height, width) = field.shape[-2:], size
    columns = _interpolation(w, width, field)
    rows = columns if (h, height) == (w, width) else _interpolation(h, height, field)
    return rows.T @ (field @ columns)


def _interpolation(points: int, length: int, like: Tensor) -> Tensor:
    """Matrix (points, length) that interpolates linearly from `points` to `length` positions, border on border."""
    eye = torch.eye(points, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], length, mode="linear", align_corners=True)[0]


def sampling_grid(flow: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Add the identity to a flow and convert to grid_sample's units: (2 s + 1) / size - 1, ``align_corners=False``.

    Args:
        flow: (B, 2, h, w), (x, y), pixels.
        size: (H, W) of the image over which a coarser flow is interpolated; by default (h, w).

    Returns:
        (B, H, W, 2), float32 at least; a view of two planes, which grid_sample reads as fast.
    """
    h, w = flow.shape[-2:]
    height, width = size if size is not None else (h, w)
    dtype, device = torch.promote_types(flow.dtype, torch.float32), flow.device
    x = torch.linspace(1 / width - 1, 1 - 1 / width, w, dtype=dtype, device=device)
    y = torch.linspace(1 / height - 1, 1 - 1 / height, h, dtype=dtype, device=device)[:, None]
    flow = flow.to(dtype)
    # The identity is linear, so it may be added before the interpolation, where the points are few.
    coarse = torch.stack([x + flow[:, 0] * (2 / width), y + flow[:, 1] * (2 / height)], dim=1)
    return resize_field(coarse, (height, width)).permute(0, 2, 3, 1)


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Sample images where the flow points, bilinearly; outside the image its border is repeated.

    Args:
        images: (B, C, H, W), floating.
        flow: (B, 2, h, w), (x, y), pixels of the images; interpolated if coarser than they are.

    Returns:
        (B, C, H, W) in the dtype of `images`, computed in float32 at least. A sample whose flow is 0 everywhere comes
        back unchanged, to the last bit.
    """
    flow = flow.to(torch.promote_types(images.dtype, flow.dtype))
    grid = sampling_grid(flow, (images.shape[-2], images.shape[-1]))
    source = images.to(grid.dtype)
    out = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # grid_sample's units round, by 1e-5 px at 224, hence the identity by itself is not exact.
    moved = flow.detach().flatten(1).any(1)
    # Whether all samples moved is worth asking where the answer costs no synchronisation.
    if flow.device.type != "cpu" or torch.compiler.is_compiling() or not moved.all():
        exact = torch.where(moved[:, None, None, None], out, source)
        # The correction carries no gradient, so that of the flow stays true.
        out = exact.detach() + (out - out.detach()) if out.requires_grad else exact
    return out.to(images.dtype)


def recolor(images: Tensor, color_weight: Tensor, color_bias: Tensor) -> Tensor:
    """Add a per-pixel colour filter: x + delta x with delta x = c_w x + c_b; zero fields give x.

    Args:
        images: (B, 3, H, W).
        color_weight: c_w, (B, 9, H, W), row-major 3x3 (output channel, input channel).
        color_bias: c_b, (B, 3, H, W), in the units of `images`.

    Returns:
        (B, 3, H, W) in the dtype of `images`; not clamped, since the range of normalised images is the caller's.
    """
    weight = color_weight.reshape(len(images), 3, 3, *color_weight.shape[2:])
    out = images + color_bias
    for channel in range(3):  # three fused multiply-adds instead of a (B, 3, 3, H, W) product
        out = torch.addcmul(out, weight[:, :, channel], images[:, channel : channel + 1])
    return out.to(images.dtype)
