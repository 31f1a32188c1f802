"""Boxes and key points through a flow: where what lies at a point of the input appears in the output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_aug.functional.fields import at_least_float32

__all__ = ["warp_boxes", "warp_points", "warp_rotated_boxes"]


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
