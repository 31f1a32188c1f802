"""Flows and other fields: how they are made of coarse points, and what they are in grid_sample's units."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["affine_flow", "flow_field", "resize_field", "sampling_grid", "smooth"]

T = TypeVar("T")
P = ParamSpec("P")


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """Compute in the dtypes given, on the first argument's device: bfloat16 coordinates are off by 0.2 px at 224."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        device = cast(Tensor, args[0] if args else next(iter(kwargs.values()))).device.type
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def constant(make: Callable[..., T]) -> Callable[..., T]:
    """Keep the last few results; but while compiling, make them part of the graph."""

    @functools.lru_cache(maxsize=32)
    def kept(*key: Hashable) -> T:
        # So that autograd may use it later, and whatever the default device is by then.
        with torch.inference_mode(False), torch.device("cpu"):
            return make(*key)

    def get(*key: Hashable) -> T:
        return make(*key) if torch.compiler.is_compiling() else kept(*key)

    return get


@constant
def _positions(
    h: int, w: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows (h, 1) and columns (w,) of points spread over height x width pixels, from the center, pixels."""
    i = torch.linspace(-(height - 1) / 2, (height - 1) / 2, h, dtype=dtype, device=device)
    j = torch.linspace(-(width - 1) / 2, (width - 1) / 2, w, dtype=dtype, device=device)
    return i[:, None], j


@constant
def interpolation(
    h: int, w: int, height: int, width: int, smooth: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Matrices (height, h) and (w, width) that interpolate between h x w points, border on border."""
    basis = _spline if smooth else _linear
    return basis(h, height).to(device, dtype), basis(w, width).T.contiguous().to(device, dtype)


def _linear(points: int, length: int) -> Tensor:
    """What each of `points` adds to each of `length` positions, (length, points): piecewise linear."""
    return F.interpolate(torch.eye(points, dtype=torch.float64)[None], length, mode="linear", align_corners=True)[0].T


def _spline(points: int, length: int) -> Tensor:
    """The same for the uniform cubic B-spline, continued beyond the border by straight lines.

    Like linear interpolation it gives a constant and a linear sequence of points back, and the points at the border
    themselves; it has no kinks, and does not pass through the inner points.
    """
    at = _spread(length, points, torch.float64)
    cell = at.floor().clamp(max=max(0, points - 2))
    t = (at - cell)[:, None]
    weights = torch.cat([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    index = cell.long()[:, None] + torch.arange(4)  # among the points with one more on either side
    wide = torch.zeros(length, points + 2, dtype=torch.float64).scatter_(1, index, weights)
    matrix = wide[:, 1:-1].clone()
    matrix[:, :2] += wide[:, :1] * torch.tensor([2.0, -1.0], dtype=torch.float64)
    matrix[:, -2:] += wide[:, -1:] * torch.tensor([-1.0, 2.0], dtype=torch.float64)
    return matrix


@constant
def identity_grid(
    h: int, w: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The identity in grid_sample's units at h x w points (2, h, w); and what a pixel is in these units (2, 1, 1)."""
    # Sizes only multiply and divide tensors, so that they may be left open in an export.
    x = (2 * _spread(w, width, dtype, device) + 1) / width - 1
    y = (2 * _spread(h, height, dtype, device) + 1) / height - 1
    pixel = torch.full((1,), 2.0, dtype=dtype, device=device)
    scale = torch.cat([pixel / width, pixel / height])
    return torch.stack(torch.meshgrid(x, y, indexing="xy")), scale[:, None, None]


def _spread(points: int, length: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Positions (points,) from 0 to length - 1."""
    return torch.arange(points, dtype=dtype, device=device) * (length - 1) / max(points - 1, 1)


def same_size(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes (h, w) are equal; no while one is left open in an export, which asking would fix."""
    return not any(isinstance(side, torch.SymInt) for side in (*one, *other)) and one == other


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; the rest as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def flow_field(warp_weight: Tensor, warp_bias: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Displacement of the point-wise affine map, Eq. 20 less the identity: s(q) - q = s_w(q) (q - c) + s_b(q).

    The paper writes pixels as (i, j), row first; the one conversion to (x, y) happens here. c is the image center, so
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
    warp_weight, warp_bias = at_least_float32(warp_weight), at_least_float32(warp_bias)
    i, j = _positions(h, w, *(size or (h, w)), warp_bias.dtype, warp_bias.device)
    of_i, of_j = warp_weight.unflatten(1, (2, 2)).unbind(2)
    return torch.addcmul(torch.addcmul(warp_bias, of_i, i), of_j, j).flip(1)


def affine_flow(generator: Tensor, points: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Displacement of one affine map of the whole image about its center: (exp(A) - I) (q - c) + b.

    The exponential makes a rotation of an antisymmetric A, and a zoom of its trace, at any strength; it is taken to the
    fourth order.

    Args:
        generator: (B, 6): A as row-major 2x2 in (i, j), dimensionless, and b, (i, j), pixels; 0 is the identity.
        points: (h, w), at which the flow is wanted; two along each side determine it.
        size: (H, W) of the image over which they are spread, first and last on the border pixels.

    Returns:
        Flow (B, 2, h, w), (x, y), pixels, in float32 at least.
    """
    generator = at_least_float32(generator)
    a = generator[:, :4].view(-1, 2, 2)
    map = a / 4
    for k in (3, 2, 1):
        map = torch.baddbmm(a, a, map, beta=1 / k, alpha=1 / k)
    weight, bias = map.reshape(-1, 4, 1, 1), generator[:, 4:, None, None]
    return flow_field(weight, bias.expand(-1, -1, *points), size)


def smooth(field: Tensor, window: int = 4) -> Tensor:
    """Average pooling with stride 1 that keeps the size; the paper's 4x4 pooling of the spatial field.

    The borders are replicated, so a constant field (zero, hence the identity) comes back unchanged. An even window has
    no center: it reaches one pixel further right and down, which moves the field, not the image, by half a pixel.

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


@without_autocast
def resize_field(field: Tensor, size: tuple[int, int], *, smooth: bool = False) -> Tensor:
    """Bilinear or spline resize whose border points stay on the border, so that an affine flow stays exactly affine.

    Args:
        field: (..., h, w); a flow keeps its units, scaling it to the new image is the caller's business.
        size: (H, W) of the result.
        smooth: interpolate by cubic B-splines, without kinks at the points, instead of linearly.

    Returns:
        (..., H, W) in float32 at least, under autocast too.
    """
    field = at_least_float32(field)
    if field.shape[-2:] == (1, 1) or same_size(field.shape[-2:], size):
        return field.expand(*field.shape[:-2], *size)
    # For the few points of a control grid, two products with small matrices take a tenth of F.interpolate's time.
    rows, columns = interpolation(*field.shape[-2:], *size, smooth, field.dtype, field.device)
    return rows @ (field @ columns)


def sampling_grid(flow: Tensor, size: tuple[int, int] | None = None, *, smooth: bool = False) -> Tensor:
    """Add the identity to a flow and convert to grid_sample's units: (2 s + 1) / size - 1, ``align_corners=False``.

    Args:
        flow: (B, 2, h, w), (x, y), pixels.
        size: (H, W) of the image over which a coarser flow is interpolated; by default (h, w).
        smooth: interpolate as :func:`resize_field` does with it.

    Returns:
        (B, H, W, 2), float32 at least; a view of two planes, which grid_sample reads as fast.
    """
    h, w = flow.shape[-2:]
    height, width = size if size is not None else (h, w)
    flow = at_least_float32(flow)
    identity, scale = identity_grid(h, w, height, width, flow.dtype, flow.device)
    # The identity is linear, so it may be added before the interpolation, where the points are few.
    return resize_field(torch.addcmul(identity, flow, scale), (height, width), smooth=smooth).permute(0, 2, 3, 1)
