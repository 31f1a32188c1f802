"""The ``learned-aug`` command."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from learned_aug import cli_fit, demo, hub
from learned_aug.augmenter import Augmenter
from learned_aug.card import published
from learned_aug.fit import CheckpointError
from learned_aug.registry import list_pretrained
from learned_aug.viz import diversity_grid, tau_traversal
from learned_aug.weights import WeightsError, encode

__all__ = ["main"]

# What the user can mend; anything else is a bug, and keeps its traceback.
MENDABLE = (ValueError, OSError, RuntimeError, ImportError, WeightsError, CheckpointError)
INTERRUPTED = 130  # the shell's exit status for Ctrl-C

ABOUT = """Augmentation networks fitted to your own classifier by influence functions.

  learned-aug demo                                          # the whole method on digits, about three minutes
  learned-aug fit --model resnet18 --weights resnet18.pt --data DIR --out my-aug
  learned-aug preview ./my-aug/augmenter photo.jpg --out grid.png
  learned-aug push my-aug/augmenter me/my-aug

learned-aug COMMAND --help explains each."""

PREVIEW = """Draw an augmenter's copies of images, to see what it does before training with it.

  learned-aug preview ./my-aug/augmenter photos/ --out grid.png
  learned-aug preview me/my-aug photo.jpg --out way.png --kind traversal

grid: rows are images, columns are draws. traversal: one image on the way from one draw to another, with the spatial
and the appearance field."""

PUSH = """Publish the folder that `learned-aug fit` or save_pretrained wrote on the Hugging Face Hub, with its model
card and pictures; fill in README.md there first. Log in with `hf auth login` before.

  learned-aug push my-aug/augmenter me/my-aug --private"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv`, by default that of the process; returns the exit status."""
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: print(f"learned-aug: warning: {message}", file=sys.stderr)
        try:
            print(args.run(args))
        except KeyboardInterrupt:
            print("learned-aug: interrupted", file=sys.stderr)
            return INTERRUPTED
        except MENDABLE as error:
            if args.traceback:
                raise
            print(f"learned-aug: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="learned-aug", description=ABOUT, formatter_class=raw)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from, for a bug report")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    text = "fit an augmenter to a digit classifier and compare it, in a few minutes on a CPU"
    sub = commands.add_parser("demo", help=text, description=demo.__doc__, formatter_class=raw)
    sub.add_argument("--out", type=Path, default=Path("learned-aug-demo"), help="folder for the results (%(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the networks, the fit and the data order (%(default)s)")
    sub.add_argument("--quick", action="store_true", help="a tenth of the training: shows the path, not the accuracy")
    sub.set_defaults(run=_demo)

    text = "fit an augmenter to your classifier on folders of images"
    sub = commands.add_parser("fit", help=text, description=cli_fit.__doc__, formatter_class=raw)
    cli_fit.add_arguments(sub)
    sub.set_defaults(run=cli_fit.run)

    text = "draw what an augmenter does to your images"
    sub = commands.add_parser("preview", help=text, description=PREVIEW, formatter_class=raw)
    sub.add_argument("weights", metavar="WEIGHTS", help="./FOLDER, a name that `learned-aug list` shows, or org/name")
    sub.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="files, or folders of them")
    sub.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    sub.add_argument("--kind", choices=("grid", "traversal"), default="grid", help="(%(default)s)")
    sub.add_argument("--draws", type=int, default=9, help="columns of the grid, or steps of the way (%(default)s)")
    sub.add_argument("--side", type=int, default=96, help="of a cell, pixels (%(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    sub.set_defaults(run=_preview)

    text = "publish an augmenter on the Hugging Face Hub"
    sub = commands.add_parser("push", help=text, description=PUSH, formatter_class=raw)
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="with model.safetensors, config.json and README.md")
    sub.add_argument("repo_id", metavar="REPO_ID", help="user/name or organisation/name; made if need be")
    sub.add_argument("--private", action="store_true", default=None, help="make the repository private")
    sub.add_argument("--revision", help="branch, made if need be (main)")
    sub.add_argument("--message", default="Upload an augmenter", help="of the commit (%(default)s)")
    sub.set_defaults(run=_push)

    sub = commands.add_parser("list", help="the pretrained weights of this release")
    sub.set_defaults(run=_list)
    return parser


def _demo(args: argparse.Namespace) -> str:
    try:
        return demo.run(args.out, seed=args.seed, quick=args.quick)
    except OSError as error:
        raise OSError(f"cannot write to {args.out}: {error}; choose another folder with --out") from error


def _preview(args: argparse.Namespace) -> str:
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


def _push(args: argparse.Namespace) -> str:
    augmenter = Augmenter.from_pretrained(args.folder)  # whatever cannot be read again is not published
    options = {"private": args.private, "revision": args.revision}
    if card := published(args.folder, args.repo_id):
        files = {**encode(augmenter.config, augmenter.state_dict()), **card}
        commit = hub.push(args.repo_id, files, message=args.message, **options)
    else:
        commit = augmenter.push_to_hub(args.repo_id, commit_message=args.message, **options)
    return f'Published. Use it with LearnedAugment.from_pretrained("{args.repo_id}", revision="{commit}")'


def _list(args: argparse.Namespace) -> str:
    return "\n".join(map(str, list_pretrained())) or "No pretrained weights come with this release."
