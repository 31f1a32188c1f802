"""What SteeredDraws adds to the time of training at its largest share, that of a classifier that is sure.

    python benchmarks/throughput/steering.py --out benchmarks/throughput/results/steering.json

Each round is a training without augmentation and one with it, of as many steps as one period of steering has, on the
same classifier and batch and in an order that changes, so that a busy machine slows both alike. Times are of this
process on the CPU; the ratio is that of the medians, with a 95 % interval from resampling the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from throughput import ratio_of_medians, residual_network, seconds, source, write
from torch import nn

from learned_aug import SteeredDraws

MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-8, width 16": (lambda: residual_network(1, 1), 32),
    "ResNet-56": (lambda: residual_network(9, 1), 32),
    "ResNet-18": (lambda: torchvision.models.resnet18(num_classes=10), 64),
}


def measure(make: Callable[[], nn.Module], size: int, batch: int, rounds: int) -> dict:
    torch.manual_seed(0)
    model = make().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images = nn.functional.interpolate(torch.rand(batch, 3, 9, 9), (size, size), mode="bicubic").clamp(0, 1)
    labels = torch.randint(10, (batch,))
    share, strength = 0.9, 1.5  # the upper ends of the default ranges
    steered = SteeredDraws(model, share=share, strength=strength, warmup=0)

    def train(augment: bool) -> None:
        for _ in range(steered.period):
            x = steered(images, labels) if augment else images
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()

    times: dict[bool, list[float]] = {False: [], True: []}
    for k in range(rounds + 1):  # the first warms up, and makes the prior
        for augment in (False, True) if k % 2 else (True, False):
            spent = seconds(lambda augment=augment: train(augment), "cpu")[1]
            if k:
                times[augment].append(spent)
    return {
        "size": size,
        "milliseconds_per_step": round(statistics.median(times[False]) / steered.period * 1e3, 1),
        "milliseconds_per_steered_step": round(statistics.median(times[True]) / steered.period * 1e3, 1),
        "ratio": ratio_of_medians(times[True], times[False]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        **source(),
        "rounds": args.rounds,
        "batch": args.batch,
        "load_before": os.getloadavg(),
        "results": {},
    }
    for name, (make, size) in MODELS.items():
        report["results"][name] = measure(make, size, args.batch, args.rounds)
        print(f"{name:20s} {report['results'][name]}", flush=True)
    write(report, args.out)


if __name__ == "__main__":
    main()
