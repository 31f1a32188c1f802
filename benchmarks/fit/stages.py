"""Time of each stage of a fit with the default settings: CIFAR-10, a tenth of the labels, ResNet-56.

    python benchmarks/fit/stages.py --data ROOT

ROOT, the images and the network are those of benchmarks/accuracy/cifar10.py: 4,000 training images, cropped and
flipped, 5,000 that the influence reads. The classifier is trained for a few steps only: no stage's time depends on how
good it is, but for the refit of the head. A training step of it, batch of 64, is timed beside the fit.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))
from cifar10 import BASELINES, TASK, load
from resnets import residual_network

from learned_aug.fit.pipeline import fit
from learned_aug.training.retrain import RetrainConfig, retrain


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="root folder of the data set")
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--steps", type=int, default=200, help="of the classifier's training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stages.json")
    args = parser.parse_args()

    data = {name: TensorDataset(*pair) for name, pair in load(args.data, 0, 400).items()}
    baseline = BASELINES["crop + flip"]
    torch.manual_seed(0)
    model = residual_network(args.depth).to(memory_format=torch.channels_last)
    begin = time.perf_counter()
    retrain(model, data["train"], RetrainConfig(steps=args.steps, batch_size=64), baseline=baseline)
    step = (time.perf_counter() - begin) / args.steps

    seconds, last = defaultdict(float), [time.perf_counter()]

    def on_event(event):  # what passes between two events belongs to the stage of the second
        now = time.perf_counter()
        seconds[event.stage] += now - last[0]
        last[0] = now

    begin = time.perf_counter()
    result = fit(model, data["train"], data["influence"], baseline=baseline, augmenter=TASK.config, on_event=on_event)
    seconds["diagnostics"] = time.perf_counter() - last[0]
    row = {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "fit": round(time.perf_counter() - begin, 1),
        "training step": round(step, 3),
        "diagnostics": result.diagnostics,
        "images": {name: len(part) for name, part in data.items()},
        "depth": args.depth,
        "command": shlex.join(["python", *sys.argv]),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "learned-aug")},
        "device": f"cpu, {torch.get_num_threads()} threads, {os.cpu_count()} cores, {platform.machine()}",
    }
    args.out.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
