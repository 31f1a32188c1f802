"""Make a set of weights of the package: train or read the classifier, fit, compare, and write the folder with its card.

    python benchmarks/weights/make.py cifar10-wrn --data ROOT --work DIR
    python benchmarks/weights/make.py cifar10-resnet56 --data ROOT --work DIR --classifier resnet56-4bfd9763.th

ROOT is that of benchmarks/accuracy/panel.py. What is shipped is what `learned_aug.fit` returns: the fitted networks
where it is certain that they are better, else the prior. Their test errors are those of `learned_aug.compare`, on fresh
small classifiers. DIR keeps what is finished, so that the same command goes on after a stop; pretrained/NAME and
results/NAME.json are written at the end, and the entry for learned_aug/weights/registry.py is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import learned_aug
from learned_aug import Augmenter, AugmenterConfig, CardFacts, CardResult, FitConfig, FitResult
from learned_aug.cli.report import png, settings_of
from learned_aug.digits import all_conv
from learned_aug.viz import diversity_grid, tau_traversal
from learned_aug.weights.card import render
from learned_aug.weights.files import encode, sha256, write

sys.path.append(str(Path(__file__).parents[1] / "accuracy"))
from cells import CELLS, BFloat16, Cell, Fold, Pixels, batches, fold
from panel import source
from resnets import residual_network

HERE = Path(__file__).parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that the published ResNet-56 was trained on
CIFAR: dict[str, Any] = {  # of both recipes
    "compared": "cifar10-100",
    "limits": "Measured on photographs of 32 pixels, one small classifier and 1,000 labels, where TrivialAugmentWide "
    "is as good.",
    "data_license": "none is stated for CIFAR-10 (Alex Krizhevsky, 2009); the weights contain no image",
    "dataset": "uoft-cs/cifar10",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a set of weights is made."""

    cell: Cell
    """Images and schedule of the classifier that is fitted to."""
    build: Callable[[], nn.Module]
    """A fresh one, for images in [0, 1]."""
    compared: str
    """The cell of the panel on which fresh classifiers are compared."""
    seed: int
    """Of the choice of images and of the fit."""
    data: str
    classifier: str
    limits: str
    data_license: str
    dataset: str
    fitted_on: int = 10_000
    """Images of the classifier's training that the fit reads, at most."""
    half_of_test: bool = False
    """Whether the hyper-validation set is the first half of the test images, for a classifier that knows all others."""
    seeds: int = 3


class ShortcutA(nn.Module):
    """Takes every second pixel and pads the new channels with zeros on both sides (He et al., option A)."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added // 2

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[..., ::2, ::2], (0, 0, 0, 0, self.added, self.added))


class Normalized(nn.Module):
    """A network that normalizes images in [0, 1] itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.normalize = network, v2.Normalize(MEAN, STD)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalize(images))
        return logits


def published_resnet() -> nn.Module:
    """ResNet-56 with the shortcuts of the published weights."""
    network = residual_network(56)
    for block in network:
        if isinstance(getattr(block, "shortcut", None), nn.Sequential):
            convolution = block.shortcut[0]
            block.shortcut = ShortcutA(convolution.out_channels - convolution.in_channels)
    return Normalized(network)


def read_published(model: nn.Module, file: Path) -> None:
    """Load the published weights, whose blocks have other names."""
    blocks = 9  # of each stage, after a convolution, its norm and a ReLU
    places = {"conv1": 0, "bn1": 1, "linear": len(model.network) - 1}
    state = {}
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True)["state_dict"].items():
        first, _, rest = name.removeprefix("module.").partition(".")
        place = places.get(first)
        if place is None:  # as in layer2.4.bn1.weight
            k, _, rest = rest.partition(".")
            place, rest = 3 + blocks * (int(first[-1]) - 1) + int(k), rest.replace("bn", "norm")
        state[f"network.{place}.{rest}"] = tensor
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"{file} must be the ResNet-56 of akamaster/pytorch_resnet_cifar10, got other tensors")


RECIPES = {
    "mnist-cnn4": Recipe(
        cell=CELLS["mnist-50"],
        build=lambda: all_conv(16),
        compared="mnist-50",
        seed=0,
        data="MNIST: 500 labeled images, 50 of each class; influence read 5,000 other training images",
        classifier="4-layer CNN of width 16, trained for 1,000 steps of 50 images with random crops",
        limits="Measured on digits, one small classifier and 500 labels; nothing else is shown.",
        data_license="CC BY-SA 3.0",
        dataset="ylecun/mnist",
        seeds=10,
    ),
    "cifar10-resnet56": Recipe(
        cell=Cell("cifar10", 5000, flip=True),
        build=published_resnet,
        seed=1,
        data="CIFAR-10: 10,000 of the 50,000 training images; influence read the first half of the test images",
        classifier="ResNet-56, trained on all training images by akamaster/pytorch_resnet_cifar10 (BSD-2)",
        **CIFAR,
        half_of_test=True,
    ),
    "cifar10-wrn": Recipe(
        cell=Cell("cifar10", 4500, steps=3515, batch_size=128, flip=True),
        build=lambda: BFloat16(residual_network(16, 32)),
        seed=2,
        data="CIFAR-10: 10,000 of 45,000 training images; influence read the other 5,000",
        classifier="Wide-ResNet-16-2, trained on 45,000 images for 10 epochs of batches of 128 with crops and flips",
        **CIFAR,
    ),
}


def classifier(recipe: Recipe, data: Fold, work: Path, given: Path | None) -> nn.Module:
    """The trained classifier: read, or trained with crops and flips."""
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    kept = work / "classifier.pt"
    if given is not None:
        read_published(model, given)
    elif kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
    else:
        cell = recipe.cell
        train = batches(data.train, cell.batch_size, shuffle=True)
        learned_aug.retrain(model, train, cell.schedule, seed=recipe.seed, on_event=told)
        torch.save(model.state_dict(), kept)
    return model.eval()


def told(event: learned_aug.Event) -> None:
    """Say now and then how far a training is."""
    if event.step % 500 == 0 or event.step == event.total:
        print(f"{event.stage} {event.step}/{event.total}: loss {event.metrics['loss']:.3f}", file=sys.stderr)


def fitted(recipe: Recipe, model: nn.Module, data: Fold, val: Pixels, work: Path) -> FitResult:
    """The result of a fit at the default settings."""
    images, pad = data.train.plain(), data.train.pad
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(recipe.seed))
    train = images.part(order[: recipe.fitted_on].sort().values)
    side, channels = images.images.shape[-1], images.images.shape[1]
    crop = [v2.RandomCrop(side, padding=pad)] + [v2.RandomHorizontalFlip()] * recipe.cell.flip
    return learned_aug.fit(
        model,
        train,
        val,
        baseline=v2.Compose(crop),
        augmenter=AugmenterConfig(channels=channels, size=side),
        config=FitConfig(seed=recipe.seed),
        checkpoint_dir=work / "fit",
    )


def errors(recipe: Recipe, result: FitResult, test: Pixels, root: Path, work: Path) -> dict[str, list[float]]:
    """Test errors in percent, by arm, of fresh classifiers on images of the panel's cell."""
    cell = CELLS[recipe.compared]
    data = fold(root, cell, recipe.seed + 100)
    arms: dict[str, Any] = {"crop + flip" if cell.flip else "crop": None, "these weights": result.augmenter}
    if result.augmenter is not result.prior:
        arms["prior"] = result.prior
    arms["TrivialAugmentWide"] = "TrivialAugmentWide"
    comparison = learned_aug.compare(
        lambda: data.model(cell.model),
        batches(data.train, cell.batch_size, shuffle=True),
        batches(test, 500, shuffle=False),
        arms,
        config=cell.schedule,
        seeds=range(recipe.seeds),
        checkpoint_dir=work / "comparison",
    )
    print(comparison, file=sys.stderr)
    found = {arm: [round(100 * e, 4) for e in values] for arm, values in comparison.errors.items()}
    return {arm: found[arm] for arm in ("these weights", *(a for a in found if a != "these weights"))}


def card(recipe: Recipe, result: FitResult, found: dict[str, list[float]], error: float, cost: str) -> CardFacts:
    """What the card says of the weights."""
    cell = CELLS[recipe.compared]
    first = next(arm for arm in found if arm.startswith("crop"))
    names = {arm: arm if arm == first else f"{first} + {arm}" for arm in found}
    tested = "the second half of the test images" if recipe.half_of_test else "all test images"
    network = "4-layer networks" if cell.model == "all-conv" else "ResNet-8"
    return CardFacts(
        data=recipe.data,
        classifier=f"{recipe.classifier}; {error:.2f} % error on the hyper-validation images. {result.verdict}",
        fitted=result.augmenter is not result.prior,
        protocol=f"`learned_aug.compare`: fresh {network} on {cell.per_class} images of each class, {cell.steps:,} "
        f"steps; the weights augment half of each batch, TrivialAugmentWide all of it; {tested}.",
        results=tuple(
            CardResult(arm=names[arm], error=statistics.mean(e), std=statistics.stdev(e), runs=len(e))
            for arm, e in found.items()
        ),
        cost=cost,
        settings=settings_of(result),
        diagnostics=result.diagnostics,
        limits=recipe.limits,
        license="apache-2.0",
        data_license=recipe.data_license,
        datasets=(recipe.dataset,),
    )


def pictures(augmenter: Augmenter, images: Tensor) -> dict[str, tuple[PIL.Image.Image, str]]:
    """Draws of some images, and the way from one to another."""
    side = 2 * images.shape[-1]
    seeded = [torch.Generator().manual_seed(k) for k in range(2)]
    return {
        "draws.png": (
            diversity_grid(augmenter, images, side=side, generator=seeded[0]),
            "Test images (first column) and nine draws of each, of the same noise in each row",
        ),
        "traversal.png": (
            tau_traversal(augmenter, images[0], side=side, generator=seeded[1]),
            "One image on the way from one draw to another",
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True, help="root folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="keeps the state and the report")
    parser.add_argument("--classifier", type=Path, help="published weights, for cifar10-resnet56")
    args = parser.parse_args()
    recipe, made = RECIPES[args.name], source()
    if recipe.half_of_test != (args.classifier is not None):
        parser.error("--classifier goes with cifar10-resnet56, and only with it")
    torch.set_num_threads(1)
    work = args.work / args.name
    work.mkdir(parents=True, exist_ok=True)
    data = fold(args.data, recipe.cell, recipe.seed)
    val, test = data.val, data.test
    if recipe.half_of_test:  # class folders are in the order of their classes
        half = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)) < len(test) // 2
        val, test = test.part(half), test.part(~half)
    model = classifier(recipe, data, work, args.classifier)
    error = 100 * learned_aug.evaluate(model, batches(val, 500, shuffle=False))[0]
    print(f"error of the classifier on the hyper-validation images: {error:.2f} %", file=sys.stderr)
    start, kept = time.process_time(), work / "seconds.json"
    result = fitted(recipe, model, data, val, work)
    if not kept.exists():  # a fit that is read back takes no time
        kept.write_text(json.dumps(round(time.process_time() - start)))
    cost = f"fit {json.loads(kept.read_text())} s on one CPU core"
    print(result, file=sys.stderr)
    found = errors(recipe, result, test, args.data, work)
    facts = card(recipe, result, found, error, cost)
    shown = test.images[:: len(test) // 8][:8].float() / 255
    files = encode(result.augmenter.config, result.augmenter.state_dict())
    captions: dict[str | Path, str] = {}
    for name, (picture, caption) in pictures(result.augmenter, shown).items():
        (work / name).write_bytes(png(picture))
        captions[work / name] = caption
    facts = dataclasses.replace(facts, pictures=captions)
    target = HERE.parents[1] / "pretrained" / args.name
    for old in target.glob("*"):
        old.unlink()
    write(target, {**files, **render(facts, result.augmenter.config, files, args.name)})
    row = {"name": args.name, "errors": found, "val_error": error, "verdict": result.verdict, **made}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{args.name}.json").write_text(json.dumps(row, indent=1) + "\n")
    print({"bytes": sum(map(len, files.values())), **{name: sha256(file) for name, file in files.items()}})


if __name__ == "__main__":
    main()
