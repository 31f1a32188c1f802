"""Fit an augmenter to a classifier of your own, and compare it with its control: the whole path in one file.

    python examples/fit_your_classifier.py --out my-augmenter            # on the digits of the package, about a minute
    python examples/fit_your_classifier.py --out my-augmenter --data DIR --size 32     # DIR/train, DIR/val, DIR/test

DIR/train and the others hold a folder of images for each class. Take `Net`, `load` and the training for yours: fit
wants a trained classifier that ends in an nn.Linear, what it was trained on, and images that it has not seen. One run
of each arm shows the path; to show that one is better takes more: --trainings 6 at least.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from learned_aug import Comparison, DropoutConfig, FitConfig, RetrainConfig, SteeredDraws, compare, fit, retrain
from learned_aug.digits import digits


class Net(nn.Module):
    """Your classifier; this one has three convolutions."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 16, 5, 2, 2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        )
        self.fc = nn.Linear(256, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        return self.fc(self.body(images))


def load(folder: str | None, size: int) -> tuple[dict[str, Dataset], int, int]:
    """Training, hyper-validation and test images in [0, 1], and the numbers of channels and classes."""
    if folder is None:
        return digits(), 1, 10
    to_square = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    data = {part: ImageFolder(f"{folder}/{part}", to_square) for part in ("train", "val", "test")}
    return data, 3, len(data["train"].classes)


def main(arguments: list[str] | None = None) -> Comparison:
    """Train, fit, compare on the test images, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="my-augmenter", help="folder for the weights (%(default)s)")
    parser.add_argument("--data", help="folder of images; by default the digits of the package")
    parser.add_argument("--size", type=int, default=28, help="side of the images, pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="steps of each training of a classifier (%(default)s)")
    parser.add_argument("--fit-steps", type=int, default=200, help="training steps of the fit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the classifier and the fit (%(default)s)")
    parser.add_argument("--trainings", type=int, default=1, help="trainings of each arm that is compared (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    data, channels, classes = load(args.data, args.size)
    crop = v2.RandomCrop(args.size, padding=args.size // 8)  # what you augment with today

    def fresh() -> nn.Module:
        return Net(channels, classes).to(args.device)

    schedule = RetrainConfig(steps=args.steps)
    torch.manual_seed(args.seed)
    model = fresh()
    retrain(model, data["train"], schedule, baseline=crop, seed=args.seed)  # or the one that you have
    config = FitConfig(seed=args.seed, maximize=DropoutConfig(steps=args.fit_steps))
    result = fit(model, data["train"], data["val"], baseline=crop, config=config)
    print(result)  # strength, diversity and predicted effect of each stage

    arms = {
        "crop": None,
        "crop, untrained control": result.prior,
        "crop, fitted": result.fitted,
        "crop, steered": lambda model: SteeredDraws(model, augmenter=result.prior),  # to a higher loss
    }
    seeds = range(args.trainings)
    compared = compare(fresh, data["train"], data["test"], arms, config=schedule, baseline=crop, seeds=seeds)
    print(compared)
    result.augmenter.save_pretrained(args.out)
    print(f'Use it with LearnedAugment.from_pretrained(pathlib.Path("{args.out}"))')
    return compared


if __name__ == "__main__":
    main()
