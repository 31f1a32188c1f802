"""Points through a flow: its inverse once on a lattice, then a few look-ups for all points at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_aug.functional.fields import at_least_float32, constant, interpolation, without_autocast

__all__ = ["Inverse", "warp_points"]

TOLERANCE = 5e-4  # pixels
LOST = 0.02  # pixels: beyond, a point is sought anew, slowly


@torch.no_grad()
@without_autocast
def warp_points(
    points: Tensor, flow: Tensor, size: tuple[int, int] | None = None, *, smooth: bool = False
) -> tuple[Tensor, Tensor]:
    """Where points of the input appear in the output: solves q + d(q) = p for q.

    Beyond one pixel outside the image the flow is continued as a constant: what leaves the canvas stays outside.

    Args:
        points: (B, N, 2), (x, y), pixel centers at integers.
        flow: (B, 2, h, w), (x, y), pixels.
        size: (H, W) of the image over which a coarser flow is interpolated; by default (h, w).
        smooth: interpolate as :func:`resize_field` does with it.

    Returns:
        The points (B, N, 2), float32 at least, and |q + d(q) - p| (B, N), pixels: below 1e-3 where one was found.
        A flow that folds has several solutions or none; then the best one met comes back. Neither carries a gradient.
    """
    values = at_least_float32(points)
    if not points.shape[1]:
        return values, values[..., 0]
    dtype = torch.promote_types(values.dtype, flow.dtype)
    q, residual = Inverse(flow.to(dtype), size, smooth=smooth)(values.to(dtype).mT)
    return q.mT, residual


def _read(field: Tensor, at: Tensor) -> Tensor:
    """Planes (B, 2, N) of a field (B, 2, H, W) at planes of positions (B, 2, N), -1 and 1 on the border points."""
    return torch.grid_sampler_2d(field, at.unsqueeze(2).permute(0, 2, 3, 1), 0, 1, True).squeeze(2)


def _continued(field: Tensor) -> Tensor:
    """One more point on each side, on the line through the last two."""
    for dim in (-2, -1):
        n = field.shape[dim]
        first, last = field.narrow(dim, 0, 1), field.narrow(dim, n - 1, 1)
        before, after = field.narrow(dim, min(1, n - 1), 1), field.narrow(dim, max(0, n - 2), 1)
        field = torch.cat([2 * first - before, field, 2 * last - after], dim)
    return field


@constant
def _lattice(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Planes (1, 2, side^2) of positions from -1 to 1; and the transpose of them, by their squared length."""
    line = torch.linspace(-1, 1, side, dtype=dtype, device=device)
    p = torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1)[None]
    return p, p.mT / p.square().sum(2).mean()


@constant
def _unit(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a pixel is in units of -1 to 1 over the pixels from -1 to W and -1 to H, (2, 1)."""
    return torch.tensor([[2 / (width + 1)], [2 / (height + 1)]], dtype=dtype, device=device)


@constant
def _continued_bases(
    h: int, w: int, height: int, width: int, smooth: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The matrices of :func:`interpolation`, with one more position on each side."""
    rows, columns = interpolation(h, w, height, width, smooth, torch.float64, device)
    rows, columns = (_continued(m[None])[0] for m in (rows, columns))
    return rows[:, 1:-1].to(dtype).contiguous(), columns[1:-1].to(dtype).contiguous()


class Inverse:
    """The inverse of s(q) = q + d(q), in units of -1 to 1 over the pixels from -1 to W and -1 to H.

    `back` is a displacement on a lattice with p + back(p) near the q of s(q) = p. A point is then found by
    q <- q + T(p) - T(s(q)) with T = identity + back, which gains a digit or two each time: T s is nearly the identity.

    Args:
        flow: (B, 2, H, W), pixels; or
        size, smooth: (B, 2, h, w) at control points of an image of a size, and their basis.
    """

    def __init__(self, flow: Tensor, size: tuple[int, int] | None = None, smooth: bool = True) -> None:
        points = flow.shape[-2], flow.shape[-1]
        height, width = size or points
        self.size = None if size == points else size
        self.coarse, self.smooth = at_least_float32(flow), smooth
        self.unit = _unit(height, width, self.coarse.dtype, flow.device)
        if self.size is None:
            self.flow = _continued(self.coarse) * self.unit[..., None]
        else:
            rows, columns = _continued_bases(*points, height, width, smooth, self.coarse.dtype, flow.device)
            self.flow = rows @ (self.coarse * self.unit[..., None] @ columns)
        self.tolerance = TOLERANCE * 2 / (max(height, width) + 1)
        side = min(129, max(17, math.ceil(max(height, width) / 4)))
        p, inverse = _lattice(side, self.flow.dtype, flow.device)
        d = _read(self.flow, p.expand(len(flow), -1, -1))
        # The affine map nearest to s: positions on the lattice have mean 0 and are uncorrelated.
        matrix = d @ inverse
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        minus = -torch.linalg.inv(matrix)
        q = torch.baddbmm(p, minus, d)
        for k in range(24):
            r = q + _read(self.flow, q) - p
            if k > 3 and not r.abs().max() > 80 * self.tolerance:
                break
            q = torch.baddbmm(q, minus, r)
        back = q - p
        if k == 23:  # where that has not converged, any start is as good; it is sought anew if needed
            back = torch.where(r.abs().amax(1, keepdim=True) < 4000 * self.tolerance, back, -d)
        self.back = back.view(len(flow), 2, side, side)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Find where points appear, (B, 2, N), pixels, and how far s is from them there, (B, N)."""
        p = torch.addcmul(self.unit - 1, points, self.unit)
        start = p + _read(self.back, p)
        q = start
        for k in range(7):
            s = q + _read(self.flow, q)
            if k == 6 or (k > 1 and not (s - p).abs().max() > self.tolerance):
                break
            q = q + start - (s + _read(self.back, s))
        q, residual = (q + 1) / self.unit - 1, torch.hypot(*((s - p) / self.unit).unbind(1))
        if k == 6 and (lost := residual > LOST).any():
            self._seek(points, q, residual, lost)
        return q, residual

    def dense(self) -> Tensor:
        """The flow (B, 2, H, W), pixels."""
        return self.flow[..., 1:-1, 1:-1] / self.unit[..., None]

    def bend(self) -> float:
        """A bound of the second differences of the flow, pixels for each pixel squared: near 0 between kinks."""
        if self.size is None:
            return _bend(self.coarse)
        cell = (min(self.size) - 1) / (max(self.coarse.shape[-2:]) - 1)
        return _bend(self.coarse) / (cell**2 if self.smooth else max(cell, 1))

    def _seek(self, points: Tensor, q: Tensor, residual: Tensor, lost: Tensor) -> None:
        """The lost ones by Newton's method from the nearest source; folds have no better answer."""
        for b in lost.any(1).nonzero()[:, 0].tolist():
            index = lost[b].nonzero()[:, 0]
            for some in index.split(2**14):
                found, left = _newton(points[b : b + 1, :, some].mT, self.dense()[b : b + 1])
                better = left[0] < residual[b, some]
                q[b, :, some] = torch.where(better, found[0].mT.to(q.dtype), q[b, :, some])
                residual[b, some] = torch.where(better, left[0].to(q.dtype), residual[b, some])


def _bend(flow: Tensor) -> float:
    """The largest second difference of a flow, along and across, pixels for each pixel squared."""
    most = 0.0
    for dims in ((-1, -1), (-2, -2), (-1, -2)):
        second = flow
        for dim in dims:
            second = second.diff(dim=dim)
        if second.numel():
            low, high = second.aminmax()
            most = max(most, -float(low), float(high))
    return most


def _newton(points: Tensor, flow: Tensor, steps: int = 16) -> tuple[Tensor, Tensor]:
    """The same by Newton's method, slowly, for points that are hard to find.

    The start is the nearest source among at most 32 x 32 output pixels; the Jacobian is that of the bilinear cell.
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
