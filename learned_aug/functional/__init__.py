"""Pure tensor functions of the augmentation network: Eq. 20, smoothing, recoloring, warping of all that is labeled.

Conventions, used everywhere after :func:`flow_field`:

* pixel centers lie at integers, x runs right and y down;
* a *flow* d is (B, 2, H, W), channels (x, y), in pixels: output pixel q shows the input at s(q) = q + d(q);
* a *grid* is s in the units of :func:`torch.nn.functional.grid_sample` with ``align_corners=False``, (B, H, W, 2).
"""

from learned_aug.functional.boxes import warp_boxes, warp_rotated_boxes
from learned_aug.functional.fields import affine_flow, flow_field, resize_field, sampling_grid, smooth
from learned_aug.functional.images import pooled, recolor, shrunk, warp, warp_mask
from learned_aug.functional.points import warp_points

__all__ = [
    "affine_flow",
    "flow_field",
    "pooled",
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
