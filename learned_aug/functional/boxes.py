"""Boxes through a flow: the extent of what becomes of their edges."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_aug.functional.fields import at_least_float32, constant, without_autocast
from learned_aug.functional.points import Inverse

__all__ = ["warp_boxes", "warp_rotated_boxes"]

EDGE_POINTS = 32  # of a box, at first; then as many again around each outermost one, as often as needed
ROTATED_POINTS = 16  # of a rotated one, at first; then as many again around each outermost one, twice
EXTREME = 0.02  # pixels that the extremes of an edge may be off for want of points


@torch.no_grad()
@without_autocast
def warp_boxes(
    boxes: Tensor, flow: Tensor, size: tuple[int, int] | None = None, *, smooth: bool = False
) -> tuple[Tensor, Tensor]:
    """Boxes around what the flow makes of boxes, exact to 0.05 px: points of the edges through the flow's inverse.

    Args:
        boxes: (B, N, 4), (x1, y1, x2, y2), edges: a box over pixel 0 alone spans 0 to 1.
        flow: (B, 2, h, w), (x, y), pixels.
        size: see :func:`warp_points`.
        smooth: see :func:`warp_points`.

    Returns:
        The boxes (B, N, 4), float32 at least, not clamped; and the largest residual of the points of each, (B, N).
    """
    values = at_least_float32(boxes)
    if not boxes.shape[1]:
        return values, values[..., 0]
    batch, count = boxes.shape[:2]
    values = values.to(torch.promote_types(values.dtype, flow.dtype))
    inverse = Inverse(flow.to(values.dtype), size, smooth=smooth)
    ends = values[..., [0, 2, 2, 0, 0, 1, 1, 3, 3, 1]].view(batch, count, 2, 5).transpose(1, 2)  # (B, 2, N, 5)
    steps = ends.diff(dim=-1)
    longest, curved = float(steps.abs().max()), 3 * inverse.bend()
    # Half as many points where they are enough, as with few pixels or straight flows.
    points = EDGE_POINTS // 2 if curved * (longest * 2 / EDGE_POINTS) ** 2 / 8 <= EXTREME else EDGE_POINTS
    at = _edges(points, values.dtype, values.device)
    outline = torch.addcmul(ends[..., :4, None], steps[..., None], at[:points]).flatten(-2)
    spacing = 1 / points
    while True:
        step = spacing * longest
        enough = curved * (step**2 / 8 if step > 2 else step / 4) <= EXTREME or step < 0.02
        q, residual = inverse((outline - 0.5).flatten(2))
        q = q.view(batch, 2, count, -1)
        if enough:
            low, high = q.aminmax(dim=3)
            return torch.cat([low, high], 1).mT + 0.5, residual.view(batch, count, -1).amax(2)
        if spacing == 1 / points:
            at = at.expand(batch, count, -1)
        outermost = at.gather(2, torch.cat([q.argmin(3), q.argmax(3)], 1).mT)
        near = torch.linspace(-spacing, spacing, EDGE_POINTS + 1, dtype=ends.dtype, device=ends.device)
        at = (outermost[..., None] + near).flatten(2) % 4
        spacing *= 2 / EDGE_POINTS
        edge = at.long().clamp(max=3)  # 4 is the first corner, after rounding
        index = edge[:, None].expand(-1, 2, -1, -1)
        outline = torch.addcmul(ends.gather(3, index), steps.gather(3, index), (at - edge)[:, None])


@constant
def _edges(points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Positions along the outline of a box, in edges from its first corner."""
    return torch.arange(0, 4 * points, dtype=dtype, device=device) / points


@torch.no_grad()
@without_autocast
def warp_rotated_boxes(
    corners: Tensor, flow: Tensor, size: tuple[int, int] | None = None, *, smooth: bool = False
) -> tuple[Tensor, Tensor]:
    """As :func:`warp_boxes`, for rectangles in any direction; the flow turns them by its mean rotation over the box.

    Args:
        corners: (B, N, 4, 2), (x, y), edges: top left, top right, bottom right, bottom left of the upright object.
        flow: (B, 2, h, w), (x, y), pixels.
        size: see :func:`warp_points`.
        smooth: see :func:`warp_points`.

    Returns:
        The corners (B, N, 4, 2) of rectangles, in the same order; and the residuals (B, N), pixels.
    """
    corners = at_least_float32(corners)
    if not corners.shape[1]:
        return corners, corners[..., 0, 0]
    corners = corners.to(torch.promote_types(corners.dtype, flow.dtype))
    inverse = Inverse(flow.to(corners.dtype), size, smooth=smooth)
    start = torch.arange(4, dtype=corners.dtype, device=corners.device).expand(corners.shape[:-1])
    one, two, three, four = _warp_outline(corners, start, inverse)[0].unbind(-2)
    across, down = (two - one) + (three - four), (four - one) + (three - two)
    # The direction of the width: the first edges as they are, the second ones turned back by a right angle.
    u = across + torch.stack([down[..., 1], -down[..., 0]], dim=-1)
    u = u / u.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    v = torch.stack([-u[..., 1], u[..., 0]], dim=-1)
    low, high, residual = _extent(corners, torch.stack([u, v], dim=-1), inverse)
    (left, top), (right, bottom) = low.unbind(-1), high.unbind(-1)
    ends = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return torch.stack([a[..., None] * u + b[..., None] * v for a, b in ends], dim=-2), residual


def _extent(corners: Tensor, axes: Tensor, inverse: Inverse) -> tuple[Tensor, Tensor, Tensor]:
    """Extent of warped boxes (B, N, 4, 2) along two axes, columns of (..., 2, 2); and the largest residual (B, N)."""
    spacing = 1 / ROTATED_POINTS
    at = torch.arange(0, 4, spacing, dtype=corners.dtype, device=corners.device).expand(*corners.shape[:2], -1)
    near = torch.linspace(-1, 1, ROTATED_POINTS + 1, dtype=corners.dtype, device=corners.device)
    worst = torch.zeros_like(corners[..., 0, 0])
    for _ in range(3):
        points, residual = _warp_outline(corners, at, inverse)
        worst = torch.maximum(worst, residual.amax(dim=-1))
        along = points @ axes
        (low, lowest), (high, highest) = along.min(dim=-2), along.max(dim=-2)
        # Again around the four outermost points, which `near` contains.
        outermost = at.gather(-1, torch.cat([lowest, highest], dim=-1))
        at = (outermost[..., None] + spacing * near).flatten(-2) % 4
        spacing *= 2 / ROTATED_POINTS
    return low, high, worst


def _warp_outline(corners: Tensor, at: Tensor, inverse: Inverse) -> tuple[Tensor, Tensor]:
    """Points of boxes' edges (B, N, 4, 2), `at` (B, N, P) edges from the first corner: warped, and their residuals."""
    edge = at.long().clamp(max=3)  # 4 is the first corner, after rounding
    start, end = (c.gather(-2, edge[..., None].expand(-1, -1, -1, 2)) for c in (corners, corners.roll(-1, dims=-2)))
    outline = torch.lerp(start, end, (at - edge)[..., None])
    # A pixel's center is half a pixel inside its edge.
    points, residual = inverse((outline.flatten(1, 2) - 0.5).mT)
    return points.mT.reshape(outline.shape) + 0.5, residual.view(at.shape)
