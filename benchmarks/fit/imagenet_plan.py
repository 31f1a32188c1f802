"""What a fit on ImageNet would take: 1.28 million images, ResNet-50, 8-layer E and G at 224 pixels, 8 GPUs.

    python benchmarks/fit/imagenet_plan.py --out benchmarks/fit/results/imagenet_plan.json

Nothing here has been run on ImageNet. Counted, in one process on the CPU and by running the stages' own steps on a few
noise images: the floating-point operations of matrix products and convolutions (torch.utils.flop_counter, a
multiply-add is two), the bytes that all operations read and write if none is fused, and the bytes kept for the backward
pass. Assumed, as arguments: how fast a GPU works and how many steps are taken. The hours follow from both: the time of
a part is the longer of its operations at --tflops and its bytes at --memory-gb-s, and the images must be decoded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit.linear import LinearConfig, Maximizing
from learned_aug.fit.pretrain import PretrainConfig, Pretraining
from learned_aug.influence.head import HeadBatch, HeadTap, borrowed
from learned_aug.influence.layer import find_head
from learned_aug.influence.problem import HeadProblem

N, CLASSES, FEATURES, SIDE = 1_281_167, 1000, 2048, 224
FORMS = {
    "paper: full resolution, 8 layers": AugmenterConfig(size=SIDE, fields="pixel", layers=8, dropout="fixed"),
    "default: control grid, E at 56 px": AugmenterConfig(size=SIDE),
}


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, views not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
            self.bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        return out


def counted(function: Callable[[], object]) -> dict[str, float]:
    """Operations, bytes moved, and bytes kept for the backward pass."""
    kept: dict[int, Tensor] = {}  # holds them, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        FlopCounterMode(display=False) as flops,
        Traffic() as traffic,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        function()
    saved = sum(t.untyped_storage().nbytes() for t in kept.values())
    return {"flops": flops.get_total_flops(), "bytes_moved": traffic.bytes, "bytes_kept": saved}


def per_image(function: Callable[[], object], images: int) -> dict[str, float]:
    return {name: value / images for name, value in counted(function).items()}


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def stream(images: int) -> Iterator[tuple[Tensor, Tensor]]:
    return repeat((torch.rand(images, 3, SIDE, SIDE), torch.randint(CLASSES, (images,))))


def count(form: AugmenterConfig, images: int) -> dict[str, Any]:
    """The networks, a step of stages 1 and 3, for one form."""
    model = torchvision.models.resnet50(num_classes=CLASSES).eval()
    x, labels = next(stream(images))
    augmenter = Augmenter(form).calibrate_(torch.rand(32, 3, SIDE, SIDE))
    stage = augmenter.stages[0]
    noise = augmenter.draw_noise(images)
    augmenter.requires_grad_(True)
    result: dict[str, Any] = {
        "parameters": {"E": numbers(stage.encoder), "G": numbers(stage.generator), "ResNet-50": numbers(model)},
        "augment": per_image(lambda: augmenter.augment(x, noise), images),
    }
    augmenter.requires_grad_(False)
    head = find_head(model)
    batch = HeadBatch(torch.rand(images, FEATURES), torch.zeros(images, CLASSES), labels)
    problem = HeadProblem.from_batch(batch, head)
    ihvp = torch.rand(CLASSES, FEATURES + 1)
    with borrowed(model), HeadTap(model, head) as tap:
        with torch.no_grad():
            tap(x)  # the first call also checks the model
            result["classifier"] = per_image(lambda: tap(x), images)
        one, three = PretrainConfig(steps=2, batch_size=images), LinearConfig(steps=2)
        stages = {
            "stage 1": Pretraining(augmenter, tap, stream(images), stream(images), one, seed=0),
            "stage 3": Maximizing(augmenter, tap, stream(images), problem.head, ihvp, three, seed=0),
        }
        augmenter.requires_grad_(True)  # as their run() does, after the copies that stay
        for name, training in stages.items():
            training.step()  # the first one measures units too
            result[name] = per_image(training.step, images)
            trained = sum(numbers(module) for module in training.modules.values())
            result[name]["gradient_bytes_per_step"] = 4 * trained
    return result


def product_flops() -> float:
    """Operations of one Hessian product, per sample."""
    rows = 64
    problem = HeadProblem(
        features=torch.rand(rows, FEATURES),
        labels=torch.arange(rows),
        weight=torch.rand(CLASSES, FEATURES) / FEATURES,
        bias=torch.zeros(CLASSES),
    )
    problem.probabilities  # noqa: B018  # made once for all products
    return counted(lambda: problem.hvp(problem.theta))["flops"] / rows


def planned(counts: dict[str, Any], products: float, args: argparse.Namespace) -> dict[str, Any]:
    """Memory, traffic and hours for one form, from what was counted and assumed."""
    local = args.batch // args.gpus
    ring = 2 * (args.gpus - 1) / args.gpus

    def seconds(part: dict[str, float], images: float) -> float:
        work = images / args.gpus
        return max(part["flops"] * work / (args.tflops * 1e12), part["bytes_moved"] * work / (args.memory_gb_s * 1e9))

    steps = args.steps or N // args.batch
    hours, links = {}, {}
    for name, streams in (("stage 1", 1.5), ("stage 3", 1.0)):
        part = counts[name]
        links[name] = ring * part["gradient_bytes_per_step"]
        step = seconds(part, args.batch) + links[name] / (args.link_gb_s * 1e9)
        decode = streams * args.batch / args.decoded_per_s
        hours[name] = steps * max(step, decode) / 3600
    passes = N * products * args.products / args.gpus / (args.head_tflops * 1e12)
    links["stage 2, per Hessian product"] = ring * CLASSES * (FEATURES + 1) * 8
    features = max(seconds(counts["classifier"], N), N / args.decoded_per_s)
    exchange = args.products * links["stage 2, per Hessian product"] / (args.link_gb_s * 1e9)
    hours["stage 2"] = (features + passes + exchange) / 3600
    share = N / args.gpus
    return {
        "steps": steps,
        "gigabytes_per_gpu": {
            "stage 1, kept for the backward pass": local * counts["stage 1"]["bytes_kept"] / 1e9,
            "stage 3, kept for the backward pass": local * counts["stage 3"]["bytes_kept"] / 1e9,
            "stage 2, features in float16": share * FEATURES * 2 / 1e9,
            "stage 2, probabilities in float64": share * CLASSES * 8 / 1e9,
        },
        "megabytes_sent_per_gpu_and_step": {name: value / 1e6 for name, value in links.items()},
        "hours": {name: round(value, 3) for name, value in sorted(hours.items())},
        "gpu_hours": round(args.gpus * sum(hours.values()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256, help="images of a step, over all GPUs")
    parser.add_argument("--steps", type=int, default=0, help="of stages 1 and 3 each; by default one pass over all")
    parser.add_argument("--products", type=int, default=300, help="Hessian products of the head's refit and of s_val")
    parser.add_argument("--tflops", type=float, default=20.0, help="of convolutions, per GPU: 800 images/s of training")
    parser.add_argument("--head-tflops", type=float, default=8.0, help="of float64 matrix products, per GPU")
    parser.add_argument("--memory-gb-s", type=float, default=1200.0, help="sustained, per GPU")
    parser.add_argument("--link-gb-s", type=float, default=50.0, help="between GPUs, sustained")
    parser.add_argument("--decoded-per-s", type=float, default=8000.0, help="JPEGs, decoded and cropped by the CPUs")
    parser.add_argument("--images", type=int, default=4, help="to count on")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "the validation set has no sample")
    products = product_flops()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    report: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "assumed": {name: value for name, value in vars(args).items() if name not in ("out", "images")},
        "counted_on_images": args.images,
        "flops_of_a_hessian_product_per_sample": products,
        "forms": {},
    }
    for name, form in FORMS.items():
        counts = count(form, args.images)
        plan = planned(counts, products, args)
        report["forms"][name] = {"per_image": counts, "plan": plan}
        print(f"\n{name}")
        sizes = ", ".join(f"{part} {value / 1e6:.2f} M" for part, value in counts["parameters"].items())
        print(f"  parameters        {sizes}")
        for part in ("augment", "classifier", "stage 1", "stage 3"):
            c = counts[part]
            print(
                f"  {part:17s} per image {c['flops'] / 1e9:7.2f} GFLOP, {c['bytes_moved'] / 1e6:7.0f} MB moved, "
                f"{c['bytes_kept'] / 1e6:7.0f} MB kept"
            )
        for title, values in plan.items():
            print(f"  {title}: {values}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
