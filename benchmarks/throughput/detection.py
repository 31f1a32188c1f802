"""A sample with masks and boxes through LearnedAugment, beside torchvision's RandomAffine.

    python benchmarks/throughput/detection.py --out benchmarks/throughput/results/detection.json

Both take the same sample in turns, so that a busy machine slows them alike. Each round draws the same `--draws` seeds,
for draws differ in what they cost: strong warps fold, and points are lost there. Times are of this process on the CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from throughput import processor, ratio_of_medians, source, write
from torchvision import tv_tensors
from torchvision.transforms import v2

import learned_aug

BOXES, MASKS = 20, 20


def sample(size: int) -> dict[str, Any]:
    made = torch.Generator().manual_seed(0)
    smooth = torch.rand(1, 3, 9, 9, generator=made)
    image = torch.nn.functional.interpolate(smooth, (size, size), mode="bicubic")[0].clamp(0, 1)
    low = torch.rand(BOXES, 2, generator=made) * 0.6
    high = low + 0.1 + torch.rand(BOXES, 2, generator=made) * 0.3
    boxes = torch.cat([low, high], 1) * size
    ranges = torch.arange(size)
    inside = [(ranges >= boxes[:, k, None]) & (ranges < boxes[:, k + 2, None]) for k in (0, 1)]
    masks = inside[1][:MASKS, :, None] & inside[0][:MASKS, None, :]
    return {
        "image": tv_tensors.Image((255 * image).to(torch.uint8)),
        "masks": tv_tensors.Mask(masks.to(torch.uint8)),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(size, size)),
        "labels": torch.arange(BOXES),
    }


def measure(size: int, rounds: int, draws: int) -> dict[str, Any]:
    given = sample(size)
    batch = given["image"][None].float() / 255
    transforms = {
        "LearnedAugment": learned_aug.LearnedAugment(learned_aug.prior(batch, seed=0)),
        "RandomAffine": v2.RandomAffine(degrees=20, translate=(0.1, 0.1), scale=(0.85, 1.15)),
    }
    times: dict[str, list[float]] = {name: [] for name in transforms}
    for k in range(rounds + 1):  # the first warms up
        spent = dict.fromkeys(transforms, 0.0)
        for seed in range(draws):
            for name, transform in transforms.items():
                torch.manual_seed(seed)
                start = time.process_time()
                transform(given)
                spent[name] += time.process_time() - start
        if k:
            for name, total in spent.items():
                times[name].append(total / draws)
    return {
        "microseconds": {name: round(1e6 * statistics.median(values), 1) for name, values in times.items()},
        "ratio": ratio_of_medians(times["LearnedAugment"], times["RandomAffine"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        **source(),
        "device": processor() + ", 1 thread",
        "rounds": args.rounds,
        "draws": args.draws,
        "masks": MASKS,
        "boxes": BOXES,
        "load_before": os.getloadavg(),
        "results": {},
    }
    for size in args.sizes:
        report["results"][str(size)] = measure(size, args.rounds, args.draws)
        print(size, report["results"][str(size)], flush=True)
    write(report, args.out)


if __name__ == "__main__":
    main()
