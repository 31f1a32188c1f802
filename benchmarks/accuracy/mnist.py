"""MNIST with few labels: test error of augmentation arms, paired over seeds.

    python benchmarks/accuracy/mnist.py --data ROOT --seeds 0-9            # runs what is missing, then prints the table
    python benchmarks/accuracy/mnist.py --report --seeds 10-29             # the table alone, of these seeds

Protocol: the first 5,000 training images are the hyper-validation set, of which influence reads the first half and the
second half is for choosing; a class-balanced subset of the others (50 per class, drawn by the seed) is labelled. The
4-layer all-convolutional classifier at width 16 (TANDA: 64), batches of 50, SGD with Nesterov momentum, one cycle;
images in [0, 1]. In a seed all arms share initialisation, order and schedule. An augmenting arm replaces half of each
batch of cropped images by augmented copies.

Every run is one line of results/mnist.jsonl: arm, seed, settings, errors, losses, seconds, versions, commit. An arm
that is there for a seed with the same settings is not run again.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from choice import Hardest, Random, Worst
from paired import compare
from torch.utils.data import TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from learned_aug import AugmenterConfig, fit
from learned_aug.demo import all_conv
from learned_aug.fit import DrawChoice, FitConfig, InfluenceConfig, MaximizeConfig, PretrainConfig

RESULTS = Path(__file__).parent / "results" / "mnist.jsonl"
PIXELS = 1.0  # strength of the untrained prior, pixels at 32

# Arms and what they need: a baseline, an augmenter, and how to choose among its draws.
ARMS = {
    "none": (None, None, None),
    "crop": ("crop", None, None),
    "affine": ("affine", None, None),
    "crop, all labels": ("crop", None, None),  # trained on the images that influence reads as well
    "untrained": ("crop", "untrained", None),
    "pretrained": ("crop", "pretrained", None),
    "linear (paper)": ("crop", "linear", None),
    "anchored": ("crop", "anchored", None),
    "best of 2": ("crop", "untrained", {}),
    "worst of 2": ("crop", "untrained", {"rule": "worst"}),
    "hardest of 2": ("crop", "untrained", {"rule": "hardest"}),
    "random of 2": ("crop", "untrained", {"rule": "random"}),
    "best of 4": ("crop", "untrained", {"draws": 4}),
    "best of 2, damped": ("crop", "untrained", {"damping": 10.0, "weight_decay": 1e-3}),
}
NO_STEPS = MaximizeConfig(steps=0)
FITS = {
    "linear": MaximizeConfig(label_weight=0.0, trust_weight=0.0),
    "anchored": MaximizeConfig(),
}


def load(root, seed, per_class):
    """Training, influence, choosing and test sets as (images, labels)."""
    source, test = (MNIST(root, train=flag) for flag in (True, False))
    images, labels = source.data[:, None].float() / 255, source.targets
    generator = torch.Generator().manual_seed(seed)
    order = 5000 + torch.randperm(55000, generator=generator)
    chosen = torch.cat([order[labels[order] == c][:per_class] for c in range(10)])
    return {
        "train": (images[chosen], labels[chosen]),
        "influence": (images[:2500], labels[:2500]),
        "choosing": (images[2500:5000], labels[2500:5000]),
        "test": (test.data[:, None].float() / 255, test.targets),
    }


BASELINES = {
    None: None,
    "crop": v2.RandomCrop(28, padding=2),
    "affine": v2.Compose([v2.RandomAffine(15, scale=(0.9, 1.1), shear=10), v2.RandomCrop(28, padding=2)]),
}


def train(data, seed, baseline, augment, steps, width):
    """Train a classifier; the same start, order and schedule whatever the arm."""
    torch.manual_seed(seed)
    model = all_conv(width)
    order = torch.Generator().manual_seed(seed)
    images, labels = data["train"]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps + 1, cycle_momentum=False)
    augment = augment(model) if augment is not None else None
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(rows) < 50:
            rows = torch.randperm(len(images), generator=order)
        batch, rows = rows[:50], rows[50:]
        x, y = images[batch], labels[batch]
        if baseline is not None:
            x = torch.stack([baseline(image) for image in x])
        if augment is not None:
            x = torch.cat([augment(x[:25], y[:25]), x[25:]])
        model.train()
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def evaluate(model, images, labels):
    logits = torch.cat([model(x) for x in images.split(500)])
    return float((logits.argmax(1) != labels).double().mean()), float(F.cross_entropy(logits, labels))


def config(seed, source):
    """Of the fit that gives an augmenter; the untrained one needs no steps."""
    pretrain = PretrainConfig(steps=0) if source == "untrained" else PretrainConfig()
    return FitConfig(seed=seed, spread_pixels=PIXELS, pretrain=pretrain, maximize=FITS.get(source, NO_STEPS))


def fitted(source, data, seed, model):
    """An augmenter fitted to the cropped classifier, what it does, and the seconds it took."""
    torch.manual_seed(seed)
    begin = time.perf_counter()
    result = fit(
        model,
        TensorDataset(*data["train"]),
        TensorDataset(*data["influence"]),
        baseline=BASELINES["crop"],
        augmenter=AugmenterConfig(channels=1, size=28),
        config=config(seed, source),
        progress=False,
    )
    return result.augmenter, result.diagnostics["fitted"], time.perf_counter() - begin


def augmentation(augmenter, choice, data):
    """From the classifier in training to a function of images and labels."""
    if choice is None:
        return lambda model: lambda images, labels: augmenter(images)
    kind = {"best": DrawChoice, "worst": Worst, "hardest": Hardest, "random": Random}[choice.get("rule", "best")]
    influence = InfluenceConfig(**{k: choice[k] for k in ("damping", "weight_decay") if k in choice})
    train, val = TensorDataset(*data["train"]), TensorDataset(*data["influence"])
    return lambda model: kind(augmenter, model, train, val, draws=choice.get("draws", 2), config=influence)


def run(args, seed, done):
    data = load(args.data, seed, args.per_class)
    settings = {"per_class": args.per_class, "steps": args.steps, "width": args.width, "pixels": PIXELS}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    model, fits = None, {}
    for arm in args.arms:
        if (arm, seed, json.dumps(settings, sort_keys=True)) in done:
            continue
        baseline, source, choice = ARMS[arm]
        if source is not None and source not in fits:
            if model is None:
                model = train(data, seed, BASELINES["crop"], None, args.steps, args.width)
            fits[source] = fitted(source, data, seed, model)
        augmenter, diagnostics, fit_seconds = fits.get(source, (None, None, None))
        begin = time.perf_counter()
        augment = augmentation(augmenter, choice, data) if source else None
        labelled = data
        if arm == "crop, all labels":
            both = zip(data["train"], data["influence"], strict=True)
            labelled = {"train": tuple(torch.cat(pair) for pair in both)}
        final = train(labelled, seed, BASELINES[baseline], augment, args.steps, args.width)
        seconds = time.perf_counter() - begin
        scores = {part: evaluate(final, *data[part]) for part in ("choosing", "test")}
        row = {
            "arm": arm,
            "seed": seed,
            "settings": settings,
            "test_error": scores["test"][0],
            "test_loss": scores["test"][1],
            "val_error": scores["choosing"][0],
            "val_loss": scores["choosing"][1],
            "seconds": round(seconds, 1),
            "fit_seconds": source and round(fit_seconds, 1),
            "fit": source and dataclasses.asdict(config(seed, source)),
            "choice": choice,
            "diagnostics": diagnostics,
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
            "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
            "command": " ".join(["python", *sys.argv]),
            "commit": commit,
        }
        args.results.parent.mkdir(exist_ok=True)
        with open(args.results, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"seed {seed} {arm:18} test {row['test_error']:.2%} val {row['val_error']:.2%} {seconds:.0f} s", flush=True
        )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(rows, reference, seeds):
    """Mean test error of each arm, and its paired difference to the reference; over all seeds if `seeds` is empty."""
    by_arm = defaultdict(dict)
    for row in rows:
        if not seeds or row["seed"] in seeds:
            by_arm[row["arm"]][row["seed"]] = row
    print(f"{'arm':18}  n  test error %      val error %   minus {reference!r}, points (95 %)     p")
    for arm in ARMS:
        runs = by_arm[arm]
        if not runs:
            continue
        test, val = (torch.tensor([100 * r[key] for r in runs.values()]) for key in ("test_error", "val_error"))
        spread = float(test.std()) if len(runs) > 1 else float("nan")
        line = f"{arm:18} {len(runs):2}  {test.mean():5.2f} +- {spread:.2f}  {val.mean():11.2f}"
        seeds = sorted(runs.keys() & by_arm[reference].keys())
        if arm != reference and len(seeds) > 1:
            pairs = [100 * (runs[s]["test_error"] - by_arm[reference][s]["test_error"]) for s in seeds]
            mean, low, high, p = compare(pairs)
            line += f"   {mean:+6.2f} [{low:+.2f}, {high:+.2f}]  {p:10.1e}"
        print(line)


def numbers(text):
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="root folder of torchvision.datasets.MNIST")
    parser.add_argument("--seeds", type=numbers, default=range(0), help="such as 0-9")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--reference", default="untrained")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    done = {(r["arm"], r["seed"], json.dumps(r["settings"], sort_keys=True)) for r in read(args.results)}
    if not args.report:
        if args.data is None:
            parser.error("--data is needed to run")
        for seed in args.seeds:
            run(args, seed, done)
    report(read(args.results), args.reference, args.seeds)


if __name__ == "__main__":
    main()
