"""Pictures of what an augmenter does and of how its fit went: PIL images, and matplotlib figures for the curves."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.utils import make_grid

from learned_aug.augmenter import Augmenter
from learned_aug.runtime.events import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "corrected_samples",
    "diversity_grid",
    "fit_curves",
    "flow_colors",
    "influence_scatter",
    "interval_chart",
    "tau_traversal",
]

GAP = 2  # pixels between two cells
LABEL_WIDTH = 104  # pixels, of the column that names the rows
LINE = 14  # pixels, height of a line of text
CUT = "..."  # end of a line that was cut
MISSING = "\U0010fffe"  # no character, so no font has it
SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "PingFang.ttc", "msgothic.ttc", "malgun.ttf")

Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont


class Indexable(Protocol):
    """A tensor (B, C, H, W), a list, or anything else that gives image k as a tensor (C, H, W)."""

    def __getitem__(self, index: int, /) -> Tensor:
        """Return image `index`."""


@torch.no_grad()
def diversity_grid(
    augmenter: Augmenter,
    images: Tensor,
    *,
    draws: int = 9,
    side: int = 64,
    generator: torch.Generator | None = None,
) -> PIL.Image.Image:
    """Show images as rows and draws as columns, of the same noise in each row, after the original (Fig. 3).

    Args:
        augmenter: whose ``config.mean`` and ``config.std`` bring the images back to [0, 1].
        images: (B, C, H, W), C 1 or 3, in the value range of the augmenter.
        draws: columns after the first.
        side: side of each cell, pixels.
        generator: source of the noise; by default torch's global one.

    Raises:
        ValueError: if the images have another shape.
    """
    _check_shown(images, "(B, 1, H, W) or (B, 3, H, W)", 4)
    noise = augmenter.draw_noise(draws, generator=generator, device=images.device)
    columns = [images, *(augmenter(images, part.expand(len(images), -1, -1)) for part in noise)]
    cells = _cells(torch.stack(columns, dim=1).flatten(0, 1), augmenter, side)
    return _grid(cells, draws + 1)


@torch.no_grad()
def tau_traversal(
    augmenter: Augmenter,
    image: Tensor,
    noise: Tensor | None = None,
    *,
    steps: int = 10,
    side: int = 64,
    generator: torch.Generator | None = None,
) -> PIL.Image.Image:
    """Show what one image becomes on the way from one draw to another, in equal steps of code and strength (Fig. 4).

    Rows: the image, the spatial field, the warped image, the appearance field, the final image; without those that the
    augmenter does not have. The spatial field is colored by :func:`flow_colors`, with its key beside it; the
    appearance field is what the color filter adds, with gray for nothing. Both are scaled to their largest value in
    the picture, which is stated.

    Args:
        augmenter: augmenter to show, as in :func:`diversity_grid`.
        image: (C, H, W), C 1 or 3, in the value range of the augmenter.
        noise: noise of both ends, from ``augmenter.draw_noise(2)``; by default drawn.
        steps: columns, 2 or more.
        side: side of each cell, pixels; 48 or more, for the labels.
        generator: source of the noise; by default torch's global one.

    Raises:
        ValueError: if the image has another shape, or `steps` or `side` is too small.
    """
    _check_shown(image, "(1, H, W) or (3, H, W)", 3)
    if steps < 2:
        raise ValueError(f"steps must be 2 or more, one for each end, got {steps}")
    if side < 3 * LINE + 6:
        raise ValueError(f"side must be {3 * LINE + 6} pixels or more, got {side}: the labels need them")
    if noise is None:
        noise = augmenter.draw_noise(2, generator=generator, device=image.device)
    ends = augmenter.trace(image.expand(2, -1, -1, -1), noise)
    way = torch.linspace(0, 1, steps, device=image.device)[:, None, None]
    images = image.expand(steps, -1, -1, -1)
    masks = torch.lerp(ends.masks[0], ends.masks[1], way)
    strengths = ends.strengths
    if strengths is not None:
        strengths = torch.lerp(strengths[0], strengths[1], way[..., 0])
    draw = augmenter.trace(images, masks=masks, strengths=strengths).draw
    warped = draw.warp(images)
    final = draw.recolor(warped, images)
    rows = [("image", _cells(images, augmenter, side))]
    flow = draw.flow()
    if flow is not None:
        reach = float(flow.norm(dim=1).max())
        rows.append((f"spatial field\nup to {reach:.2g} px", tv.resize(flow_colors(flow, reach), [side, side])))
        rows.append(("warped image", _cells(warped, augmenter, side)))
    if draw.coarse_color is not None:
        delta = (final - warped) * _column(augmenter.config.std, final)
        reach = float(delta.abs().max())
        field = 0.5 + 0.5 * delta / max(reach, 1e-12)
        rows.append((f"appearance field\nup to ±{reach:.2g}", tv.resize(field, [side, side])))
        rows.append(("final image", _cells(final, augmenter, side)))
    grid = _grid(torch.cat([cells.expand(-1, 3, -1, -1) for _, cells in rows]), steps)
    picture = PIL.Image.new("RGB", (LABEL_WIDTH + grid.width, grid.height), "white")
    picture.paste(grid, (LABEL_WIDTH, 0))
    for k, (name, _) in enumerate(rows):
        top = k * (side + GAP) + GAP
        lines = _write(picture, (4, top), name)
        if name.startswith("spatial"):
            key = _flow_key(min(side - lines * LINE - GAP, 48))
            picture.paste(key, (4, top + lines * LINE + GAP))
    return picture


def flow_colors(flow: Tensor, reach: float) -> Tensor:
    """Show flows as colors: the hue is the direction, white is none, and the purest color is a length of `reach`.

    Args:
        flow: (B, 2, H, W), (x, y), pixels.
        reach: length of flow that has the purest color, pixels.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    x, y = flow.float().unbind(1)
    hue = torch.atan2(y, x) / (2 * math.pi) % 1
    length = (torch.hypot(x, y) / max(reach, 1e-12)).clamp(max=1)
    phase = (hue[:, None] * 6 + hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
    return 1 - length[:, None] * torch.minimum(phase, 4 - phase).clamp(0, 1)


def corrected_samples(
    images: Indexable,
    labels: Tensor,
    before: Tensor,
    after: Tensor,
    *,
    classes: Sequence[str] | None = None,
    count: int = 24,
    columns: int = 8,
    side: int = 80,
) -> PIL.Image.Image:
    """Show samples that a classifier got wrong before, and gets right after training with the augmentation (Fig. 5).

    The line above says how many there are, and how many went the other way: the picture alone would flatter.

    Args:
        images: images (N, C, H, W) in [0, 1], C 1 or 3; only those shown are read.
        labels: (B,), class indices.
        before: (B,), predicted class indices of the classifier trained without.
        after: (B,), of the one trained with it.
        classes: names, by default the indices.
        count: how many to show at most, evenly spread over those there are.
        columns: number of columns of the picture.
        side: side of each cell, pixels.

    Raises:
        ValueError: if the three lengths differ.
    """
    if not labels.shape == before.shape == after.shape or labels.ndim != 1:
        got = [tuple(t.shape) for t in (labels, before, after)]
        raise ValueError(f"labels, before and after must be of one shape, (B,), got {got}; pass class indices")
    labels, before, after = labels.cpu(), before.cpu(), after.cpu()
    corrected = (before != labels) & (after == labels)
    spoilt = int(((before == labels) & (after != labels)).sum())
    found = corrected.nonzero().flatten().tolist()
    chosen = [found[k * len(found) // count] for k in range(count)] if len(found) > count else found

    def name(index: Tensor) -> str:
        return str(int(index)) if classes is None else classes[int(index)]

    title = f"{len(found)} of {len(labels):,} corrected, {spoilt} newly wrong"
    title += f"; {len(chosen)} shown" if len(chosen) < len(found) else ""
    rows = -(-len(chosen) // columns)
    cell = side + 2 * LINE + GAP
    width = max(columns * (side + GAP) + GAP, 320)
    picture = PIL.Image.new("RGB", (width, LINE + 3 * GAP + rows * (cell + GAP)), "white")
    _write(picture, (GAP, GAP), title)
    for k, index in enumerate(chosen):
        corner = GAP + (k % columns) * (side + GAP), LINE + 3 * GAP + (k // columns) * (cell + GAP)
        image = images[index]
        _check_shown(image, "(1, H, W) or (3, H, W)", 3)
        shown = tv.resize(image.cpu().float(), [side, side], interpolation=tv.InterpolationMode.BICUBIC).clamp(0, 1)
        picture.paste(tv.to_pil_image(shown).convert("RGB"), corner)
        text = f"{name(labels[index])}\nnot {name(before[index])}"
        _write(picture, (corner[0], corner[1] + side), text, width=side)
    return picture


def fit_curves(history: Sequence[Event]) -> Figure:
    """Draw a panel for each metric of each stage of a fit, against its steps; bold is the mean over a tenth of them.

    Args:
        history: events of a fit, :attr:`learned_aug.FitResult.history`.

    Raises:
        ImportError: without matplotlib, the extra "viz".
        ValueError: if the history holds no metrics.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in history:
        for name, value in event.metrics.items():
            if event.total > 1:
                curves.setdefault(f"{event.stage}: {name}", []).append((event.step, value))
    if not curves:
        raise ValueError("history must hold events with metrics, got none; pass FitResult.history of a finished fit")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure("fit_curves", 3.4 * columns, 2.2 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, points) in zip(axes, curves.items(), strict=False):
        steps, values = zip(*points, strict=True)
        window = max(1, len(points) // 10)
        axis.plot(steps, values, linewidth=1, color="C0", alpha=0.4 if window > 1 else 1)
        if window > 1:
            means = torch.tensor(values, dtype=torch.float64).unfold(0, window, 1).mean(1).tolist()
            axis.plot(steps[window - 1 :], means, linewidth=1.5, color="C0")
        axis.set_title(name, fontsize=9)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))
        axis.yaxis.get_offset_text().set_fontsize(7)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("step", fontsize=7)
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    return figure


def strength_panels(
    strengths: Mapping[str, Sequence[float]], drops: Mapping[str, Sequence[tuple[float, float]]], title: str = ""
) -> Figure:
    """One panel for each family of changes: predicted fall of the validation loss against strength, with intervals.

    Args:
        strengths: by family, the strengths tried.
        drops: by family, for each strength the mean and half of the width of its interval, nats.
        title: shown above, such as :attr:`StrengthCurves.verdict`.

    Raises:
        ImportError: without matplotlib, the extra "viz".
        ValueError: if there is no family.
    """
    if not strengths:
        raise ValueError("strengths must hold at least one family, got none; switch one on in the augmenter's config")
    figure = _figure("strength_panels", 3.0 * len(strengths), 2.8)
    axes = figure.subplots(1, len(strengths), squeeze=False, sharey=True)[0]
    for axis, (family, values) in zip(axes, strengths.items(), strict=True):
        means, margins = zip(*drops[family], strict=True)
        axis.axhline(0, color="0.7", linewidth=1)
        axis.errorbar(values, means, margins, marker="o", markersize=3, linewidth=1.2, capsize=2)
        axis.set_xlabel(family, fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("predicted fall of the\nvalidation loss, nats", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=8)
    return figure


def influence_scatter(predicted: Tensor, actual: Tensor, *, what: str = "change of the validation loss") -> Figure:
    """Plot predicted changes against those measured after refitting, with the diagonal, the correlation and the slope.

    Args:
        predicted: changes of the validation loss that influence predicts, (n,), nats.
        actual: changes of the validation loss measured after refitting, (n,), nats.
        what: name of both axes.

    Raises:
        ImportError: without matplotlib, the extra "viz".
        ValueError: if the lengths differ, or are less than 2.
    """
    if predicted.shape != actual.shape or predicted.ndim != 1 or len(predicted) < 2:
        got = tuple(predicted.shape), tuple(actual.shape)
        raise ValueError(f"predicted and actual must be of one shape, (n,), n 2 or more, got {got[0]} and {got[1]}")
    x, y = predicted.double().cpu(), actual.double().cpu()
    pearson = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    slope = float((x * y).sum() / x.square().sum())
    exponent = math.floor(math.log10(float(torch.stack([x, y]).abs().max().clamp_min(1e-300))))
    scale = 10.0**-exponent
    figure = _figure("influence_scatter", 4.4, 4.2)
    axis = figure.subplots()
    ends = [scale * float(f(torch.stack([x, y]))) for f in (torch.min, torch.max)]
    axis.plot(ends, ends, color="0.7", linewidth=1, label="equal")
    axis.scatter(scale * x, scale * y, s=9)
    axis.set(xlabel=f"predicted {what}, 1e{exponent} nats", ylabel=f"after refitting, 1e{exponent} nats")
    axis.set_title(f"n = {len(x)}, Pearson {pearson:.4f}, slope {slope:.3f}", fontsize=10)
    axis.legend(fontsize=8)
    return figure


def interval_chart(rows: Mapping[str, Sequence[float]], margins: Mapping[str, float], *, what: str) -> Figure:
    """Draw a mean with its interval for each row, and the single values beside it.

    Args:
        rows: name to values, at least one each.
        margins: name to half the width of the mean's interval; NaN draws none.
        what: label of the axis.

    Raises:
        ImportError: without matplotlib, the extra "viz".
    """
    figure = _figure("interval_chart", 7.0, 1.1 + 0.3 * len(rows))
    axis = figure.subplots()
    for place, (name, values) in enumerate(rows.items()):
        mean, margin = sum(values) / len(values), margins[name]
        axis.plot(values, [place] * len(values), ".", color="C0", alpha=0.4)
        if math.isfinite(margin):
            axis.errorbar(mean, place, xerr=margin, color="C0", capsize=3)
        axis.plot(mean, place, "o", color="C0")
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(what, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    return figure


def _figure(name: str, width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{name} needs matplotlib; install it with pip install 'learned-aug[viz]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _check_shown(images: Tensor, expected: str, ndim: int) -> None:
    if images.ndim != ndim or images.shape[-3] not in (1, 3):
        raise ValueError(f"images must be {expected} to be shown, got {tuple(images.shape)}")


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


def _cells(images: Tensor, augmenter: Augmenter, side: int) -> Tensor:
    """Images (B, C, H, W) in the range of the augmenter, to (B, C, side, side) in [0, 1]."""
    images = images * _column(augmenter.config.std, images) + _column(augmenter.config.mean, images)
    shown: Tensor = tv.resize(images.clamp(0, 1), [side, side], interpolation=tv.InterpolationMode.BICUBIC)
    return shown.clamp(0, 1)


def _grid(cells: Tensor, columns: int) -> PIL.Image.Image:
    image: PIL.Image.Image = tv.to_pil_image(make_grid(cells.cpu(), nrow=columns, padding=GAP, pad_value=0.5))
    return image


def _write(picture: PIL.Image.Image, corner: tuple[int, int], text: str, width: int | None = None) -> int:
    """Write lines of text, each cut to `width` pixels; returns their number."""
    pen = PIL.ImageDraw.Draw(picture)
    lines = text.split("\n")
    for k, line in enumerate(lines):
        font, line = _shown(line)
        whole = line
        while width is not None and len(line) > 1 and pen.textlength(line, font) > width:
            line = whole[: len(line.removesuffix(CUT)) - 1] + CUT
        pen.text((corner[0], corner[1] + k * LINE), line, fill="black", font=font)
    return len(lines)


def _shown(line: str) -> tuple[Font, str]:
    """Return a font for a line, and the line with what that font lacks as escapes, such as \\u732b."""
    line = unicodedata.normalize("NFC", line)  # a letter and its accent as one, where there is such a letter
    fonts = _fonts()
    font = min(fonts, key=lambda font: sum(not _has(font, c) for c in line))  # the first of those that lack least
    escaped = (c if _has(font, c) else c.encode("unicode_escape").decode() for c in line)
    return font, "".join(escaped)


@functools.cache
def _fonts() -> list[Font]:
    """Return the fonts at hand, by preference: PIL's own, matplotlib's DejaVu Sans, and common ones of the system."""
    try:
        fonts: list[Font] = [PIL.ImageFont.load_default(size=12)]
    except (ImportError, OSError):  # a PIL without FreeType
        fonts = [PIL.ImageFont.load_default()]
    if spec := importlib.util.find_spec("matplotlib"):
        for folder in spec.submodule_search_locations or ():
            with contextlib.suppress(ImportError, OSError):
                fonts.append(PIL.ImageFont.truetype(f"{folder}/mpl-data/fonts/ttf/DejaVuSans.ttf", 12))
    for name in SYSTEM_FONTS:
        with contextlib.suppress(ImportError, OSError):
            fonts.append(PIL.ImageFont.truetype(name, 12))
    return fonts


@functools.lru_cache(maxsize=4096)
def _has(font: Font, letter: str) -> bool:
    """Whether a font draws a character as something else than its sign for what it lacks."""
    if not letter.isprintable():
        return False
    if not isinstance(font, PIL.ImageFont.FreeTypeFont) or letter == " ":
        return letter.isascii()
    mask, missing = (font.getmask(c) for c in (letter, MISSING))
    return (mask.size, bytes(mask)) != (missing.size, bytes(missing))


def _flow_key(side: int) -> PIL.Image.Image:
    """Draw a disc of all directions, each in the color of a flow that points there."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    disc = flow_colors(torch.stack([x, y])[None], 1.0)[0]
    key: PIL.Image.Image = tv.to_pil_image(torch.where(torch.hypot(x, y) <= 1, disc, torch.ones(())))
    return key
