"""Does the verdict "too short to rank" of learned_aug.compare hold? The same arms at short and long schedules.

    python benchmarks/accuracy/schedules.py --data ROOT --work DIR --cell omniglot --steps 300 800 2000 3000

ROOT is that of panel.py. The cell's images of the first seed are labeled for all seeds, which differ in the first
weights and the order. DIR keeps finished trainings: the same command goes on after a stop, and judges all anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import torch
from cells import CELLS, batches, fold
from panel import source

from learned_aug import RetrainConfig, compare

HERE = Path(__file__).parent
ARMS = ["baseline", "TrivialAugmentWide", "prior"]


def run(args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Compare the arms at one schedule."""
    cell = CELLS[args.cell]
    data = fold(args.data, cell, args.seeds[0])
    result = compare(
        functools.partial(data.model, cell.model),
        batches(data.train, cell.batch_size, shuffle=True),
        batches(data.test, 500, shuffle=False),
        ARMS,
        config=RetrainConfig(steps=steps, batch_size=cell.batch_size, lr=cell.lr),
        seeds=args.seeds,
        checkpoint_dir=args.work / f"{args.cell}-{steps}",
    )
    print(f"{args.cell}, {steps} steps\n{result}\n")
    return {
        "steps": steps,
        "best": result.best,
        "too_short": result.too_short,
        "trainings": [dataclasses.asdict(training) for training in result.trainings],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps finished trainings")
    parser.add_argument("--cell", default="omniglot", choices=list(CELLS), help="(%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 800, 2000, 3000], help="schedules")
    parser.add_argument("--seeds", type=int, nargs="+", default=[50, 51])
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = source()
    report = {
        **made,
        "command": re.sub(r"(--data|--work) \S+", r"\1 DIR", made["command"]),
        "cell": args.cell,
        "runs": [run(args, steps) for steps in args.steps],
    }
    (HERE / "results" / f"schedules-{args.cell}.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
