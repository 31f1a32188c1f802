"""What a fit leaves in a folder: the weights with their model card and pictures, the curves, and all figures."""

from __future__ import annotations

import dataclasses
import io
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from learned_aug.fit.pipeline import FitResult
from learned_aug.viz import diversity_grid, fit_curves, tau_traversal
from learned_aug.weights.card import PACKAGES, CardFacts
from learned_aug.weights.files import write_atomic

__all__ = ["png", "settings_of", "write_report"]

SHOWN = 8  # images of the diversity grid
SIDE = 64  # pixels of a cell, at least


def write_report(
    folder: Path,
    result: FitResult,
    images: Tensor,
    *,
    facts: CardFacts | None = None,
    pictures: Mapping[str, tuple[PIL.Image.Image, str]] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write augmenter/ (weights, model card, diversity.png, traversal.png), curves.png and fit.json.

    Args:
        folder: made if need be; files of these names are replaced.
        result: of :func:`learned_aug.fit`.
        images: (B, C, H, W), some for the pictures, in the value range of the augmenter, on its device.
        facts: for the card; settings, diagnostics and pictures are filled in.
        pictures: more of them for the card, as file name to picture and caption.
        notes: more for fit.json, by name; plain values.

    Returns:
        The paths written, relative to `folder`. Without matplotlib, the extra "viz", there is no curves.png; with
        images of other than 1 or 3 channels, no picture.

    Raises:
        OSError: if `folder` cannot be written.
    """
    augmenter = result.augmenter
    (folder / "augmenter").mkdir(parents=True, exist_ok=True)
    drawn = dict(pictures or {})
    if augmenter.config.channels in (1, 3):
        side = min(max(SIDE, images.shape[-1]), 2 * SIDE)
        drawn["diversity.png"] = (
            diversity_grid(augmenter, images[:SHOWN], side=side, generator=_seeded(0)),
            "Rows are images, columns are draws, the same in each row; the first column is the original.",
        )
        drawn["traversal.png"] = (
            tau_traversal(augmenter, images[0], side=side, generator=_seeded(1)),
            "From one draw (left) to another (right) in equal steps of the code.",
        )
    captions: dict[str | Path, str] = {}
    for name, (picture, caption) in drawn.items():
        path = folder / "augmenter" / name
        write_atomic(path, png(picture))
        captions[path] = caption
    facts = facts if facts is not None else CardFacts()
    augmenter.save_pretrained(
        folder / "augmenter",
        card=dataclasses.replace(
            facts,
            settings={**settings_of(result), **facts.settings},
            diagnostics=facts.diagnostics or result.diagnostics,
            pictures={**captions, **facts.pictures},
        ),
    )
    written = [str(Path("augmenter", name)) for name in sorted(p.name for p in (folder / "augmenter").iterdir())]
    try:
        curves = fit_curves(result.history)
    except (ImportError, ValueError):  # no matplotlib, or a fit without steps
        pass
    else:
        buffer = io.BytesIO()
        curves.savefig(buffer, format="png", dpi=100)
        write_atomic(folder / "curves.png", png(PIL.Image.open(buffer)))
        written.append("curves.png")
    solution = result.solution
    figures = {
        "diagnostics": result.diagnostics,
        "s_val": {"converged": solution.converged, "residual": solution.residual, "steps": solution.steps},
        "settings": settings_of(result),
        "augmenter": augmenter.config.to_dict(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        **(notes or {}),
    }
    write_atomic(folder / "fit.json", (json.dumps(figures, indent=2) + "\n").encode())
    return [*written, "fit.json"]


def settings_of(result: FitResult) -> dict[str, Any]:
    """The settings of a fit as one level of names, such as "maximize.steps", and plain values."""
    return _flat(dataclasses.asdict(result.config))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (int, float, str, type(None))) else str(value)
    return flat


def png(picture: PIL.Image.Image) -> bytes:
    """A file of 256 dithered colors, less than half the size of one with all, as suits a card and a repository."""
    rgb = picture.convert("RGB")
    palette = rgb.quantize(256, PIL.Image.Quantize.MAXCOVERAGE)  # keeps the rare, pure colors of a flow's key
    buffer = io.BytesIO()
    rgb.quantize(palette=palette, dither=PIL.Image.Dither.FLOYDSTEINBERG).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
