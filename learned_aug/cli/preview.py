"""Draw an augmenter's copies of images, to see what it does before training with it.

  learned-aug preview ./my-aug/augmenter photos/ --out grid.png
  learned-aug preview me/my-aug photo.jpg --out way.png --kind traversal

grid: rows are images, columns are draws. traversal: one image on the way from one draw to another, with the spatial
and the appearance field.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import PIL.Image
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from learned_aug.augmenter import Augmenter
from learned_aug.viz import diversity_grid, tau_traversal

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="./FOLDER, a name that `learned-aug list` shows, or org/name"
    )
    parser.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    parser.add_argument("--kind", choices=("grid", "traversal"), default="grid", help="kind of picture (%(default)s)")
    parser.add_argument("--draws", type=int, default=9, help="columns of the grid, or steps of the way (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="side of a cell, pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (%(default)s)")


def run(args: argparse.Namespace) -> str:
    """Draw the picture and say where it is.

    Raises:
        ValueError, OSError, WeightsError: for what the user can fix, in one line.
    """
    if args.draws < 2 or args.side < 1:
        raise ValueError(f"--draws must be 2 or more and --side 1 or more, got {args.draws} and {args.side}")
    if "/" in args.weights and not args.weights.startswith((".", "/", "~")) and Path(args.weights).is_dir():
        raise ValueError(f"{args.weights} means a Hub repository; for the folder of that name write ./{args.weights}")
    augmenter = Augmenter.from_pretrained(args.weights)
    config = augmenter.config
    files = [file for path in args.images for file in _files(path)]
    if args.kind == "traversal" and len(files) > 1:
        raise ValueError(f"--kind traversal shows one image, got {len(files)}; name one file")
    size = max(args.side, config.size)
    steps = [v2.Grayscale()] if config.channels == 1 else []
    steps += [v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    read = v2.Compose([*steps, v2.Normalize(config.mean, config.std), v2.ToPureTensor()])
    images = torch.stack([read(_open(file)) for file in files])
    generator = torch.Generator().manual_seed(args.seed)
    if args.kind == "grid":
        picture = diversity_grid(augmenter, images, draws=args.draws, side=args.side, generator=generator)
    else:
        picture = tau_traversal(augmenter, images[0], steps=args.draws, side=args.side, generator=generator)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out, format="PNG")
    return f"Wrote {args.out}: {len(files)} images, {args.draws} {'draws' if args.kind == 'grid' else 'steps'}."


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise ValueError(f"{path} holds no images; give files, or a folder with any of {', '.join(IMG_EXTENSIONS)}")
    return files


def _open(path: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as image:
            rgb: PIL.Image.Image = image.convert("RGB")
            return rgb
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that can be read; give PNG or JPEG files") from error
