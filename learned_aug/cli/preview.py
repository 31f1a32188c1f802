"""Draw an augmenter's copies of images, to see what it does before training with it.

  learned-aug preview ./my-aug/augmenter photos/ --out grid.png
  learned-aug preview me/my-aug photo.jpg --out way.png --kind traversal

grid: rows are images, columns are draws; the first column is the original. traversal: one image on the way from one
draw to another, with the spatial and the appearance field.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from learned_aug.augmenter import Augmenter
from learned_aug.cli.images import check_headers, image_files, read_image
from learned_aug.cli.main import note
from learned_aug.cli.settings import seed_number
from learned_aug.config import AugmenterConfig
from learned_aug.runtime.events import Event, ProgressBars
from learned_aug.viz import diversity_grid, tau_traversal
from learned_aug.weights.files import write_atomic

__all__ = ["add_arguments", "run"]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}
FORMATS[".tiff"] = "TIFF"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="./FOLDER, a name that `learned-aug list` shows, or org/name"
    )
    parser.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="files, or folders of them")
    text = f"the picture to write, of the kind that its name says: {', '.join(FORMATS)}"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=text)
    parser.add_argument("--kind", choices=("grid", "traversal"), default="grid", help="kind of picture (%(default)s)")
    parser.add_argument("--draws", type=int, default=9, help="columns of the grid, or steps of the way (%(default)s)")
    parser.add_argument("--limit", type=int, default=16, help="rows of the grid, at most (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="side of a cell, pixels (%(default)s)")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the draws (%(default)s)")


def run(args: argparse.Namespace) -> str:
    """Draw the picture and say where it is.

    Raises:
        ValueError: for what the user can fix, in one line; or an OSError or WeightsError.
    """
    for name, low in (("draws", 2), ("side", 1), ("limit", 1)):
        if getattr(args, name) < low:
            raise ValueError(f"--{name} must be {low} or more, got {getattr(args, name)}")
    kind = FORMATS.get(args.out.suffix.lower())
    if kind is None or args.out.is_dir():
        raise ValueError(f"--out must be a file whose name ends in one of {', '.join(FORMATS)}, got {args.out}")
    if "/" in args.weights and not args.weights.startswith((".", "/", "~")) and Path(args.weights).is_dir():
        raise ValueError(f"{args.weights} means a Hub repository; for the folder of that name write ./{args.weights}")
    files = [file for path in args.images for file in _files(path)]
    if args.out.resolve() in {file.resolve() for file in files}:  # before --limit leaves some of them out
        raise ValueError(f"{args.out} is one of the images to show, which stay as they are; give another --out")
    if args.kind == "traversal" and len(files) > 1:
        raise ValueError(f"--kind traversal shows one image, got {len(files)}; name one file")
    if (count := len(files)) > args.limit:
        files = [files[k * count // args.limit] for k in range(args.limit)]
        note(f"{args.limit} of {count:,} images are shown, evenly spread; --limit sets how many")
    check_headers(files)
    augmenter = Augmenter.from_pretrained(args.weights)
    config = augmenter.config
    if config.channels not in (1, 3):
        raise ValueError(f"{args.weights} is for images of {config.channels} channels; 1 or 3 can be shown")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with ProgressBars() as bars:
        images = _read(files, config, max(args.side, config.size), bars)
    generator = torch.Generator().manual_seed(args.seed)
    if args.kind == "grid":
        picture = diversity_grid(augmenter, images, draws=args.draws, side=args.side, generator=generator)
    else:
        picture = tau_traversal(augmenter, images[0], steps=args.draws, side=args.side, generator=generator)
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=kind, **({"quality": 92} if kind in ("JPEG", "WEBP") else {}))
    except (OSError, ValueError) as error:  # a format's limit of pixels
        size = f"{picture.width} x {picture.height} pixels"
        raise ValueError(
            f"{args.out} cannot hold {size} as {kind} ({error}); lower --draws, --side or --limit, or write .png"
        ) from error
    write_atomic(args.out, buffer.getvalue())
    return f"Wrote {args.out}: {len(files)} images, {args.draws} {'draws' if args.kind == 'grid' else 'steps'}."


def _read(files: list[Path], config: AugmenterConfig, size: int, bars: ProgressBars) -> Tensor:
    """Read images into the value range of the augmenter, (B, C, size, size)."""
    steps = [v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize(config.mean, config.std), v2.ToPureTensor()])
    images = []
    for step, file in enumerate(files, 1):
        images.append(transform(read_image(file, gray=config.channels == 1)))
        if len(files) > 1:
            bars(Event("images", step, len(files)))
    return torch.stack(images)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"No such file or folder: {path}; give images, or a folder of them")
        return [path]
    files: list[Path] = image_files(path)
    if not files:
        raise ValueError(f"{path} holds no images; give files, or a folder with any of {', '.join(IMG_EXTENSIONS)}")
    return files
