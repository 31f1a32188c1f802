"""Test error of augmentation arms, paired over seeds: what the tables of this folder share.

In a seed all arms share the classifier's initialisation, the order of the data and the schedule. Every run is one line
of the results file: arm, seed, settings, errors, losses, seconds, versions, commit. An arm that is there for a seed
with the same settings is not run again.
"""

import argparse
import copy
import dataclasses
import functools
import json
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from choice import LearningHarderDropout, Random, Taught, WithoutLoss, Worst
from paired import compare
from torch import nn
from torch.utils.data import TensorDataset

from learned_aug import Augmenter, AugmenterConfig, fit, list_pretrained
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.fit.stages import Tap
from learned_aug.influence.head import borrowed, find_head
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.stream import Stream
from learned_aug.training.choice import DrawChoice
from learned_aug.training.steer import SteeredDraws

RULES = {
    "best": DrawChoice,
    "worst": Worst,
    "hardest": DrawChoice,
    "random": Random,
    "steered": SteeredDraws,
    "harder": SteeredDraws,
    "taught": Taught,  # by the classifier of the heuristic, without validation images
    "without loss": WithoutLoss,
}
BY_LOSS = ("hardest", "harder", "taught")  # rules that follow the classifier's own loss, not the influence
PRETRAIN, UNMAXIMIZED = PretrainConfig(), DropoutConfig(steps=0)
STAGES = {  # of the fit that gives an augmenter: what differs from FitConfig
    "untrained": {"maximize": UNMAXIMIZED},
    "pretrained": {"pretrain": PRETRAIN, "maximize": UNMAXIMIZED},
    "fitted": {"pretrain": PRETRAIN},
    "fitted, not pretrained": {},
    "fitted to harder": {"maximize": UNMAXIMIZED},  # and then LearningHarderDropout
    "fitted to the control": {},  # to a classifier trained with the untrained augmenter
    "linear": {"pretrain": PRETRAIN, "maximize": LinearConfig(steps=200, batch_size=128)},
    **{f"fitted, tilt {tilt:g}": {"maximize": DropoutConfig(tilt=tilt)} for tilt in (0.75, 1.5, 3.0, 6.0)},
}

FITTED = STAGES.keys() - {"untrained", "fitted to the control"}  # to the classifier of the heuristic


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
    labelled: str = "train"  # "all": trained on the images that the influence reads as well


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


def each(policy, images):
    """Images, each with a draw of its own."""
    return torch.stack([policy(image) for image in images])


def train(task, data, args, seed, baseline, augment, start=None, rest=None):
    """Train a classifier, or a copy of `start`; the same start, order and schedule whatever the arm."""
    torch.manual_seed(seed)
    model = task.model(args) if start is None else copy.deepcopy(start)
    model = model.to(memory_format=torch.channels_last)
    order = torch.Generator().manual_seed(seed)
    images, labels = data
    optimizer = torch.optim.SGD(model.parameters(), task.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.lr, total_steps=args.steps + 1, cycle_momentum=False)
    augment = augment(model) if augment is not None else None
    rows = torch.empty(0, dtype=torch.long)
    size, share = task.batch_size, round(task.mix * task.batch_size)
    for _ in range(args.steps):
        if len(rows) < size:
            rows = torch.randperm(len(images), generator=order)
        batch, rows = rows[:size], rows[size:]
        x, y = images[batch], labels[batch]
        if baseline is not None:
            x = each(baseline, x)
        if augment is not None:
            others = x[share:] if rest is None else each(rest, x[share:])
            x = torch.cat([augment(x[:share], y[:share]), others])
        model.train()
        with torch.autocast("cpu", enabled=bool(getattr(args, "amp", 0))):  # bfloat16
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def evaluate(model, images, labels):
    logits = torch.cat([model(x) for x in images.split(500)])
    return float((logits.argmax(1) != labels).double().mean()), float(F.cross_entropy(logits, labels))


def fit_config(seed, arm, args):
    """Of the fit that gives an augmenter; the untrained one needs no steps."""
    color = {"color": arm.strength * args.color} if hasattr(args, "color") else {}
    return FitConfig(seed=seed, warp=arm.strength * args.pixels / 32, **color, **STAGES[arm.source])


def fitted(task, data, args, seed, arm, model):
    """An augmenter fitted to the classifier of the heuristic, what it does, and the seconds it took."""
    torch.manual_seed(seed)
    begin = time.perf_counter()
    result = fit(
        model,
        TensorDataset(*data["train"]),
        TensorDataset(*data["influence"]),
        baseline=task.baselines[task.heuristic],
        augmenter=dataclasses.replace(task.config, **arm.config),
        config=fit_config(seed, arm, args),
        amp=torch.bfloat16 if getattr(args, "amp", 0) else None,
        progress=False,
    )
    diagnostics = result.diagnostics["fitted"]
    if arm.source == "fitted to harder":
        learn_harder(task, result.augmenter, data["train"], args, seed, model)
        diagnostics = None
    return result.augmenter, diagnostics, time.perf_counter() - begin


def learn_harder(task, augmenter, data, args, seed, model):
    """Stage 3 of a default fit, towards a higher loss in place of a lower influence; in place."""
    config = DropoutConfig()
    settings = {"seed": seed, "batch_size": config.batch_size, "device": torch.device("cpu"), "shuffle": True}
    baseline = task.baselines[task.heuristic]
    batches = Stream(TensorDataset(*data), "train", "maximize", baseline=baseline, **settings)
    with borrowed(model), Tap(model, find_head(model), torch.bfloat16 if getattr(args, "amp", 0) else None) as tap:
        LearningHarderDropout(augmenter, tap, batches, None, None, config, seed=seed).run(lambda event: None)


def reverse(augmenter):
    """A copy that favours what this one avoids."""
    augmenter = copy.deepcopy(augmenter)
    for stage in augmenter.stages:
        for values in stage.encoder.keep[-1].parameters():
            values.neg_()
    return augmenter


def augmentation(task, augmenter, choice, train, influence, teacher):
    """From the classifier in training to a function of images and labels; `train` is what it is trained on."""
    if choice is None:
        return lambda model: lambda images, labels: augmenter(images)
    settings = {field.name: choice[field.name] for field in dataclasses.fields(InfluenceConfig) if field.name in choice}
    rule = choice.get("rule", "best")
    kind = RULES[rule]
    options = {"every": task.every, **{name: choice[name] for name in ("draws", "every", "tilt") if name in choice}}
    if rule == "taught":
        options["teacher"] = teacher
    val = None if rule in BY_LOSS else TensorDataset(*influence)
    train = TensorDataset(*train)
    return lambda model: kind(augmenter, model, train, val, config=InfluenceConfig(**settings), **options)


def run(task, args, seed, done):
    data = task.load(args.data, seed, args.per_class)
    data["all"] = tuple(torch.cat(pair) for pair in zip(data["train"], data["influence"], strict=True))
    settings = settings_of(args)
    model, model_seconds, fits = None, 0.0, {}
    for name in args.arms:
        if (name, seed, json.dumps(settings, sort_keys=True)) in done:
            continue
        arm = task.arms[name]
        key = (arm.source, arm.strength, *arm.config.items())
        heuristic = arm == Arm(task.heuristic)
        taught = arm.choice is not None and arm.choice.get("rule") == "taught"
        if model is None and (heuristic or taught or arm.source in FITTED):
            begin = time.perf_counter()
            model = train(task, data["train"], args, seed, task.baselines[task.heuristic], None)
            model_seconds = time.perf_counter() - begin
        if arm.source in task.baselines and arm.source is not None:
            fits[key] = functools.partial(each, task.baselines[arm.source]), None, 0.0
        elif arm.source in (entry.name for entry in list_pretrained()):
            fits[key] = Augmenter.from_pretrained(arm.source), None, 0.0
        elif arm.source is not None and key not in fits:
            # The untrained augmenter is the same for any classifier, its diagnostics are not.
            classifier = task.model(args) if model is None else model
            if arm.source == "fitted to the control":
                untrained = dataclasses.replace(arm, source="untrained")
                control, *_ = fits.get(("untrained", *key[1:])) or fitted(task, data, args, seed, untrained, classifier)
                augment = augmentation(task, control, None, data["train"], data["influence"], None)
                classifier = train(task, data["train"], args, seed, task.baselines[task.heuristic], augment)
            augmenter, diagnostics, fit_seconds = fitted(task, data, args, seed, arm, classifier)
            told = model is not None or arm.source != "untrained"
            fits[key] = augmenter, diagnostics if told else None, fit_seconds
        augmenter, diagnostics, fit_seconds = fits.get(key, (None, None, None))
        if arm.reverse:
            augmenter, diagnostics = reverse(augmenter), None
        begin = time.perf_counter()
        labelled = data[arm.labelled]
        augment = None
        if arm.source is not None:
            augment = augmentation(task, augmenter, arm.choice, labelled, data["influence"], model)
        if heuristic:
            final, seconds = model, model_seconds
        else:
            baseline, rest = task.baselines[arm.baseline], task.baselines[arm.rest]
            final = train(task, labelled, args, seed, baseline, augment, rest=rest)
            seconds = time.perf_counter() - begin
        scores = {part: evaluate(final, *data[part]) for part in ("choosing", "test")}
        row = {
            "arm": name,
            "seed": seed,
            "settings": settings,
            "test_error": scores["test"][0],
            "test_loss": scores["test"][1],
            "val_error": scores["choosing"][0],
            "val_loss": scores["choosing"][1],
            "seconds": round(seconds, 1),
            "fit_seconds": arm.source and round(fit_seconds, 1),
            "fit": arm.source and dataclasses.asdict(fit_config(seed, arm, args)) if arm.source in STAGES else None,
            "choice": arm.choice,
            "diagnostics": diagnostics,
            **provenance(),
        }
        args.results.parent.mkdir(exist_ok=True)
        with open(args.results, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"seed {seed} {name:18} test {row['test_error']:.2%} val {row['val_error']:.2%} {seconds:.0f} s", flush=True
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


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
            mean, low, high, p = compare(pairs)
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
