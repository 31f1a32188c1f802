"""All pictures of the documentation, from pretrained weights and the digits of the package.

    python examples/pictures.py                                   # three minutes on a CPU; writes to examples/
    python examples/pictures.py --weights ./my-augmenter --out my-pictures
    python examples/pictures.py --weights cifar10-wrn --cifar10 ROOT      # as torchvision has it, or an ImageFolder

For grey weights: digits.png (draws), traversal.png (from one draw to another), corrected.png (test digits that only
training with the weights gets right), influence.png (predicted against actual changes of the validation loss) and
curves.png (a short fit to the classifier of those two). For colour weights: cifar10.png and cifar10-traversal.png.
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

import learned_aug
from learned_aug import Augmenter, LearnedAugment
from learned_aug.cli.demo import all_conv, digits
from learned_aug.fit import (
    FitConfig,
    HeadBatch,
    HeadTap,
    InfluenceConfig,
    MaximizeConfig,
    PretrainConfig,
    RetrainConfig,
    borrowed,
    collect,
    find_head,
    influence_aug,
    refit,
    retrain,
    solve_s_val,
)
from learned_aug.cli.report import png
from learned_aug.viz import corrected_samples, diversity_grid, fit_curves, influence_scatter, tau_traversal

CROP = v2.RandomCrop(28, padding=2)


def train(data: TensorDataset, steps: int, augment: LearnedAugment | None = None) -> nn.Module:
    """The demo's classifier, from one start, with crops and, for half of each batch, `augment`."""
    torch.manual_seed(0)
    model = all_conv()
    order = torch.Generator().manual_seed(0)
    retrain(model, data, RetrainConfig(steps=steps), baseline=CROP, augment=augment, generator=order)
    return model


def predicted_and_actual(
    model: nn.Module, augment: LearnedAugment, train: TensorDataset, val: TensorDataset, count: int
) -> tuple[Tensor, Tensor]:
    """Changes of the validation loss, nats, when one training image is replaced by an augmented copy.

    Predicted by the influence (Eq. 18), and measured by training the last layer again, to convergence.

    Args:
        model: a trained classifier.
        augment: makes the copies.
        train: what it was trained on.
        val: the hyper-validation set.
        count: images that are replaced, each alone.

    Returns:
        (count,) and (count,).
    """
    images, labels = train.tensors
    head = find_head(model)
    with borrowed(model), HeadTap(model, head) as tap:
        before, on_val = (collect(tap, [data.tensors]) for data in (train, val))
        copies = collect(tap, [(augment(images[:count]), labels[:count])])
    problem, solution = solve_s_val(before, on_val, head, InfluenceConfig())

    def at(weights: nn.Module, batch: HeadBatch, rows: slice = slice(None)) -> HeadBatch:
        features = batch.features[rows].double()
        return HeadBatch(features, F.linear(features, weights.weight, weights.bias), batch.labels[rows])

    def val_loss(weights: nn.Module) -> Tensor:
        return F.cross_entropy(at(weights, on_val).logits, on_val.labels)

    influence = influence_aug(solution.value, at(problem, copies), at(problem, before, slice(count)))
    actual = []
    for k in range(count):
        features = problem.features.clone()
        features[k] = copies.features[k]
        actual.append(val_loss(refit(replace(problem, features=features)).problem) - val_loss(problem))
    return influence / len(labels), torch.stack(actual)


def grey(augmenter: Augmenter, steps: int, count: int) -> dict[str, PIL.Image.Image]:
    """The pictures of weights for digits, by file name."""
    data, augment = digits(), LearnedAugment(augmenter)
    config = augmenter.config
    images, labels = data["test"].tensors
    shown = v2.functional.normalize(images[:8], list(config.mean), list(config.std))
    seeded = torch.Generator().manual_seed
    pictures = {
        "digits.png": diversity_grid(augmenter, shown, generator=seeded(0)),
        "traversal.png": tau_traversal(augmenter, shown[1], generator=seeded(1)),
    }
    model, with_it = train(data["train"], steps), train(data["train"], steps, augment)
    with torch.no_grad():
        before, after = (net(images).argmax(1) for net in (model, with_it))
    pictures["corrected.png"] = corrected_samples(images, labels, before, after)
    torch.manual_seed(0)
    predicted, actual = predicted_and_actual(model, augment, data["train"], data["val"], count)
    pictures["influence.png"] = drawn(influence_scatter(predicted, actual))
    short = FitConfig(pretrain=PretrainConfig(steps=steps // 5), maximize=MaximizeConfig(steps=steps // 5))
    result = learned_aug.fit(model, data["train"], data["val"], baseline=CROP, config=short, progress=False)
    pictures["curves.png"] = drawn(fit_curves(result.history))
    return pictures


def color(augmenter: Augmenter, root: Path) -> dict[str, PIL.Image.Image]:
    """The pictures of weights for CIFAR-10, by file name."""
    config = augmenter.config
    data = ImageFolder(root / "test") if (root / "test").is_dir() else CIFAR10(root, train=False)
    rows = range(0, len(data), len(data) // 8)[:8]  # a folder's images come class by class
    images = torch.stack([v2.functional.to_dtype(v2.functional.to_image(data[k][0]), scale=True) for k in rows])
    shown = v2.functional.normalize(images, list(config.mean), list(config.std))
    seeded = torch.Generator().manual_seed
    return {
        "cifar10.png": diversity_grid(augmenter, shown, generator=seeded(0)),
        "cifar10-traversal.png": tau_traversal(augmenter, shown[0], generator=seeded(1)),
    }


def drawn(figure: object) -> PIL.Image.Image:
    """A matplotlib figure as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return PIL.Image.open(buffer)


def main(arguments: list[str] | None = None) -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="mnist-cnn4", help="what from_pretrained takes (%(default)s)")
    parser.add_argument("--cifar10", type=Path, metavar="ROOT", help="data for colour weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="of each training (%(default)s)")
    parser.add_argument("--count", type=int, default=100, help="of predicted changes (%(default)s)")
    args = parser.parse_args(arguments)
    augmenter = Augmenter.from_pretrained(args.weights)
    if augmenter.config.channels == 1:
        pictures = grey(augmenter, args.steps, args.count)
    elif args.cifar10 is not None:
        pictures = color(augmenter, args.cifar10)
    else:
        parser.error(f"{args.weights} are colour weights: name the folder of CIFAR-10 with --cifar10")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (args.out / name).write_bytes(png(picture))
        print(f"{args.out / name}: {picture.width} x {picture.height}, {(args.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
