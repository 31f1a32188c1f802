"""Boxes through a flow: the extent of what becomes of their edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learned_aug.functional.fields import at_least_float32, constant, without_autocast
from learned_aug.functional.points import Inverse, largest

__all__ = ["warp_boxes", "warp_rotated_boxes"]

POINTS = 16  # of an edge, at first; then twice as many around each outermost one
FAR, NEAR = 3.0, 0.1  # pixels between points: beyond never enough, and below always
PASSES = 8
EXTREME = 0.03, 0.005  # pixels that a cubic may reach beyond the points of a flow that is smooth, and of one with kinks


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
    values = values.to(torch.promote_types(values.dtype, flow.dtype))
    corners = values.index_select(2, _corners(values.device)).view(*values.shape[:2], 2, 4).transpose(1, 2)
    low, high, residual, _ = _extent(corners, Inverse(flow.to(values.dtype), size, smooth=smooth), turned=False)
    return torch.cat([low, high], 1).mT + 0.5, residual


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
    low, high, residual, u = _extent(corners.permute(0, 3, 1, 2), inverse, turned=True)
    (left, top), (right, bottom) = low.unbind(1), high.unbind(1)
    ends = torch.stack([torch.stack([left, right, right, left], -1), torch.stack([top, top, bottom, bottom], -1)], 1)
    return _turned(ends, u, 1).permute(0, 2, 3, 1) + 0.5, residual


@constant
def _corners(device: torch.device) -> Tensor:
    """Which of (x1, y1, x2, y2) the corners' x and y are, clockwise from the top left."""
    return torch.tensor([0, 2, 2, 0, 1, 1, 3, 3], device=device)


@constant
def _outline(points: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the four corners add to the points of the edges, from corner to corner, (4, 4 * points).

    And where these are, in edges from the first corner.
    """
    t, corner = torch.linspace(0, 1, points, dtype=dtype, device=device), torch.eye(4, dtype=dtype, device=device)
    weights = torch.lerp(corner[..., None], corner.roll(1, 0)[..., None], t)
    return weights.flatten(1), (torch.arange(4, dtype=dtype, device=device)[:, None] + t).flatten()


@constant
def _between(points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What points in a row add to a cubic through them at four times as many places."""
    eye = torch.eye(points, dtype=dtype, device=device)[None, None]
    return F.interpolate(eye, (points, 4 * points - 3), mode="bicubic", align_corners=True)[0, 0]


def _turned(q: Tensor, u: Tensor, sign: int) -> Tensor:
    """Positions (B, 2, N, K), turned with (1) or against (-1) the directions u (B, 2, N)."""
    (x, y), (cos, sin) = q.unbind(1), u[..., None].unbind(1)
    return torch.stack([x * cos - sign * y * sin, y * cos + sign * x * sin], 1)


def _extent(corners: Tensor, inverse: Inverse, *, turned: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The extent of warped boxes.

    Args:
        corners: (B, 2, N, 4).
        inverse: of the flow.
        turned: whether along and across the direction of each warped box, not along x and y.

    Returns:
        The least and largest values (B, 2, N); the largest residual (B, N); and the directions (B, 2, N), of length 1.
    """
    corners = corners - 0.5  # a pixel's center is half a pixel inside its edge
    longest = largest(corners.diff(dim=3))
    points, extreme = POINTS if longest <= FAR * POINTS else 2 * POINTS, EXTREME[not inverse.smooth]
    weights, at = _outline(points, corners.dtype, corners.device)
    outline, spacing = corners @ weights, 1 / (points - 1)
    u, worst = corners[..., 0], torch.zeros_like(corners[:, 0, :, 0])
    for k in range(PASSES):
        q, residual = inverse(outline)
        if turned:
            u = _direction(q[..., ::points]) if k == 0 else u
            q = _turned(q, u, -1)
        low, high, worst = q.amin(3), q.amax(3), torch.maximum(worst, residual.amax(2))
        step = spacing * longest
        if step < NEAR or (step <= FAR and _beyond(q.unflatten(3, (4, -1)), low, high) <= extreme):
            break
        at = at.expand(*worst.shape, -1).gather(2, torch.cat([q.argmin(3), q.argmax(3)], 1).mT)
        near = torch.linspace(-spacing, spacing, 2 * POINTS + 1, dtype=at.dtype, device=at.device)
        at = (at[..., None] + near).flatten(2) % 4
        edge = at.long().clamp(max=3)  # 4 is the first corner, after rounding
        index = edge[:, None].expand(-1, 2, -1, -1)
        start, end = (c.gather(3, index) for c in (corners, corners.roll(-1, 3)))
        outline, spacing = torch.lerp(start, end, (at - edge)[:, None]), spacing / POINTS
    return low, high, worst, u


def _direction(corners: Tensor) -> Tensor:
    """The mean direction (B, 2, N), of length 1, of the first edges of (B, 2, N, 4), and of the second, turned back."""
    one, two, three, four = corners.unbind(3)
    (x, y), (down, left) = ((two - one) + (three - four)).unbind(1), ((four - one) + (three - two)).unbind(1)
    u = torch.stack([x + left, y - down], 1)
    unit: Tensor = u / u.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit


def _beyond(q: Tensor, low: Tensor, high: Tensor) -> float:
    """How far cubics through points in a row, (..., 4, P), reach beyond the extremes of the points, (...), pixels."""
    curves = q @ _between(q.shape[-1], q.dtype, q.device)
    return float(torch.maximum(low - curves.amin((-2, -1)), curves.amax((-2, -1)) - high).max())
