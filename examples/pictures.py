"""All pictures of the documentation, from pretrained weights and the digits of the package.

    python examples/pictures.py                                   # three minutes on a CPU; writes to examples/
    python examples/pictures.py --weights ./my-augmenter --out my-pictures
    python examples/pictures.py --weights cifar10-wrn --cifar10 ROOT      # as torchvision has it, or an ImageFolder

For gray weights: digits.png (draws), traversal.png (from one draw to another), corrected.png (test digits that only
training with the weights gets right), influence.png (predicted against actual changes of the validation loss) and
curves.png (a short fit to the classifier of those two). For color weights: cifar10.png and cifar10-traversal.png.
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

from learned_aug import (
    Augmenter,
    DropoutConfig,
    FitConfig,
    InfluenceConfig,
    LearnedAugment,
    PretrainConfig,
    RetrainConfig,
    fit,
    retrain,
)
from learned_aug.cli.report import png
from learned_aug.digits import all_conv, digits
from learned_aug.influence.head import HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.refit import refit
from learned_aug.influence.scores import influence_aug, predicted_val_drop
from learned_aug.influence.solvers import solve
from learned_aug.viz import corrected_samples, diversity_grid, fit_curves, influence_scatter, tau_traversal

CROP = v2.RandomCrop(28, padding=2)


def train(data: TensorDataset, steps: int, augment: LearnedAugment | None = None) -> nn.Module:
    """The demo's classifier, from one start, with crops and, for half of each batch, `augment`."""
    torch.manual_seed(0)
    model = all_conv()
    retrain(model, data, RetrainConfig(steps=steps), baseline=CROP, augment=augment)
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
    layer = find_head(model)
    with borrowed(model), HeadTap(model, layer) as tap:
        before, on_val = (collect(tap, [data.tensors]) for data in (train, val))
        copies = collect(tap, [(augment(images[:count]), labels[:count])])
    problem = HeadProblem.from_batch(before, layer)
    problem = replace(problem, weight_decay=InfluenceConfig().weight_decay * problem.mean_square_feature)
    problem = refit(problem).problem
    s_val = solve(problem, problem.validation_gradient(on_val), 0.0).value

    def val_loss(problem: HeadProblem) -> Tensor:
        return F.cross_entropy(problem.head(on_val.features.double(), on_val.labels).logits, on_val.labels)

    aug, orig = (problem.head(batch.features[:count].double(), batch.labels[:count]) for batch in (copies, before))
    influence = influence_aug(s_val, aug, orig)
    actual = []
    for k in range(count):
        features = problem.features.clone()
        features[k] = copies.features[k]
        actual.append(val_loss(refit(replace(problem, features=features)).problem) - val_loss(problem))
    return -predicted_val_drop(influence, problem.n_train), torch.stack(actual)


def gray(augmenter: Augmenter, steps: int, count: int) -> dict[str, PIL.Image.Image]:
    """The pictures of weights for digits, by file name."""
    data, augment = digits(), LearnedAugment(augmenter, p=0.5)
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
    short = FitConfig(pretrain=PretrainConfig(steps=steps // 5), maximize=DropoutConfig(steps=steps // 5))
    result = fit(model, data["train"], data["val"], baseline=CROP, config=short, progress=False)
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
    parser.add_argument("--cifar10", type=Path, metavar="ROOT", help="data for color weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="of each training (%(default)s)")
    parser.add_argument("--count", type=int, default=100, help="of predicted changes (%(default)s)")
    args = parser.parse_args(arguments)
    augmenter = Augmenter.from_pretrained(args.weights)
    if augmenter.config.channels == 1:
        pictures = gray(augmenter, args.steps, args.count)
    elif args.cifar10 is not None:
        pictures = color(augmenter, args.cifar10)
    else:
        parser.error(f"{args.weights} are color weights: name the folder of CIFAR-10 with --cifar10")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (args.out / name).write_bytes(png(picture))
        print(f"{args.out / name}: {picture.width} x {picture.height}, {(args.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
