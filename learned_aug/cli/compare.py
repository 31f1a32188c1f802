"""Train fresh classifiers with several augmentations on folders of images, paired by seed, and say which one helps.

DIR holds train/ and test/, each with a folder of images for each class, and val/ for the arms that read one, for which
--val 0.1 holds out a share of train/. The classifier is one of torchvision (resnet18), of timm (timm:resnet18), or
cnn4, a small one for 28 or 32 px. All arms share the first weights of a seed, the order of the images and the
--baseline augmentation.

  learned-aug compare --model resnet18 --data DIR --out my-comparison --seeds 3
  learned-aug compare --model cnn4 --size 28 --gray --baseline crop --data DIR --out my-comparison \\
      --arms baseline Mixup steered+Mixup --steps 3000 --seeds 5 --jobs 2
  learned-aug compare --model resnet18 --data DIR --out my-comparison --augmenter my-aug/augmenter

Arms: baseline, TrivialAugmentWide, RandAugment, AutoAugment, AugMix, Cutout, Mixup, CutMix, prior (random networks),
steered (draws of the prior, steered by the classifier in training); steered-influence, chosen-influence and fitted,
which read val/, and bring a control with them that trains on train/ and val/; A+B for one after the other.

The same command goes on after a stop, and with more arms or seeds. OUT gets compare.txt (the table), compare.csv (all
trainings), compare.png (errors with intervals), and augmenter/ where the best arm draws from networks.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import io
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from learned_aug.augmenter import Augmenter
from learned_aug.cli.classifier import build_model
from learned_aug.cli.main import IncompleteError, plain
from learned_aug.cli.report import Parts, keep_card, png
from learned_aug.cli.settings import add_setting, seed_number
from learned_aug.cli.work import Work, add_data_arguments, keep_folder, refuse_among_classes, refuse_foreign
from learned_aug.runtime.events import Event, ProgressBars
from learned_aug.training.arms import ARMS, Arm, describe, reads_val
from learned_aug.training.compare import compare
from learned_aug.training.comparison import Comparison, difference
from learned_aug.training.ledger import networks_of
from learned_aug.training.retrain import RetrainConfig
from learned_aug.viz import interval_chart
from learned_aug.weights.files import NAMES, write_atomic

__all__ = ["add_arguments", "run"]

DEFAULT = ("baseline", "TrivialAugmentWide", "prior", "steered")
IN_MEMORY = 2**30  # bytes of images that are decoded once and kept
CHOSEN = (
    "The networks in augmenter/ are those of the arm with the lowest error on these test images, which makes this "
    "error optimistic: state the error on other images."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    text = "of torchvision (resnet18), timm (timm:NAME), or cnn4"
    parser.add_argument("--model", required=True, metavar="NAME", help=text)
    add_data_arguments(parser.add_argument_group("data"))
    group = parser.add_argument_group("comparison")
    group.add_argument("--arms", nargs="+", default=[*DEFAULT], metavar="ARM", help=f"({' '.join(DEFAULT)})")
    text = "folder or name of weights that are an arm of their own, on half of each batch; may be repeated"
    group.add_argument("--augmenter", action="append", default=[], metavar="FOLDER", help=text)
    group.add_argument("--seeds", metavar="N", type=int, default=3, help="trainings of each arm (%(default)s)")
    add_setting(group, RetrainConfig, "steps")
    add_setting(group, RetrainConfig, "batch_size")
    add_setting(group, RetrainConfig, "lr")
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    group.add_argument("--jobs", metavar="N", type=int, default=1, help="processes that train (%(default)s)")
    group.add_argument("--seed", metavar="N", type=seed_number, default=0, help="the first seed (%(default)s)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.add_argument("--device", metavar="NAME", default=default, help="where to train (%(default)s)")


def run(args: argparse.Namespace) -> str:
    """Compare, and write table, figures and picture.

    Returns:
        The table, and what was written.

    Raises:
        ValueError: for what the user can fix, in one line; or an OSError, RuntimeError or ImportError.
        IncompleteError: if the table is written, and the picture is missing.
    """
    for option in ("seeds", "jobs"):
        if (count := getattr(args, option)) < 1:
            raise ValueError(f"--{option} must be at least 1, got {count}")
    config = RetrainConfig(steps=args.steps, batch_size=args.batch_size, lr=args.lr)
    arms: dict[str, Arm] = {name: name for name in args.arms}
    for name in args.arms:
        describe(name)  # which refuses unknown ones, before the images are read
    for name in dict.fromkeys(args.augmenter):
        if (arm := _arm_name(name)) in ARMS or arm in arms:
            raise ValueError(
                f"--augmenter {name} must have a name of its own, {arm!r} is another arm; rename its folder"
            )
        arms[arm] = augmenter = Augmenter.from_pretrained(_source(name))
        if (channels := augmenter.config.channels) != (1 if args.gray else 3):
            remedy = "leave --gray out" if args.gray else "give --gray" if channels == 1 else "fit one"
            raise ValueError(f"--augmenter {name} is for images of {channels} channels; {remedy}")
    refuse_among_classes(args.data, args.out)
    lock = keep_folder(args.out)
    try:
        refuse_foreign(args.out, "compare.txt", "comparison")
        work = Work(args, config, needs_val=any(map(reads_val, args.arms)))
        if work.data.test is None:
            raise ValueError(
                f"{args.data} has no test/, on which arms are compared; add it, with images that are neither in train/ "
                "nor in val/"
            )
        work.check(work.fresh())
        make = functools.partial(_fresh, args.model, len(work.data.classes), work.channels, args.device)
        result = compare(
            make,
            _ready(work, work.data.train, "train", shuffle=True),
            _ready(work, work.data.test, "test"),
            arms,
            val=_ready(work, work.data.val, "val") if len(work.data.val) else None,
            config=config,
            baseline=work.data.baseline,
            mean=work.data.mean,
            std=work.data.std,
            seeds=range(args.seed, args.seed + args.seeds),
            checkpoint_dir=args.out / "trainings",
            jobs=args.jobs,
        )
        return _report(args.out, result, Parts(debug=args.traceback))
    finally:
        lock.close()


def _fresh(name: str, classes: int, channels: int, device: str) -> nn.Module:
    return build_model(name, classes, channels).to(device)


def _source(name: str) -> str | Path:
    return Path(name) if Path(name).is_dir() else name


def _arm_name(name: str) -> str:
    path = Path(name)
    return path.parent.name if path.name == "augmenter" and path.parent.name else path.name


def _ready(work: Work, data: Dataset[Any], part: str, *, shuffle: bool = False) -> Dataset[Any] | DataLoader[Any]:
    """Return data to train with: kept in memory where they are small, else read by --workers."""
    args = work.args
    size = 4 * len(data) * work.channels * args.size**2  # type: ignore[arg-type]
    if size > IN_MEMORY:
        if not args.workers:
            return data
        return DataLoader(data, args.batch_size, shuffle=shuffle, drop_last=shuffle, num_workers=args.workers)
    images, labels = [], []
    loader = DataLoader(data, 100, num_workers=args.workers)
    with ProgressBars() as bars:
        for step, (batch, of) in enumerate(loader, 1):
            images.append(batch)
            labels.append(of)
            bars(Event(f"reading {part}/", step, len(loader)))
    return TensorDataset(torch.cat(images), torch.cat(labels))


def _report(out: Path, result: Comparison, parts: Parts) -> str:
    """Write the results, and say what is there.

    Raises:
        IncompleteError: if the picture is missing.
    """
    table = plain(str(result))
    networks = networks_of(out / "trainings", result.best)
    table += "" if networks is None else f"\n\n{CHOSEN}"
    write_atomic(out / "compare.txt", (table + "\n").encode())
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in dataclasses.fields(result.trainings[0])])
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, result.trainings))
    write_atomic(out / "compare.csv", buffer.getvalue().encode("utf-8", "backslashreplace"))
    written = ["compare.txt", "compare.csv"]
    with parts.attempt("compare.png"):
        try:
            _draw(out / "compare.png", result.errors)
            written.append("compare.png")
        except ImportError as error:
            table += f"\nNo picture: {error}"
    _remove_weights(out / "augmenter")  # of an earlier best
    if networks is not None:
        shutil.copytree(networks, out / "augmenter", dirs_exist_ok=True)
        written.append("augmenter")
    lines = [table, "", f"The best arm is {result.best}.", f"Wrote to {out}: {', '.join(written)}."]
    report = plain("\n".join(lines))
    if parts.missing:
        raise IncompleteError(report, parts.missing)
    return report


def _remove_weights(inside: Path) -> None:
    """Remove the weights of an earlier comparison; a card, which people write, is renamed, and other files stay."""
    if not inside.exists():
        return
    for name in NAMES:
        (inside / name).unlink(missing_ok=True)
    keep_card(inside)
    if not any(inside.iterdir()):
        inside.rmdir()


def _draw(path: Path, errors: Mapping[str, list[float]]) -> None:
    percent = {arm: [100 * e for e in values] for arm, values in errors.items()}
    margins = {}
    for arm, values in percent.items():
        d = difference(values)
        margins[arm] = d.high - d.mean if len(values) > 1 else math.nan
    what = "wrong on test, %" + (", with the mean's 95 % interval" if len(next(iter(percent.values()))) > 1 else "")
    buffer = io.BytesIO()
    interval_chart(percent, margins, what=what).savefig(buffer, format="png", dpi=100)
    write_atomic(path, png(PIL.Image.open(buffer)))
