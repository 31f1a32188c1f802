"""Images per second of LearnedAugment and Augmenter beside torchvision's and kornia's policies.

    python benchmarks/throughput/throughput.py --out benchmarks/throughput/results/cpu.json

Each round runs every contender, in an order of its own and from the same seed, so that a busy machine slows them alike.
Random policies cost what they drew, for each image (PIL) or for a whole batch (torchvision and kornia on tensors), so
those that draw for a batch are called 8 times a round; speeds are ratios of median times over all rounds, with 95 %
intervals from resampling the rounds. Times are of the wall clock, and of the CPU for this process, which other
processes disturb less. kornia (0.9) is measured if installed: `pip install kornia`.

--compile adds what is compiled: torch.compile for the Augmenter.
--device cuda times tensors on the GPU instead. --steps adds training steps of ResNet-56, Wide-ResNet-28-10
and ResNet-50, and what share of them the augmentation is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import nn
from torchvision.transforms import v2

from learned_aug import AugmentedDataset, Augmenter, AugmenterConfig, LearnedAugment

try:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import kornia
    import kornia.augmentation as K
    from kornia.augmentation import auto as kornia_auto
except ImportError:
    kornia = None

BATCH = {32: 256, 64: 64, 224: 16}
REFERENCES = [  # those that are there
    "TrivialAugmentWide, PIL each",
    "TrivialAugmentWide, uint8 batch, one draw",
    "kornia RandAugment, float batch",
]


class Contender(NamedTuple):
    """What is timed."""

    call: Callable[[], object]
    images: int  # of a call
    calls: int = 1  # of a round


def augmenter(size: int, device: str) -> Augmenter:
    generator = torch.Generator().manual_seed(0)
    network = Augmenter(AugmenterConfig(size=size), generator=generator)
    network.calibrate_(torch.rand(32, 3, size, size, generator=generator), generator=generator)
    return network.to(device)


def photographs(size: int) -> torch.Tensor:
    """Smooth random pictures, uint8: policies such as Equalize or Posterize cost the same on them as on photographs."""
    batch, generator = BATCH[size], torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, 9, 9, generator=generator)
    images = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255
    return (images + 20 * torch.randn(images.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def contenders(size: int, device: str, compile_too: bool) -> dict[str, Contender]:
    bytes_ = photographs(size).to(device)
    floats = bytes_ / 255
    ours = augmenter(size, device)
    found = {
        "Augmenter, float batch": Contender(lambda: ours(floats), len(floats)),
        "LearnedAugment, float batch": Contender(lambda: LearnedAugment(ours)(floats), len(floats)),
        "LearnedAugment, uint8 batch": Contender(lambda: LearnedAugment(ours)(bytes_), len(bytes_)),
    }
    if compile_too:
        compiled = torch.compile(ours, fullgraph=True)
        found["Augmenter compiled, float batch"] = Contender(lambda: compiled(floats), len(floats))
    policies = {
        "TrivialAugmentWide": v2.TrivialAugmentWide(),
        "RandAugment": v2.RandAugment(),
        "AutoAugment": v2.AutoAugment(),
        "AugMix": v2.AugMix(),
        "ElasticTransform + ColorJitter": v2.Compose([v2.ElasticTransform(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
    }
    if device == "cpu":
        pil = [v2.functional.to_pil_image(image) for image in bytes_]
        wrapped, all_ = AugmentedDataset([(image, 0) for image in pil], LearnedAugment(ours)), range(len(pil))
        found["AugmentedDataset, PIL to tensors"] = Contender(lambda: wrapped.__getitems__(all_), len(pil))
        bilinear = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
        policies = {
            "LearnedAugment": LearnedAugment(ours),
            **policies,
            "TrivialAugmentWide, bilinear": bilinear,
            "TrivialAugmentWide + ToImage": v2.Compose([v2.TrivialAugmentWide(), v2.ToImage()]),
        }
        for name, policy in policies.items():
            some = pil[: {"AugMix": 16, "ElasticTransform + ColorJitter": 8 if size < 100 else 2}.get(name, 64)]
            call = lambda policy=policy, some=some: [policy(image) for image in some]  # noqa: E731
            found[f"{name}, PIL each"] = Contender(call, len(some), 4 if len(some) < 64 and size < 100 else 1)
    else:
        for name, policy in policies.items():
            found[f"{name}, uint8 batch, one draw"] = Contender(lambda p=policy: p(bytes_), len(bytes_), 8)
    if kornia is not None:
        batches = {
            "kornia TrivialAugment": kornia_auto.TrivialAugment(),
            "kornia RandAugment": kornia_auto.RandAugment(n=2, m=10),
            "kornia Elastic + ColorJiggle": nn.Sequential(
                K.RandomElasticTransform(p=1.0), K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0)
            ),
        }
        for name, policy in batches.items():
            calls = 1 if "Elastic" in name else 8
            found[f"{name}, float batch"] = Contender(lambda p=policy: p(floats), len(floats), calls)
    return found


def processor() -> str:
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()


def source() -> dict:
    """What made the figures of a report."""
    return {
        "command": "python " + " ".join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def write(report: dict, out: Path | None) -> None:
    """Write a report, with the load of the machine at its end, if there is a file for it."""
    report["load_after"] = os.getloadavg()
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n")


def seconds(function: Callable[[], object], device: str, calls: int = 1) -> tuple[float, float]:
    """Wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def ratio_of_medians(above: list[float], below: list[float]) -> list[float]:
    """Of paired times, with a 95 % interval from resampling the pairs."""
    pairs = torch.tensor([above, below], dtype=torch.float64)
    chosen = torch.randint(len(above), (10_000, len(above)), generator=torch.Generator().manual_seed(0))
    top, bottom = pairs[:, chosen].quantile(0.5, dim=2)
    low, high = (top / bottom).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    first, second = pairs.quantile(0.5, dim=1)
    return [round(float(value), 3) for value in (first / second, low, high)]


def measure(found: dict[str, Contender], rounds: int, device: str) -> dict:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for k in range(rounds + 1):  # the first warms up
        order = list(found.items())
        random.Random(k).shuffle(order)
        for name, contender in order:
            torch.manual_seed(k)
            random.seed(k)
            spent = seconds(contender.call, device, contender.calls)
            if k:
                times[name].append(tuple(t / contender.images / contender.calls for t in spent))
    walls, cpus = ({name: [pair[c] for pair in pairs] for name, pairs in times.items()} for c in (0, 1))
    result = {}
    for name in found:
        result[name] = {
            "microseconds_per_image": round(statistics.median(walls[name]) * 1e6, 1),
            "quartiles": [round(q * 1e6, 1) for q in statistics.quantiles(walls[name], n=4)[::2]],
            "cpu_microseconds_per_image": round(statistics.median(cpus[name]) * 1e6, 1),
        }
        for reference in REFERENCES:
            if reference in found:
                of_walls = ratio_of_medians(walls[reference], walls[name])
                of_cpus = ratio_of_medians(cpus[reference], cpus[name]) if device == "cpu" else None
                result[name][f"speed over {reference}"] = {"wall": of_walls, "cpu": of_cpus}
    return result


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        convs = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(a), nn.ReLU(), convs[0], nn.BatchNorm2d(b), nn.ReLU(), convs[1])
        self.short = nn.Identity() if (a, stride) == (b, 1) else nn.Conv2d(a, b, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.short(x)


def residual_network(blocks: int, width: int) -> nn.Module:
    """Of the CIFAR kind: 3 groups of `blocks` blocks."""
    channels = [16] + [16 * width * 2**g for g in range(3) for _ in range(blocks)]
    strides = [2 if k in (blocks, 2 * blocks) else 1 for k in range(3 * blocks)]
    body = [Block(a, b, s) for a, b, s in zip(channels, channels[1:], strides, strict=False)]
    tail = [nn.BatchNorm2d(channels[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), *body, *tail, nn.Linear(channels[-1], 10))


def training_steps(device: str, rounds: int, augmentation: dict) -> dict:
    """Seconds per image of forward, backward and an SGD step, and the augmentation's share of it."""
    batches = {"cpu": (64, 4, 4), "cuda": (256, 256, 128)}[device]
    models = {
        "ResNet-56": (lambda: residual_network(9, 1), 32, batches[0]),
        "Wide-ResNet-28-10": (lambda: residual_network(4, 10), 32, batches[1]),
        "ResNet-50": (lambda: torchvision.models.resnet50(num_classes=10), 224, batches[2]),
    }
    result = {}
    for name, (make, size, batch) in models.items():
        if str(size) not in augmentation:
            continue
        model = make().to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        x, y = torch.rand(batch, 3, size, size, device=device), torch.zeros(batch, dtype=torch.long, device=device)

        def step(model=model, optimizer=optimizer, x=x, y=y) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        times = [seconds(step, device)[0] for _ in range(rounds + 1)][1:]
        per_image = statistics.median(times) / batch
        ours = augmentation[str(size)]["Augmenter, float batch"]["microseconds_per_image"] * 1e-6
        result[name] = {
            "batch": batch,
            "milliseconds_per_image": round(per_image * 1e3, 3),
            "share_of_the_augmenter_percent": round(100 * ours / (per_image + ours), 3),
        }
        print(f"{name:45s} {result[name]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="also what can be compiled")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="also N training steps of each network")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    made = source()
    made["versions"]["kornia"] = getattr(kornia, "__version__", None)
    if args.device == "cuda":
        made["device"] = torch.cuda.get_device_name()
    report = {
        **made,
        "rounds": args.rounds,
        "load_before": os.getloadavg(),
        "results": {},
    }
    for size in args.sizes:
        results = report["results"][str(size)] = measure(
            contenders(size, args.device, args.compile), args.rounds, args.device
        )
        print(f"\n{size} px, batches of {BATCH[size]}; median microseconds per image; times as fast as ... [95 %]")
        for name, r in results.items():
            clock = "cpu" if args.device == "cpu" and args.threads == 1 else "wall"
            speeds = {k.removeprefix("speed over "): v[clock] for k, v in r.items() if k.startswith("speed over")}
            shown = "   ".join(f"{k} x {v[0]:.2f} [{v[1]:.2f}, {v[2]:.2f}]" for k, v in speeds.items())
            own = r["cpu_microseconds_per_image" if clock == "cpu" else "microseconds_per_image"]
            print(f"{name:45s} {own:10.1f}   {shown}", flush=True)
    if args.steps:
        report["training_steps"] = training_steps(args.device, args.steps, report["results"])
    write(report, args.out)


if __name__ == "__main__":
    main()
