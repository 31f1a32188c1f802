"""What a default fit costs beside the training of the classifier that it is for.

    python benchmarks/fit/stages.py --out benchmarks/fit/results/stages.json

Training steps are timed before and after the fit, in the same process, so that a busy machine slows both alike. Of
stage 3 only `--steps` are run, and its time is scaled to the default; all other parts run in full. The images are
smooth noise: none of the costs depends on what they show.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

import learned_aug
from learned_aug import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.runtime.events import Event

sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
from throughput import processor, residual_network, source, write

MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ResNet-56": (lambda: residual_network(9, 1), 32, 4000),
    "ResNet-18": (lambda: torchvision.models.resnet18(num_classes=10), 64, 8000),
}
EPOCHS, BATCH = 60, 128


def data(count: int, size: int, seed: int) -> TensorDataset:
    made = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=made)
    images = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return TensorDataset(images, torch.randint(10, (count,), generator=made))


def step_seconds(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, count: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    times = []
    for _ in range(count):
        start = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    return times


def measure(make: Callable[[], nn.Module], size: int, count: int, val: int, steps: int) -> dict:
    torch.manual_seed(0)
    model = make().train()
    train, held = data(count, size, 0), data(val, size, 1)
    batch = train.tensors[0][:BATCH], train.tensors[1][:BATCH]
    step_seconds(model, *batch, 1)
    training = step_seconds(model, *batch, 3)
    seconds: dict[str, float] = {}
    last = time.process_time()

    def on_event(event: Event) -> None:
        nonlocal last
        now = time.process_time()
        seconds[event.stage] = seconds.get(event.stage, 0.0) + now - last
        last = now

    config = FitConfig(maximize=DropoutConfig(steps=steps))
    learned_aug.fit(model.eval(), train, held, config=config, progress=False, on_event=on_event)
    seconds["other"] = time.process_time() - last
    seconds["maximize"] *= DropoutConfig().steps / steps
    training += step_seconds(model.train(), *batch, 3)
    step = statistics.median(training)
    whole = EPOCHS * -(-count // BATCH) * step
    return {
        "images": {"size": size, "train": count, "val": val},
        "training_step": round(step, 4),
        "training": round(whole, 1),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "fit": round(sum(seconds.values()), 1),
        "share_percent": round(100 * sum(seconds.values()) / whole, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val", type=int, default=1000, help="hyper-validation images")
    parser.add_argument("--steps", type=int, default=20, help="steps of stage 3 that are run")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        **source(),
        "device": processor() + ", 1 thread",
        "epochs": EPOCHS,
        "batch": BATCH,
        "steps": {"run": args.steps, "default": DropoutConfig().steps},
        "load_before": os.getloadavg(),
        "results": {},
    }
    for name in args.models:
        make, size, count = MODELS[name]
        report["results"][name] = measure(make, size, count, args.val, args.steps)
        print(name, json.dumps(report["results"][name]), flush=True)
        write(report, args.out)


if __name__ == "__main__":
    main()
