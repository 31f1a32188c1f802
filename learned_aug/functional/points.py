"""Points through a flow: its inverse by Newton's method, for all points at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_aug.functional.fields import at_least_float32, constant, interpolation, without_autocast

__all__ = ["Inverse", "warp_points"]

TOLERANCE = 7e-4  # pixels, of each component
LOST = 0.02  # pixels: beyond, a point is sought anew, from the nearest source
STEPS = 8  # of Newton's method: three or four are usual
CHUNK = 2**14  # points that are sought at once: more leave the cache
TRIALS = 12  # of lost points
LEAST = 0.05  # of the determinant of a step: near folds a full step leads far away


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
    q, residual = Inverse(flow.to(dtype), size, smooth=smooth)(values.to(dtype).mT[:, :, None])
    return q[:, :, 0].mT, residual[:, 0]


def _continued(field: Tensor, dim: int) -> Tensor:
    """One more point on each side, on the line through the last two."""
    n = field.shape[dim]
    first, last = field.narrow(dim, 0, 1), field.narrow(dim, n - 1, 1)
    before, after = field.narrow(dim, min(1, n - 1), 1), field.narrow(dim, max(0, n - 2), 1)
    return torch.cat([2 * first - before, field, 2 * last - after], dim)


def _slopes(field: Tensor, dim: int) -> Tensor:
    """Slopes of a field along a dimension whose points span -1 to 1; 0 at its ends, beyond which it is constant."""
    n = field.shape[dim]
    inner = (field.narrow(dim, 2, n - 2) - field.narrow(dim, 0, n - 2)) * ((n - 1) / 4)
    end = torch.zeros_like(field.narrow(dim, 0, 1))
    return torch.cat([end, inner, end], dim)


@constant
def _units(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """A pixel and pixel 0 in units of -1 to 1 over the pixels from -1 to W and -1 to H, and what 1 and 0 are in pixels.

    Four of (2, 1, 1).
    """
    size = torch.tensor([width, height], dtype=torch.float64, device=device)[:, None, None]
    return tuple(x.to(dtype) for x in (2 / (size + 1), 2 / (size + 1) - 1, (size + 1) / 2, (size - 1) / 2))


@constant
def _bases(
    h: int, w: int, height: int, width: int, smooth: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Which component, rows and columns make the planes of :func:`_planes` of a flow at h x w points, in pixels."""
    rows, columns = interpolation(h, w, height, width, smooth, torch.float64, device)
    rows, columns = _continued(rows, 0), _continued(columns, 1)
    down, across = _slopes(rows, 0), _slopes(columns, 1)
    component = torch.tensor([0, 1, 1, 1, 0, 0], device=device)
    pixel = _units(height, width, torch.float64, device)[0][component]
    rows = torch.stack([rows, rows, -down, rows, down, -rows]) * pixel
    return component, rows.to(dtype), torch.stack([columns, columns, columns, across, columns, across]).to(dtype)


def _planes(d: Tensor) -> Tensor:
    """x and y of a flow, and the columns of the negative adjugate of its Jacobian, (B, 6, H, W)."""
    (xx, yx), (xy, yy) = _slopes(d, -1).unbind(1), _slopes(d, -2).unbind(1)
    return torch.cat([d, torch.stack([-yy, yx, xy, -xx], 1)], 1)


@constant
def _identity(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the identity adds to :func:`_planes`, (6, 1, 1)."""
    return torch.tensor([0, 0, -1, 0, 0, -1], dtype=dtype, device=device)[:, None, None]


class Inverse:
    """The inverse of s(q) = q + d(q), in units of -1 to 1 over the pixels from -1 to W and -1 to H.

    `fields`, (B, 6, H + 2, W + 2), are d and the two columns of the negative inverse of the Jacobian of s: what a step
    of Newton's method reads.

    Args:
        flow: (B, 2, H, W), pixels; or
        size, smooth: (B, 2, h, w) at control points of an image of a size, and their basis.
    """

    def __init__(self, flow: Tensor, size: tuple[int, int] | None = None, smooth: bool = True) -> None:
        flow = at_least_float32(flow)
        points = flow.shape[-2], flow.shape[-1]
        height, width = size or points
        self.smooth = smooth and (height, width) != points
        self.units = _units(height, width, flow.dtype, flow.device)
        self.tolerance = TOLERANCE * 2 / (max(height, width) + 1)
        if (height, width) == points:
            planes = _planes(_continued(_continued(flow * self.units[0], -1), -2))
        else:
            component, rows, columns = _bases(*points, height, width, smooth, flow.dtype, flow.device)
            planes = rows @ (flow.index_select(1, component) @ columns)
        planes.add_(_identity(flow.dtype, flow.device))
        _, _, a, b, c, d = planes.unbind(1)
        det = torch.addcmul(a * d, b, c, value=-1)
        planes[:, 2:].div_(det.abs().clamp_(min=LEAST).copysign_(det)[:, None])
        self.fields = planes
        self.mean = planes.mean((2, 3), keepdim=True)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Find where points appear, (B, 2, M, N), pixels, and how far s is from them there, (B, M, N)."""
        if points.shape[2] > 1 and points[0, 0].numel() > CHUNK:
            parts = [self(part) for part in points.split(max(1, CHUNK // points.shape[3]), 2)]
            return torch.cat([q for q, _ in parts], 2), torch.cat([residual for _, residual in parts], 1)
        pixel, zero, one, center = self.units
        p = torch.addcmul(zero, points, pixel)
        offset, first, second = self.mean.split(2, 1)
        x, y = (offset - p).split(1, 1)
        q = torch.addcmul(first * x, second, y)
        for k in range(STEPS + 1):
            error, step = _look(self.fields, q, p)
            if k == STEPS or (k > 1 and largest(error) <= self.tolerance):
                break
            q = q + step
        residual = torch.hypot(*(error * one).unbind(1))
        if k == STEPS:
            for b in (residual > LOST).flatten(1).any(1).nonzero()[:, 0].tolist():
                self._seek(b, p[b], q[b], residual[b])
        return torch.addcmul(center, q, one), residual

    def _seek(self, b: int, p: Tensor, q: Tensor, residual: Tensor) -> None:
        """Seek the lost points of a sample anew, from the nearest of at most 32 x 32 sources; a fold may have none."""
        fields, (_, _, one, _) = self.fields[b : b + 1], self.units
        stride = math.ceil(max(fields.shape[-2:]) / 32)
        y, x = (torch.linspace(-1, 1, n, dtype=p.dtype, device=p.device)[::stride] for n in fields.shape[-2:])
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1)
        sources = grid + fields[0, :2, ::stride, ::stride].flatten(1)
        for index in (residual > LOST).flatten().nonzero()[:, 0].split(CHUNK):
            target = p.flatten(1)[:, index]
            nearest = torch.cdist(target.mT, sources.mT).argmin(1)
            target, trial = target[None, :, None], grid[None, :, None, nearest]
            best, left = trial, torch.full_like(trial[:, :1], math.inf)
            for _ in range(TRIALS):
                error, step = _look(fields, trial, target)
                length = (error * one).square().sum(1, keepdim=True)
                best, left = torch.where(length < left, trial, best), torch.minimum(left, length)
                trial = trial + step
            found, left = best[0, :, 0], left[0, 0, 0].sqrt()
            better = left < residual.view(-1)[index]
            q.view(2, -1)[:, index[better]] = found[:, better]
            residual.view(-1)[index[better]] = left[better]


def _look(fields: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """How far s is from p at q, (B, 2, M, N), and the step of Newton's method from there."""
    d, first, second = torch.grid_sampler_2d(fields, q.permute(0, 2, 3, 1), 0, 1, True).split(2, 1)  # border
    error = q + d - p
    x, y = error.split(1, 1)
    return error, torch.addcmul(first * x, second, y)


def largest(values: Tensor) -> float:
    """The largest absolute value."""
    low, high = values.aminmax()
    return max(float(high), -float(low))
