"""Test error of augmentation arms, paired over seeds: what the tables of this folder share.

In a seed all arms share the classifier's initialization, the order of the data and the schedule. Every run is one line
of the results file: arm, seed, settings, errors, losses, seconds, versions, commit. An arm that is there for a seed
with the same settings is not run again.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from learned_aug import AugmenterConfig
from learned_aug.training.comparison import difference

sys.path.append(str(Path(__file__).parents[1]))
from rows import read


@dataclasses.dataclass(frozen=True)
class Arm:
    """How the training images of an arm are made."""

    baseline: str | None = None  # of all images, one draw each: a name of Task.baselines
    # Of the augmenter of a share of them: a name of STAGES or of pretrained weights; or a name of Task.baselines, which
    # then takes its place.
    source: str | None = None
    choice: dict[str, Any] | None = None  # among its draws: rule, draws, every, tilt, and settings of InfluenceConfig
    rest: str | None = None  # of the other images, after `baseline`: a name of Task.baselines
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # what differs from Task.config
    strength: float = 1.0  # of its draws, times that of the settings: a control
    reverse: bool = False  # what the dropout has learned: a control
    labeled: str = "train"  # "all": trained on the images that the influence reads as well


@dataclasses.dataclass(frozen=True)
class Task:
    """What differs between data sets."""

    load: Callable[[str, int, int], dict[str, tuple[torch.Tensor, torch.Tensor]]]  # of root, seed and images per class
    model: Callable[[argparse.Namespace], nn.Module]
    baselines: dict[str | None, Callable | None]  # from an image in [0, 1] to one
    heuristic: str  # the baseline that the augmenter is fitted with
    arms: dict[str, Arm]
    config: AugmenterConfig
    lr: float
    batch_size: int
    mix: float  # share of a batch that an augmenter replaces
    every: int  # steps between two snapshots of a choice


def run(task, args, seed, done):
    raise SystemExit(
        "these trainings used an API that is gone: check out the commit that a result names to run more; --report "
        "prints the tables"
    )


def provenance():
    """What produced a figure."""
    return {
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
        "command": " ".join(["python", *sys.argv]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }


def settings_of(args):
    """What makes two runs comparable."""
    names = ("per_class", "steps", "width", "depth", "pixels", "color", "amp")
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def report(rows, arms, reference, seeds):
    """Mean test error of each arm, and its paired difference to the reference; over all seeds if `seeds` is empty."""
    by_arm = defaultdict(dict)
    for row in rows:
        if not seeds or row["seed"] in seeds:
            by_arm[row["arm"]][row["seed"]] = row
    print(f"{'arm':24}  n  test error %      val error %   minus {reference!r}, points (95 %)     p")
    for arm in arms:
        runs = by_arm[arm]
        if not runs:
            continue
        test, val = (torch.tensor([100 * r[key] for r in runs.values()]) for key in ("test_error", "val_error"))
        spread = float(test.std()) if len(runs) > 1 else float("nan")
        line = f"{arm:24} {len(runs):2}  {test.mean():5.2f} +- {spread:.2f}  {val.mean():11.2f}"
        seeds = sorted(runs.keys() & by_arm[reference].keys())
        if arm != reference and len(seeds) > 1:
            pairs = [100 * (runs[s]["test_error"] - by_arm[reference][s]["test_error"]) for s in seeds]
            mean, low, high, p, _ = difference(pairs)
            line += f"   {mean:+6.2f} [{low:+.2f}, {high:+.2f}]  {p:10.1e}"
        print(line)


def numbers(text):
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main(task, doc, results, **defaults):
    """The command line: `defaults` are those of the settings."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="root folder of the data set")
    parser.add_argument("--seeds", type=numbers, default=range(0), help="such as 0-9")
    parser.add_argument("--arms", nargs="+", default=list(task.arms), choices=list(task.arms))
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="(%(default)s)")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--reference", default="untrained")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    settings = settings_of(args)
    if not args.report:
        if args.data is None:
            parser.error("--data is needed to run")
        done = {(r["arm"], r["seed"], json.dumps(r["settings"], sort_keys=True)) for r in read(args.results)}
        for seed in args.seeds:
            run(task, args, seed, done)
    rows = [row for row in read(args.results) if row["settings"] == settings]
    report(rows, task.arms, args.reference, args.seeds)
