"""Images per second of LearnedAugment and Augmenter beside torchvision's and kornia's policies.

    python benchmarks/throughput/throughput.py --out benchmarks/throughput/results/cpu.json

Each round runs every contender once, one after the other, so that a busy machine slows them alike; ratios are taken
within a round, and the medians and quartiles over rounds are reported, with wall time and with the CPU time of this
process (which other processes disturb less). Random policies cost what they drew: a call draws for each image (PIL), or
for each batch (torchvision and kornia on tensors). kornia (0.9) is measured if installed: `pip install kornia`.

--device cuda times tensors on the GPU instead. --steps adds training steps of ResNet-56, Wide-ResNet-28-10
and ResNet-50, and what share of them the augmentation is.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.transforms import v2

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment

try:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import kornia
    import kornia.augmentation as K
    from kornia.augmentation import auto as kornia_auto
except ImportError:
    kornia = None

BATCH = {32: 256, 224: 16}
REFERENCE = "TrivialAugmentWide, PIL each"


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


def contenders(size: int, device: str, compile_too: bool) -> dict:
    """Name -> (function, images per call)."""
    bytes_ = photographs(size).to(device)
    floats = bytes_ / 255
    ours = augmenter(size, device)
    found = {
        "Augmenter, float batch": (lambda: ours(floats), len(floats)),
        "LearnedAugment, uint8 batch": (lambda: LearnedAugment(ours)(bytes_), len(bytes_)),
    }
    if compile_too:
        compiled = torch.compile(ours, fullgraph=True)
        found["Augmenter compiled, float batch"] = (lambda: compiled(floats), len(floats))
    policies = {
        "TrivialAugmentWide": v2.TrivialAugmentWide(),
        "RandAugment": v2.RandAugment(),
        "AutoAugment": v2.AutoAugment(),
        "AugMix": v2.AugMix(),
        "ElasticTransform + ColorJitter": v2.Compose([v2.ElasticTransform(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
    }
    if device == "cpu":
        pil = [v2.functional.to_pil_image(image) for image in bytes_]
        each = LearnedAugment(ours)
        policies = {"LearnedAugment": each, **policies}
        for name, policy in policies.items():
            few = {"AugMix": 16, "ElasticTransform + ColorJitter": 8 if size < 100 else 2}.get(name, 64)
            some = pil[:few]
            found[f"{name}, PIL each"] = (lambda p=policy, some=some: [p(image) for image in some], len(some))
    else:
        for name, policy in policies.items():
            found[f"{name}, uint8 batch, one draw"] = (lambda p=policy: p(bytes_), len(bytes_))
    if kornia is not None:
        batches = {
            "kornia TrivialAugment": kornia_auto.TrivialAugment(),
            "kornia RandAugment": kornia_auto.RandAugment(n=2, m=10),
            "kornia Elastic + ColorJiggle": nn.Sequential(
                K.RandomElasticTransform(p=1.0), K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0)
            ),
        }
        for name, policy in batches.items():
            found[f"{name}, float batch"] = (lambda p=policy: p(floats), len(floats))
    return found


def processor() -> str:
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()


def seconds(function, device: str) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(found: dict, rounds: int, device: str, reference: str) -> dict:
    times = {name: [] for name in found}
    for k in range(rounds + 1):  # the first warms up
        for name, (function, images) in found.items():
            wall, cpu = seconds(function, device)
            if k:
                times[name].append((wall / images, cpu / images))
    result = {}
    for name, pairs in times.items():
        wall, cpu = zip(*pairs, strict=True)
        ratios = [[b[c] / a[c] for a, b in zip(pairs, times[reference], strict=True)] for c in (0, 1)]
        result[name] = {
            "microseconds_per_image": round(statistics.median(wall) * 1e6, 1),
            "quartiles": [round(q * 1e6, 1) for q in statistics.quantiles(wall, n=4)[::2]],
            "cpu_microseconds_per_image": round(statistics.median(cpu) * 1e6, 1),
            "images_per_second": round(1 / statistics.median(wall)),
            "speed_over_reference": round(statistics.median(ratios[0]), 3),
            "cpu_speed_over_reference": round(statistics.median(ratios[1]), 3) if device == "cpu" else None,
        }
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
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], choices=list(BATCH))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="also the compiled Augmenter")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="also N training steps of each network")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report = {
        "command": "python " + " ".join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
        "threads": args.threads,
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "kornia": getattr(kornia, "__version__", None),
        },
        "rounds": args.rounds,
        "load_before": os.getloadavg(),
        "results": {},
    }
    reference = REFERENCE if args.device == "cpu" else "TrivialAugmentWide, uint8 batch, one draw"
    for size in args.sizes:
        found = contenders(size, args.device, args.compile)
        results = report["results"][str(size)] = measure(found, args.rounds, args.device, reference)
        print(f"\n{size} px, batches of {BATCH[size]}; speed relative to {reference}")
        for name, r in results.items():
            print(
                f"{name:45s} {r['microseconds_per_image']:10.1f} us per image {r['images_per_second']:9d} images/s   "
                f"x {r['speed_over_reference']:.2f} (CPU time x {r['cpu_speed_over_reference']})",
                flush=True,
            )
    if args.steps:
        report["training_steps"] = training_steps(args.device, args.steps, report["results"])
    report["load_after"] = os.getloadavg()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
