"""Image files as 8-bit pictures the way a viewer shows them; what cannot be shown rightly is refused with its path."""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from learned_aug.runtime.events import Event, OnEvent

__all__ = ["ImageError", "check_headers", "image_files", "note_sizes", "read_image"]

PHOTOMETRIC, BITS, WHITE_IS_ZERO = 262, 258, 0  # of TIFF
SHOWN = 3  # broken files that an error names


class ImageError(ValueError):
    """A file that cannot be read as a picture: names the path, the reason and the remedy."""


def read_image(path: Path | str, *, gray: bool = False) -> PIL.Image.Image:
    """Read a file as RGB, or as gray, 8 bits a channel.

    16 bits are scaled to 8, palettes resolved, transparent parts laid over white, CMYK converted, and the image is
    turned as its EXIF orientation says.

    Raises:
        ImageError: if it cannot be read, is animated or has several pages, or holds floats or 32-bit integers, whose
            range is not stated.
    """
    with _named(path), PIL.Image.open(path) as image:
        _refuse(image)
        image.load()
        return _converted(_upright(image), image).convert("L" if gray else "RGB")


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted, hidden ones and those of hidden folders left out.

    Links are followed, to each folder once. Links that lead nowhere are among the files, so that reading names them.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for root, names, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not is_hidden(name))
        paths = (Path(root, name) for name in files if not is_hidden(name))
        found += [p for p in paths if p.suffix.lower() in IMG_EXTENSIONS and (p.is_file() or not p.exists())]
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's own, such as .ipynb_checkpoints or __MACOSX."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "lost+found")


def check_headers(paths: Sequence[Path | str], on_event: OnEvent | None = None) -> list[int]:
    """Open each file without decoding it, and return the shorter side of each, pixels.

    Raises:
        ImageError: naming the first files that are no images, or of a kind that :func:`read_image` refuses.
    """
    sides, errors = [], []
    for step, path in enumerate(paths, 1):
        try:
            with _named(path), PIL.Image.open(path) as image:
                _refuse(image)
                sides.append(min(image.size))
        except ImageError as error:
            errors.append(str(error))
        if on_event is not None:
            on_event(Event("files' headers", step, len(paths)))
    if errors:
        more = f"; and {len(errors) - SHOWN} more of {len(paths)} files" if len(errors) > SHOWN else ""
        raise ImageError("; ".join(errors[:SHOWN]) + more)
    return sides


def note_sizes(sides: Sequence[int], size: int, say: Callable[[str], None]) -> None:
    """Say before the work that images are smaller or larger than the size they are brought to.

    Args:
        sides: the shorter side of each image, pixels.
        size: side that they are resized to, pixels.
        say: tells a note.

    Warns:
        UserWarning: if half of them are smaller.
    """
    middle = int(statistics.median(sides))
    if middle < size:
        warnings.warn(
            f"the images are enlarged: their shorter side is {middle} px (median of {len(sides):,}), --size is {size}, "
            f"which takes {(size / middle) ** 2:.3g} times the work; give --size {middle} unless the classifier was "
            "trained on enlarged ones",
            stacklevel=2,
        )
    elif middle > size:
        say(
            f"the images are reduced: their shorter side is {middle} px (median of {len(sides):,}), --size is {size}; "
            "the classifier should have been trained at that size"
        )


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Turn whatever reading raises, which PIL does in many types, into an error that names the file.

    Raises:
        ImageError: for any error within.
    """
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error  # which names the remedy
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is no image that can be read; replace it by a PNG or JPEG file, or delete it"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{path} cannot be read ({reason}); replace it, or delete it") from error
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path} cannot be read ({text}); replace it, or delete it") from error


def _refuse(image: PIL.Image.Image) -> None:
    """Refuse from the header alone what has no right form of 8 bits.

    Raises:
        ImageError: with what it is; its path is added outside.
    """
    kind = image.format or "image"
    if kind != "MPO" and getattr(image, "is_animated", False):  # the further pictures of a camera's MPO are previews
        raise ImageError(f"is a {kind} of {getattr(image, 'n_frames', 'several')} frames; save one of them as a file")
    if image.mode == "LAB":
        raise ImageError(f"is a {kind} in the color space Lab, which is not read; save it in RGB")
    if image.mode == "F" or (image.mode == "I" and kind not in ("PNG", "PPM")):
        what = "floating values" if image.mode == "F" else "32-bit integers"
        raise ImageError(f"is a {kind} of {what}, whose range is not stated; save it as a PNG of 8 or 16 bits")


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # of many types, where the EXIF data are damaged: viewers show such images as they are stored
        return image


def _converted(image: PIL.Image.Image, opened: PIL.Image.Image) -> PIL.Image.Image:
    """Bring an image to a mode from which PIL converts rightly to RGB and gray."""
    if image.mode.startswith("I"):  # 16 bits, in which PIL clips all above 255
        tags: Any = getattr(opened, "tag_v2", {})
        top = 2 ** int(np.ravel(tags.get(BITS, 16))[0]) - 1
        values = np.asarray(image).astype(np.float64) / top
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = 1 - values
        return PIL.Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = PIL.Image.new("RGBA", over.size, "white")
        return PIL.Image.alpha_composite(white, over).convert("RGB")
    return image
