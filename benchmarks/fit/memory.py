"""Peak memory of a whole fit with 50,000 training images, above the model, the data and the libraries.

    python benchmarks/fit/memory.py --out benchmarks/fit/results/memory.json

Each case runs `learned_aug.fit` in a fresh process on one CPU core: D features, K classes, one step of stages 1 and 3.
Images are prototypes of the classes under noise, 32 px, kept as bytes; the trunk is one random layer: the memory is the
fit's. Reported is the highest resident size that the kernel saw (VmHWM) less that just before the fit. The peak
does not depend on how many steps the solvers take, the time does: the cases with 1,000 classes are run with a strong
weight decay, which takes few. All cases take some 20 minutes.

--accuracy adds how far features cached in half precision move s_val, on the packaged digits and a trained classifier.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import learned_aug
from learned_aug.digits import all_conv, digits
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.influence.head import HeadBatch, HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.s_val import InfluenceConfig, solve_s_val
from learned_aug.influence.scores import influence_up
from learned_aug.influence.solvers import CG
from learned_aug.training.retrain import RetrainConfig, retrain

N_TRAIN, N_VAL = 50_000, 2_000
CASES = [  # D, K, dtype of the cache
    (640, 10, None),
    (2048, 10, None),
    (2048, 10, "float16"),
    (640, 1000, None),
    (2048, 1000, None),
    (2048, 1000, "float16"),
]
DECAY = {10: 0.03, 1000: 10.0}  # of the head, in units of the mean square of a feature; 0.03 is the default


class Prototypes(Dataset):  # type: ignore[type-arg]
    """Images of `classes` prototypes under noise."""

    def __init__(self, n: int, classes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(0)
        prototypes = torch.rand(classes, 3, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
        generator.manual_seed(seed)
        self.labels = torch.randint(classes, (n,), generator=generator)
        self.images = torch.empty(n, 3, 32, 32, dtype=torch.uint8)
        for rows in torch.arange(n).split(1000):  # in parts: what is built here must not raise the peak
            noise = torch.rand(len(rows), 3, 32, 32, generator=generator)
            self.images[rows] = ((prototypes[self.labels[rows]] + noise) * 127).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i].float() / 255, int(self.labels[i])


def resident(key: str) -> int:
    """Bytes, of the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(dim: int, classes: int, cache: str | None) -> dict[str, object]:
    """One fit, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, val = Prototypes(N_TRAIN, classes, 1), Prototypes(N_VAL, classes, 2)
    model = nn.Sequential(
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, dim), nn.ReLU(), nn.Linear(dim, classes)
    ).requires_grad_(False)
    config = FitConfig(
        pretrain=PretrainConfig(steps=1),
        maximize=DropoutConfig(steps=1),
        influence=InfluenceConfig(
            weight_decay=DECAY[classes], cache_dtype=None if cache is None else getattr(torch, cache)
        ),
    )
    before, start = resident("VmRSS"), time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the validation set has no sample")
        result = learned_aug.fit(model, train, val, baseline=lambda x: x.flip(-1), config=config, progress=False)
    return {
        "D": dim,
        "K": classes,
        "N": N_TRAIN,
        "cache": cache or "float32",
        "peak_above_bytes": resident("VmHWM") - before,
        "cache_bytes": N_TRAIN * dim * (4 if cache is None else 2),
        "probabilities_bytes": N_TRAIN * classes * 8,
        "weight_decay": DECAY[classes],
        "seconds": round(time.perf_counter() - start, 1),
        "residual": result.solution.residual,
    }


def accuracy() -> list[dict[str, object]]:
    """Relative changes of s_val and of the training images' influences by the dtype of the cache; three classifiers."""
    data, rows = digits(), []
    for seed in range(3):
        torch.manual_seed(seed)
        model = all_conv()
        retrain(model, data["train"], RetrainConfig(steps=400), baseline=v2.RandomCrop(28, padding=2))
        with borrowed(model), HeadTap(model, find_head(model)) as tap:
            features = collect(tap, DataLoader(data["train"], 200)).features.double()
            labels = data["train"].tensors[1]
            exact = None
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                batches = [collect(tap, DataLoader(data[part], 200), dtype) for part in ("train", "val")]
                head, solution = solve_s_val(*batches, tap.head, InfluenceConfig(solver=CG(tolerance=1e-8)))
                logits = nn.functional.linear(features, head.weight, head.bias)
                influence = influence_up(solution.value, HeadBatch(features, logits, labels))
                if exact is None:
                    exact = solution.value, influence
                    continue
                errors = [
                    float((a - b).norm() / b.norm()) for a, b in zip((solution.value, influence), exact, strict=True)
                ]
                rows.append({"seed": seed, "cache": str(dtype), "s_val": errors[0], "influence": errors[1]})
                print(f"{dtype}: s_val moves by {errors[0]:.1e} of its length, influences by {errors[1]:.1e}")
    return rows


def main() -> None:
    """Run every case in a process of its own, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="by number, from 0")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        print(json.dumps(measure(*CASES[args.work])))
        return

    rows = []
    for case in args.cases:
        command = [sys.executable, __file__, "--work", str(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"case {CASES[case]} failed:\n{done.stderr}")
        row = json.loads(done.stdout)
        rows.append(row)
        mib = {name: row[f"{name}_bytes"] / 2**20 for name in ("peak_above", "cache", "probabilities")}
        print(
            f"D {row['D']:4} K {row['K']:4} {row['cache']:8}: peak {mib['peak_above']:5.0f} MiB, of which features "
            f"{mib['cache']:4.0f} and probabilities {mib['probabilities']:4.0f}; {row['seconds']:.0f} s",
            flush=True,
        )
    report = {
        "command": "python " + shlex.join(sys.argv),
        "device": f"cpu, 1 of {os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
        "half_precision": accuracy() if args.accuracy else None,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
