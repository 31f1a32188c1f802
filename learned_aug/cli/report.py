"""What a fit leaves in a folder: the weights with their model card and pictures, the curves, and all figures."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import platform
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from torch import Tensor

from learned_aug.cli.main import one_line
from learned_aug.fit.pipeline import FitResult
from learned_aug.training.curves import StrengthCurves
from learned_aug.viz import diversity_grid, fit_curves, tau_traversal
from learned_aug.weights.card import CARD_NAME, PACKAGES, CardFacts
from learned_aug.weights.files import NAMES, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Parts",
    "keep_card",
    "png",
    "settings_of",
    "write_figures",
    "write_report",
    "write_strengths",
    "write_weights",
]

PICTURES = ("diversity.png", "traversal.png", "corrected.png")  # that a fit writes beside the weights
SHOWN = 8  # images of the diversity grid
SIDE = 64  # pixels of a cell, at least


class Parts:
    """The parts of a report, of which each may fail alone.

    Args:
        debug: show where an error comes from.
    """

    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug
        self.missing: list[str] = []

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Go on after any error, with a warning that names the part."""
        try:
            yield
        except Exception as error:
            if self.debug:
                traceback.print_exc()
            self.missing.append(name)
            warnings.warn(f"no {name}: {one_line(error)}", stacklevel=4)


def write_weights(folder: Path, result: FitResult) -> None:
    """Write augmenter/ with the weights and their configuration, and remove what an earlier fit has left beside them.

    Other files stay; an earlier card is kept by :func:`keep_card`.

    Raises:
        OSError: if `folder` cannot be written.
    """
    inside = folder / "augmenter"
    result.augmenter.save_pretrained(inside)
    keep_card(inside)
    for stale in (*(inside / name for name in PICTURES), folder / "curves.png"):
        stale.unlink(missing_ok=True)


def keep_card(inside: Path) -> None:
    """Rename a model card, which may have been filled in, to README.old.md, or README.old2.md where that exists."""
    names = (f"README.old{k if k > 1 else ''}.md" for k in itertools.count(1))
    if (inside / CARD_NAME).exists():
        os.replace(inside / CARD_NAME, inside / next(name for name in names if not (inside / name).exists()))


def write_figures(folder: Path, result: FitResult, notes: Mapping[str, Any] | None = None) -> None:
    """Write fit.json: all figures, settings and versions.

    Args:
        folder: folder of the results.
        result: result of :func:`learned_aug.fit`.
        notes: more figures by name; plain values.

    Raises:
        OSError: if `folder` cannot be written.
    """
    solution = result.solution
    figures = {
        "verdict": result.verdict,
        "gain": result.gain._asdict(),
        "diagnostics": result.diagnostics,
        "s_val": {"converged": solution.converged, "residual": solution.residual, "steps": solution.steps},
        "settings": settings_of(result),
        "augmenter": result.augmenter.config.to_dict(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        **(notes or {}),
    }
    write_atomic(folder / "fit.json", (json.dumps(figures, indent=2) + "\n").encode())


def write_report(
    folder: Path,
    result: FitResult,
    images: Tensor | Callable[[], Tensor],
    *,
    facts: CardFacts | None = None,
    pictures: Mapping[str, tuple[PIL.Image.Image, str]] | None = None,
    notes: Mapping[str, Any] | None = None,
    parts: Parts | None = None,
) -> list[str]:
    """Write augmenter/ (weights, model card, diversity.png, traversal.png), curves.png and fit.json.

    The weights and figures come first; each of the rest fails alone, with a warning.

    Args:
        folder: made if need be; files of these names are replaced.
        result: result of :func:`learned_aug.fit`.
        images: (B, C, H, W), some for the pictures, in the value range of the augmenter, on its device; or what reads
            them.
        facts: facts for the card; settings, diagnostics and pictures are filled in.
        pictures: more pictures for the card, as file name to picture and caption.
        notes: more figures for fit.json, by name; plain values.
        parts: collects the names of what failed.

    Returns:
        The paths written, relative to `folder`. Without matplotlib, the extra "viz", there is no curves.png; with
        images of other than 1 or 3 channels, no picture.

    Raises:
        OSError: if `folder` cannot be written.
    """
    parts = parts if parts is not None else Parts()
    augmenter, inside = result.augmenter, folder / "augmenter"
    write_weights(folder, result)
    foreign = {path.name for path in inside.iterdir()} - set(NAMES)
    write_figures(folder, result, notes)
    captions: dict[str | Path, str] = {}

    def keep(name: str, picture: PIL.Image.Image, caption: str) -> None:
        write_atomic(inside / name, png(picture))
        captions[inside / name] = caption

    for name, (picture, caption) in (pictures or {}).items():
        with parts.attempt(name):
            keep(name, picture, caption)
    if augmenter.config.channels in (1, 3):
        shown: list[Tensor] = []
        with parts.attempt("pictures of draws"):
            shown.append(images if isinstance(images, Tensor) else images())
        for batch in shown:
            side = min(max(SIDE, batch.shape[-1]), 2 * SIDE)
            with parts.attempt("diversity.png"):
                keep(
                    "diversity.png",
                    diversity_grid(augmenter, batch[:SHOWN], side=side, generator=_seeded(0)),
                    "Rows are images, columns are draws, the same in each row; the first column is the original.",
                )
            with parts.attempt("traversal.png"):
                keep(
                    "traversal.png",
                    tau_traversal(augmenter, batch[0], side=side, generator=_seeded(1)),
                    "From one draw (left) to another (right) in equal steps of the code.",
                )
    with parts.attempt("curves.png"):
        _write_curves(folder / "curves.png", result)
    with parts.attempt("model card"):
        facts = facts if facts is not None else CardFacts()
        augmenter.save_pretrained(
            inside,
            card=dataclasses.replace(
                facts,
                fitted=augmenter is not result.prior,
                settings={**settings_of(result), **facts.settings},
                diagnostics=facts.diagnostics or result.diagnostics,
                pictures={**captions, **facts.pictures},
            ),
        )
    written = [str(Path("augmenter", name)) for name in sorted({p.name for p in inside.iterdir()} - foreign)]
    return [*written, *(name for name in ("curves.png", "fit.json") if (folder / name).exists())]


def write_strengths(path: Path, curves: StrengthCurves) -> None:
    """Write the picture of strength curves; nothing without matplotlib, the extra "viz"."""
    _write_figure(path, curves.figure)


def _write_curves(path: Path, result: FitResult) -> None:
    _write_figure(path, lambda: fit_curves(result.history))


def _write_figure(path: Path, draw: Callable[[], Figure]) -> None:
    try:
        figure = draw()
    except (ImportError, ValueError):  # no matplotlib, or a fit without steps
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_atomic(path, png(PIL.Image.open(buffer)))


def settings_of(result: FitResult) -> dict[str, Any]:
    """Return the settings of a fit as one level of names, such as "maximize.steps", and plain values."""
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
    """Return a file of 256 dithered colors, less than half the size of one with all, as suits a card."""
    rgb = picture.convert("RGB")
    palette = rgb.quantize(256, PIL.Image.Quantize.MAXCOVERAGE)  # keeps the rare, pure colors of a flow's key
    buffer = io.BytesIO()
    rgb.quantize(palette=palette, dither=PIL.Image.Dither.FLOYDSTEINBERG).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
