"""Pure tensor functions of the augmentation network: Eq. 20, smoothing, recoloring, warping of all that is labeled.

Conventions, used everywhere after :func:`flow_field`:

* pixel centers lie at integers, x runs right and y down;
* a *flow* d is (B, 2, H, W), channels (x, y), in pixels: output pixel q shows the input at s(q) = q + d(q);
* a *grid* is s in the units of :func:`torch.nn.functional.grid_sample` with ``align_corners=False``, (B, H, W, 2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "affine_flow",
    "flow_field",
    "recolor",
    "resize_field",
    "sampling_grid",
    "shrunk",
    "smooth",
    "warp",
    "warp_boxes",
    "warp_mask",
    "warp_points",
    "warp_rotated_boxes",
]

T = TypeVar("T")


def constant(make: Callable[..., T]) -> Callable[..., T]:
    """Keep the last few results; but while compiling, make them part of the graph."""

    @functools.lru_cache(maxsize=32)
    def kept(*key: Hashable) -> T:
        with torch.inference_mode(False):  # so that autograd may use it later
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
def _interpolation(
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
    at = torch.linspace(0, points - 1, length, dtype=torch.float64)
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
def _identity_grid(
    h: int, w: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The identity in grid_sample's units at h x w points (2, h, w); and what a pixel is in these units (2, 1, 1)."""
    x = torch.linspace(1 / width - 1, 1 - 1 / width, w, dtype=dtype, device=device)
    y = torch.linspace(1 / height - 1, 1 - 1 / height, h, dtype=dtype, device=device)
    scale = torch.tensor([2 / width, 2 / height], dtype=dtype, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy")), scale[:, None, None]


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
    square = a @ a
    map = a + square / 2 + (square @ a) / 6 + (square @ square) / 24
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
    if field.shape[-2:] in (size, (1, 1)):
        return field.expand(*field.shape[:-2], *size)
    if torch.is_autocast_enabled(field.device.type):
        with torch.autocast(field.device.type, enabled=False):
            return resize_field(field, size, smooth=smooth)
    # For the few points of a control grid, two products with small matrices take a tenth of F.interpolate's time.
    rows, columns = _interpolation(*field.shape[-2:], *size, smooth, field.dtype, field.device)
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
    identity, scale = _identity_grid(h, w, height, width, flow.dtype, flow.device)
    # The identity is linear, so it may be added before the interpolation, where the points are few.
    return resize_field(torch.addcmul(identity, flow, scale), (height, width), smooth=smooth).permute(0, 2, 3, 1)


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


def recolor(images: Tensor, color: Tensor, out: Tensor | None = None) -> Tensor:
    """Add a color filter: x + delta x with delta x = c_w x + c_b; zero fields give x.

    Args:
        images: (B, C, H, W).
        color: of three channels (B, 12, h, w), c_w as row-major 3x3 (output channel, input channel) and c_b in the
            units of `images`; else (B, 2 C, h, w), a gain and an offset for each channel. Interpolated to the image;
            h = w = 1 is one filter for all of it.
        out: memory for the result, contiguous, where autograd is not wanted.

    Returns:
        (B, C, H, W) in the dtype of `images`; not clamped.
    """
    channels = images.shape[1]
    full = channels > 1 and color.shape[1] == channels * channels + channels
    if full and color.shape[-2:] == (1, 1):
        color = color.to(torch.promote_types(images.dtype, color.dtype))
        matrix = color[:, :-channels, 0, 0].unflatten(1, (channels, channels))
        matrix = matrix + torch.eye(channels, dtype=color.dtype, device=color.device)
        pixels = images.flatten(2).to(color.dtype)
        flat = None if out is None or out.dtype != color.dtype else out.view_as(pixels)
        result = torch.baddbmm(color[:, -channels:, 0], matrix, pixels, out=flat).view_as(images).to(images.dtype)
        return result if out is None or flat is not None else out.copy_(result)
    color = resize_field(color, (images.shape[-2], images.shape[-1]))
    result = images + color[:, -channels:]
    if full:
        # Fused multiply-adds instead of a (B, 3, 3, H, W) product.
        for k in range(channels):
            result = torch.addcmul(result, color[:, k : channels * channels : channels], images[:, k : k + 1])
    else:
        result = torch.addcmul(result, color[:, :channels], images)
    result = result.to(images.dtype)
    return result if out is None else out.copy_(result)


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
    return masks.reshape(batch, channels, height * width).gather(2, index).view(masks.shape)


@torch.no_grad()
def warp_points(points: Tensor, flow: Tensor, steps: int = 16) -> tuple[Tensor, Tensor]:
    """Where points of the input appear in the output: solves q + d(q) = p for q by Newton's method.

    The start is the nearest source among at most 32 x 32 output pixels; the Jacobian is that of the bilinear cell.
    Beyond one pixel outside the image the flow is continued as a constant: what leaves the canvas stays outside.

    Args:
        points: (B, N, 2), (x, y), pixel centers at integers.
        flow: (B, 2, H, W), (x, y), pixels, one vector per pixel of the image.
        steps: at most this many; two or three suffice where the flow is smooth.

    Returns:
        The points (B, N, 2), float32 at least, and |q + d(q) - p| (B, N), pixels: below 1e-3 where one was found.
        A flow that folds has several solutions or none; then the best one met comes back. Neither carries a gradient.
    """
    p = points.to(torch.promote_types(torch.promote_types(points.dtype, flow.dtype), torch.float32))
    flow = flow.to(p.dtype)
    height, width = flow.shape[-2:]
    stride = math.ceil(max(height, width) / 32)
    y, x = (torch.arange(0, n, stride, dtype=p.dtype, device=p.device) for n in (height, width))
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(1, -1, 2)
    sources = pixels + flow[:, :, ::stride, ::stride].flatten(2).mT
    nearest = torch.cdist(p, sources).argmin(dim=-1, keepdim=True)
    q = pixels.expand(len(p), -1, -1).gather(1, nearest.expand(-1, -1, 2))
    best, residual = q, torch.full_like(p[..., 0], math.inf)
    for _ in range(steps + 1):
        d, dx, dy = _flow_at(flow, q)
        error = q + d - p
        length = error.norm(dim=-1)
        better = length < residual
        best, residual = torch.where(better[..., None], q, best), torch.where(better, length, residual)
        if not (residual > 1e-4).any():
            break
        # The inverse of the 2x2 matrix whose columns are (1, 0) + dx and (0, 1) + dy.
        a, b, c, e = 1 + dx[..., 0], dy[..., 0], dx[..., 1], 1 + dy[..., 1]
        det = a * e - b * c
        step = torch.stack([e * error[..., 0] - b * error[..., 1], a * error[..., 1] - c * error[..., 0]], dim=-1)
        # Where the flow is about to fold the plain fixed-point step is the safer one.
        q = q - torch.where(det.abs()[..., None] > 0.05, step / det[..., None], error)
    return best, residual


def _flow_at(flow: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flow at q (B, N, 2), and its derivatives by x and by y: (B, N, 2) each."""
    height, width = flow.shape[-2:]
    inside = torch.stack([q[..., 0].clamp(-1, width), q[..., 1].clamp(-1, height)], dim=-1)
    x0 = inside[..., 0].floor().long().clamp(0, max(0, width - 2))
    y0 = inside[..., 1].floor().long().clamp(0, max(0, height - 2))
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    fx, fy = (inside[..., 0] - x0)[..., None], (inside[..., 1] - y0)[..., None]
    values = flow.flatten(2).mT

    def at(y: Tensor, x: Tensor) -> Tensor:
        return values.gather(1, (y * width + x)[..., None].expand(-1, -1, 2))

    top, bottom = at(y0, x0), at(y1, x0)
    top_slope, bottom_slope = at(y0, x1) - top, at(y1, x1) - bottom
    slope = torch.lerp(top_slope, bottom_slope, fy)
    top, bottom = top + top_slope * fx, bottom + bottom_slope * fx
    free = inside == q
    return torch.lerp(top, bottom, fy), slope * free[..., :1], (bottom - top) * free[..., 1:]


EDGE_POINTS = 16  # of a box, at first; then as many again around each outermost one, twice


def warp_boxes(boxes: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes around what the flow makes of boxes, exact to .05 px: points of the edges through :func:`warp_points`.

    Args:
        boxes: (B, N, 4), (x1, y1, x2, y2), edges: a box over pixel 0 alone spans 0 to 1.
        flow: (B, 2, H, W), (x, y), pixels.

    Returns:
        The boxes (B, N, 4), float32 at least, not clamped; and the largest residual of the points of each, (B, N).
    """
    corners = at_least_float32(boxes)[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(-1, (4, 2))
    low, high, residual = _extent(corners, torch.eye(2, dtype=corners.dtype, device=corners.device), flow)
    return torch.cat([low, high], dim=-1), residual


def warp_rotated_boxes(corners: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`warp_boxes`, for rectangles in any direction; the flow turns them by its mean rotation over the box.

    Args:
        corners: (B, N, 4, 2), (x, y), edges: top left, top right, bottom right, bottom left of the upright object.
        flow: (B, 2, H, W), (x, y), pixels.

    Returns:
        The corners (B, N, 4, 2) of rectangles, in the same order; and the residuals (B, N), pixels.
    """
    corners = at_least_float32(corners)
    start = torch.arange(4, dtype=corners.dtype, device=corners.device).expand(corners.shape[:-1])
    one, two, three, four = _warp_outline(corners, start, flow)[0].unbind(-2)
    across, down = (two - one) + (three - four), (four - one) + (three - two)
    # The direction of the width: the first edges as they are, the second ones turned back by a right angle.
    u = across + torch.stack([down[..., 1], -down[..., 0]], dim=-1)
    u = u / u.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    v = torch.stack([-u[..., 1], u[..., 0]], dim=-1)
    low, high, residual = _extent(corners, torch.stack([u, v], dim=-1), flow)
    (left, top), (right, bottom) = low.unbind(-1), high.unbind(-1)
    ends = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return torch.stack([a[..., None] * u + b[..., None] * v for a, b in ends], dim=-2), residual


def _extent(corners: Tensor, axes: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Extent of warped boxes (B, N, 4, 2) along two axes, columns of (..., 2, 2); and the largest residual (B, N)."""
    spacing = 1 / EDGE_POINTS
    at = torch.arange(0, 4, spacing, dtype=corners.dtype, device=corners.device).expand(*corners.shape[:2], -1)
    near = torch.linspace(-1, 1, EDGE_POINTS + 1, dtype=corners.dtype, device=corners.device)
    worst = torch.zeros_like(corners[..., 0, 0])
    for _ in range(3):
        points, residual = _warp_outline(corners, at, flow)
        worst = torch.maximum(worst, residual.amax(dim=-1))
        along = points @ axes
        (low, lowest), (high, highest) = along.min(dim=-2), along.max(dim=-2)
        # Again around the four outermost points, which `near` contains.
        outermost = at.gather(-1, torch.cat([lowest, highest], dim=-1))
        at = (outermost[..., None] + spacing * near).flatten(-2) % 4
        spacing *= 2 / EDGE_POINTS
    return low, high, worst


def _warp_outline(corners: Tensor, at: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Points of boxes' edges (B, N, 4, 2), `at` (B, N, P) edges from the first corner: warped, and their residuals."""
    edge = at.long().clamp(max=3)  # 4 is the first corner, after rounding
    start, end = (c.gather(-2, edge[..., None].expand(-1, -1, -1, 2)) for c in (corners, corners.roll(-1, dims=-2)))
    outline = torch.lerp(start, end, (at - edge)[..., None])
    # A pixel's center is half a pixel inside its edge.
    points, residual = warp_points(outline.flatten(1, 2) - 0.5, flow)
    return points.view(outline.shape) + 0.5, residual.view(at.shape)


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
