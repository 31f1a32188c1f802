"""Trains the rows and arms of the paper's tables, and prints the paper's figures beside ours.

A row is a data set, a share of its labels, a classifier and a schedule; an arm is an augmentation. Every training is
one line of a results file, and is not run again. Published figures are in published.json, the options that the four
scripts share in `main`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from data import DATA, Images, Plan, split
from models import Classifier
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from learned_aug import Augmenter, AugmenterConfig, FitConfig, LinearConfig, RetrainConfig, SteeredDraws, fit, retrain
from learned_aug.cli.settings import seed_number
from learned_aug.influence.head import borrowed
from learned_aug.runtime.distributed import all_mean, all_sum_, average_gradients_, rank, world_size
from learned_aug.training import UNSTEERED
from learned_aug.training.augment import Augment, Chain, Cutout, applied

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from rows import append, read  # noqa: E402


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: data, classifier and schedule, the same for all arms."""

    name: str
    data: str
    """A name of `data.DATA`."""
    model: str
    """A name of `models.MODELS`."""
    epochs: int
    batch: int
    """Images of a step, over all processes."""
    lr: float
    decay: str | tuple[float, ...] = "constant"
    """"constant", "cosine" to 0, or the shares of the schedule after which the rate is divided by ten."""
    weight_decay: float = 0.0
    nesterov: bool = False
    clip: float | None = None
    """Largest norm of the gradient."""
    per_class: int | None = None
    """Labeled images of each class, another choice for each seed; None is all."""
    plain: int = 0
    """Last epochs, without augmentation."""
    with_val: bool = False
    """Whether all arms also train on the hyper-validation images in the end, as published baselines do."""
    growth: float = 0.0
    """Share of stage 1 in which the paper's fields grow (ImageNet)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """An augmentation."""

    heuristic: bool = True
    """Crop, and flip where that keeps the label; on ImageNet Inception's."""
    policy: str = ""
    """"AutoAugment" (of CIFAR-10 or ImageNet, by the size of the images) or "TrivialAugmentWide"."""
    cutout: bool = False
    networks: str = ""
    """Ours: "steered", or its control "prior". The paper's, on all images: "fitted", or its controls "pretrained" and
    "untrained"."""
    config: tuple[tuple[str, Any], ...] = ()
    """Fields of AugmenterConfig that differ from the paper's."""
    with_val: bool = False
    """Whether the hyper-validation images are trained on, whose labels the paper's method reads: a control."""


HEURISTIC = Arm()
NONE = Arm(heuristic=False)
CUTOUT = Arm(cutout=True)
AUTO_AUGMENT = Arm(policy="AutoAugment")
TRIVIAL_AUGMENT = Arm(policy="TrivialAugmentWide")
PAPER = Arm(networks="fitted")
UNTRAINED = Arm(networks="untrained")
OURS = Arm(networks="steered")
PRIOR = Arm(networks="prior")
METHODS = {"paper": PAPER, "paper, untrained": UNTRAINED, "ours": OURS, "ours, prior": PRIOR}


class Bench:
    """A row's data and schedule for a seed, and the trainings on it."""

    def __init__(self, row: Row, seed: int, args: argparse.Namespace) -> None:
        self.row, self.seed, self.args, self.source = row, seed, args, DATA[row.data]
        self.device = torch.device(args.device)
        self.data, labels = self.source.read(args.data, True)
        self.train, self.val = split(self.source, labels, row.per_class, seed)
        name = re.sub(r"\W+", "-", f"{row.name} {digest(dataclasses.asdict(row))} {args.scale:g}")
        self.folder = args.work / name / str(seed)

    def model(self, *, compiled: bool = False) -> Classifier:
        """Return a fresh classifier, the same one for all arms of a seed."""
        torch.manual_seed(self.seed)
        source = self.source
        model = Classifier(self.row.model, source.classes, source.mean, source.std, amp=self.args.amp)
        model.to(self.device)
        if compiled and self.args.compile:
            model.network.compile()
        return model

    def images(self, places: Sequence[int], augment: Any = None) -> Images:
        return Images(self.data, places, self.source.transform(), augment)

    def steps(self, images: int, epochs: int) -> int:
        batches = images // (min(self.row.batch, images) // world_size() * world_size())
        return max(1, round(self.args.scale * epochs * batches))

    def trained(self, arm: Arm, networks: Augmenter | None = None, *, with_val: bool = False) -> tuple[Classifier, int]:
        """Train a classifier.

        Returns:
            The classifier, and the steps that it took.
        """
        row, places = self.row, self.train + (self.val if with_val else [])
        steps = self.steps(len(places), row.epochs)
        last = self.steps(len(places), row.plain) if row.plain else 0
        model = self.model(compiled=True)
        transform = self.source.transform(arm.policy, heuristic=arm.heuristic)
        plan = Plan(len(places), row.batch, steps, steps - last, self.seed)
        workers = self.args.workers
        loader = DataLoader(self.images(places, transform), batch_sampler=plan, num_workers=workers)
        config = RetrainConfig(
            steps=steps,
            make_optimizer=functools.partial(make_optimizer, row),
            make_schedule=functools.partial(make_schedule, row),
        )
        augment = self.on_batches(arm, model, networks)
        if augment is not None and last:
            augment = Until(augment, steps - last)
        torch.manual_seed(self.seed + 1000 * rank())
        retrain(model, loader, config, augment=augment, seed=self.seed)
        gc.collect()  # ends the loader's workers before other ones start
        with torch.no_grad():  # batch-norm statistics are each process's own
            for values in filter(Tensor.is_floating_point, model.buffers()):
                values.copy_(all_mean(values))
        return model, steps

    def on_batches(self, arm: Arm, model: nn.Module, networks: Augmenter | None) -> Augment | None:
        """Return what is done to whole batches, on the device."""
        stages: list[Augment] = []
        if arm.networks in ("steered", "prior"):
            stages.append(SteeredDraws(model, seed=self.seed, **(UNSTEERED if arm.networks == "prior" else {})))
        elif networks is not None:
            stages.append(SteeredDraws(model, augmenter=networks, seed=self.seed, **{**UNSTEERED, "share": 1.0}))
        stages += [Cutout()] if arm.cutout else []
        return Chain(*stages) if stages else None

    def classifier(self) -> Classifier:
        """Return the classifier that the paper's networks are fitted to: of the heuristic arm, without `val`."""
        path = self.folder / "classifier.pt"
        if path.exists():
            model = self.model()
            model.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
            return model
        model, _ = self.trained(HEURISTIC)
        if rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        all_sum_(torch.zeros(1, device=self.device))  # no process looks for the file before it is there
        plain = self.model()  # not compiled: a fit hooks into it
        plain.load_state_dict(model.state_dict())
        return plain

    def networks(self, arm: Arm) -> Augmenter:
        """Fit the paper's networks, or read them back."""
        source, scale = self.source, self.args.scale
        config = FitConfig.paper(seed=self.seed)
        stages = {
            "pretrain": dataclasses.replace(config.pretrain, growth=self.row.growth),
            "maximize": config.maximize,
        }
        stages = {k: dataclasses.replace(s, steps=max(1, round(scale * s.steps))) for k, s in stages.items()}
        result = fit(
            self.classifier().eval(),
            self.read(self.train),
            self.read(self.val),
            baseline=source.baseline,
            augmenter=AugmenterConfig.paper(channels=source.channels, size=source.side, **dict(arm.config)),
            config=dataclasses.replace(config, **stages),
            checkpoint_dir=self.folder / f"fit-{digest(dict(arm.config))}",
            progress=self.args.progress,
        )
        networks = {"fitted": result.fitted, "pretrained": result.pretrained, "untrained": result.prior}[arm.networks]
        assert networks is not None
        return networks

    def read(self, places: Sequence[int]) -> Dataset[Any] | DataLoader[Any]:
        """Return images for a fit: read by workers where there are any, in batches of the same size."""
        images, batch = self.images(places), LinearConfig().batch_size // world_size()
        if not self.args.workers:
            return images
        sampler = DistributedSampler(images, world_size(), rank()) if world_size() > 1 else None
        return DataLoader(images, batch, sampler is None, sampler, num_workers=self.args.workers)

    def measure(self, arm: Arm) -> dict[str, Any]:
        """Train one classifier and measure it on the test images."""
        start = time.perf_counter()
        networks = self.networks(arm) if arm.networks in ("fitted", "pretrained", "untrained") else None
        with_val = self.row.with_val or arm.with_val
        if arm == HEURISTIC and not with_val:
            model, steps = self.classifier(), self.steps(len(self.train), self.row.epochs)
        else:
            model, steps = self.trained(arm, networks, with_val=with_val)
        top1, top5 = self.errors(model)
        return {
            "row": self.row.name,
            "seed": self.seed,
            "scale": self.args.scale,
            "settings": settings(self.row, arm, self.args),
            "steps": steps,
            "test_error": top1,
            "test_top5_error": top5,
            "seconds": round(time.perf_counter() - start, 1),
        }

    @torch.no_grad()
    def errors(self, model: nn.Module) -> tuple[float, float]:
        """Return the shares of test images whose label is not the first, and not among the first five."""
        data, labels = self.source.read(self.args.data, False)
        images = Images(data, range(rank(), len(labels), world_size()), self.source.transform())
        wrong = torch.zeros(2, dtype=torch.float64, device=self.device)
        with borrowed(model):
            for batch, answers in DataLoader(images, 250, num_workers=self.args.workers):
                best = model(batch.to(self.device)).topk(min(5, self.source.classes)).indices
                right = best == answers.to(self.device)[:, None]
                wrong += torch.stack([~right[:, 0], ~right.any(1)]).sum(1)
        top1, top5 = (all_sum_(wrong) / len(labels)).tolist()
        return top1, top5


class Until:
    """An augmentation of batches that ends after so many calls."""

    def __init__(self, augment: Augment, calls: int) -> None:
        self.augment, self.left = augment, calls

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.left -= 1
        return applied(self.augment, images, labels) if self.left >= 0 else (images, labels)


def make_optimizer(row: Row, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return SGD that averages gradients over the processes, and clips them, before each step."""
    trained = list(parameters)
    optimizer = torch.optim.SGD(trained, row.lr, momentum=0.9, weight_decay=row.weight_decay, nesterov=row.nesterov)

    def prepare(*_: Any) -> None:
        average_gradients_(trained)
        if row.clip is not None:
            nn.utils.clip_grad_norm_(trained, row.clip)

    optimizer.register_step_pre_hook(prepare)
    return optimizer


def make_schedule(row: Row, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Return the learning rate by the share of the schedule that is done."""

    def factor(step: int) -> float:
        done = step / steps
        if row.decay == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        return 0.1 ** sum(done >= drop for drop in row.decay) if isinstance(row.decay, tuple) else 1.0

    return LambdaLR(optimizer, factor)


def settings(row: Row, arm: Arm, args: argparse.Namespace) -> dict[str, Any]:
    """What makes two trainings comparable, as JSON has it."""
    values = {**dataclasses.asdict(row), "arm": dataclasses.asdict(arm), "amp": args.amp}
    return dict(json.loads(json.dumps(values)))


def digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def schedule_text(row: Row, scale: float) -> str:
    whole = f"{row.epochs:,} epochs of {row.batch:,}"
    return whole if scale == 1 else f"{scale:g} of {whole}"


def error_text(results: Sequence[Mapping[str, Any]], top5: bool) -> str:
    """Mean error %, with the standard deviation of several seeds; of ImageNet top 1 / top 5."""
    values = [100 * r["test_error"] for r in results]
    if top5:
        return f"{statistics.mean(values):.1f} / {statistics.mean(100 * r['test_top5_error'] for r in results):.1f}"
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def table(
    rows: Sequence[Row],
    arms: Mapping[str, Arm],
    published: Mapping[str, Mapping[str, float | str]],
    results: Sequence[Mapping[str, Any]],
) -> str:
    """The paper's figures beside ours, error %; a line for each row, arm and share of the schedule."""
    lines = [f"{'row':38} {'arm':20} {'published':>11} {'here':>14}  n  schedule"]
    for row in rows:
        given = published.get(row.name, {})
        for arm in dict.fromkeys([*given, *arms]):
            line = f"{row.name:38} {arm:20} {given.get(arm, '-'):>11}"
            found = [r for r in results if (r["row"], r["arm"]) == (row.name, arm)]
            for scale in sorted({r["scale"] for r in found}, reverse=True):
                runs = [r for r in found if r["scale"] == scale]
                here = error_text(runs, row.data == "imagenet")
                lines.append(f"{line} {here:>14} {len(runs):2}  {schedule_text(row, scale)}")
            if not found and arm in given:
                lines.append(f"{line} {'-':>14}  0  {'not run' if arm in arms else 'quoted'}")
    return "\n".join(lines)


def provenance() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    command = re.sub(r" --(work|results) \S+", "", re.sub(r"(--data) \S+", r"\1 ROOT", command))  # no folder of ours
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return {
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "device": f"{world_size()} x {gpu}" if gpu else cpu,
        "command": command,
        "commit": commit,
    }


def main(
    doc: str | None,
    rows: Sequence[Row],
    arms: Mapping[str, Arm],
    argv: Sequence[str] | None = None,
) -> None:
    """Run what is missing of a table, and print it.

    Args:
        doc: text of --help.
        rows: lines of the table.
        arms: augmentations by name.
        argv: arguments in place of the command line's.
    """
    script = Path(sys.argv[0]).stem
    published = json.loads((HERE / "published.json").read_text()).get(script, {})
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="root folder of the data sets; without it the table is printed")
    parser.add_argument("--rows", nargs="+", default=[""], metavar="TEXT", help="parts of names of rows (all)")
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms), help="(all)")
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0], help="(%(default)s)")
    parser.add_argument("--scale", type=share, default=1.0, help="share of the schedule (%(default)s)")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True, help="bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile the classifier")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="folder of fits (%(default)s)")
    parser.add_argument("--progress", action="store_true", help="show the progress of fits")
    parser.add_argument("--results", type=Path, default=HERE / "results" / f"{script}.jsonl")
    args = parser.parse_args(argv)
    if "RANK" in os.environ:  # torchrun
        if args.device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    chosen = [row for row in rows if any(text in row.name for text in args.rows)]
    if not chosen:
        parser.error(f"--rows must be parts of the names {', '.join(row.name for row in rows)}, got {args.rows}")
    done = {key(r) for r in read(args.results)}
    for seed in dict.fromkeys(args.seeds) if args.data is not None else ():
        for row in chosen:
            bench = None
            for name in dict.fromkeys(args.arms):
                wanted = {"row": row.name, "seed": seed, "scale": args.scale}
                if key({**wanted, "settings": settings(row, arms[name], args)}) in done:
                    continue
                try:
                    bench = bench or Bench(row, seed, args)
                except (OSError, RuntimeError) as error:  # as where its data are not below ROOT
                    print(f"{row.name}: not run ({error})", file=sys.stderr)
                    break
                line = {**bench.measure(arms[name]), "arm": name, **provenance()}
                if rank() == 0:
                    append(args.results, line)
                    error, seconds = 100 * line["test_error"], line["seconds"]
                    print(f"{row.name}, {name}, seed {seed}: {error:.2f} %, {seconds:.0f} s", file=sys.stderr)
    if rank() == 0:
        alike = {row.name: {name: settings(row, arm, args) for name, arm in arms.items()} for row in rows}
        found = {key(r): r for r in read(args.results) if r["settings"] == alike.get(r["row"], {}).get(r["arm"])}
        print(table(chosen, arms, published, list(found.values())))
    if dist.is_initialized():
        dist.destroy_process_group()


def share(text: str) -> float:
    """A share of the schedule, above 0 and at most 1."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")


def key(result: Mapping[str, Any]) -> str:
    """What makes a training the same one."""
    return json.dumps([result[k] for k in ("row", "seed", "scale", "settings")], sort_keys=True)
