"""Pictures of what an augmenter does and of how its fit went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.utils import make_grid

from learned_aug.augmenter import Augmenter
from learned_aug.fit.events import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["diversity_grid", "fit_curves"]


@torch.no_grad()
def diversity_grid(
    augmenter: Augmenter,
    images: Tensor,
    *,
    draws: int = 9,
    side: int = 64,
    generator: torch.Generator | None = None,
) -> PIL.Image.Image:
    """Rows are images, columns are dropout masks, the same in each row; the first column is the original (Fig. 3).

    Args:
        augmenter: whose ``config.mean`` and ``config.std`` bring the images back to [0, 1].
        images: (B, C, H, W), C 1 or 3, in the value range of the augmenter.
        draws: columns after the first.
        side: of each cell, pixels.
        generator: for the masks.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (B, 1, H, W) or (B, 3, H, W) to be shown, got {tuple(images.shape)}")
    masks = augmenter.draw_masks(draws, generator=generator, device=images.device)
    columns = [images, *(augmenter(images, mask.expand(len(images), -1, -1)) for mask in masks)]
    cells = torch.stack(columns, dim=1).flatten(0, 1)
    mean, std = (cells.new_tensor(values)[:, None, None] for values in (augmenter.config.mean, augmenter.config.std))
    cells = tv.resize((cells * std + mean).clamp(0, 1), [side, side], interpolation=tv.InterpolationMode.BICUBIC)
    image: PIL.Image.Image = tv.to_pil_image(make_grid(cells.clamp(0, 1), nrow=draws + 1, padding=2, pad_value=0.5))
    return image


def fit_curves(history: Sequence[Event]) -> Figure:
    """One panel for each metric of each stage of a fit, against its steps.

    Args:
        history: of a :class:`~learned_aug.fit.FitResult`.

    Raises:
        ImportError: without matplotlib, the extra "viz".
        ValueError: if the history holds no metrics.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("fit_curves needs matplotlib; install it with pip install 'learned-aug[viz]'") from error
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in history:
        for name, value in event.metrics.items():
            if event.total > 1:
                curves.setdefault(f"{event.stage}: {name}", []).append((event.step, value))
    if not curves:
        raise ValueError("history must hold events with metrics, got none; pass FitResult.history of a finished fit")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (name, points) in zip(axes, curves.items(), strict=False):
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("step", fontsize=7)
    for axis in list(axes)[len(curves) :]:
        axis.set_axis_off()
    return figure
