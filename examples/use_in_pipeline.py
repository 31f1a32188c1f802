"""Three places for a learned augmentation in a training pipeline, on the digits that the package carries.

    python examples/use_in_pipeline.py [FOLDER]

FOLDER is what `save_pretrained` wrote, for gray 28 px images, as `learned-aug demo` does; without it an untrained
augmenter stands in. Per sample is the simplest, in the collate function some ten times faster (one call for a batch, in
the worker), on the device free of the workers.
"""

import argparse

import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment
from learned_aug.digits import digits


class Digits(Dataset[tuple[object, int]]):
    """600 PIL images and labels."""

    def __init__(self, transform: v2.Transform) -> None:
        images, self.labels = digits()["train"].tensors
        self.images = [v2.functional.to_pil_image(image) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        """How many."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, int]:
        """One sample."""
        image: PIL.Image.Image = self.images[index]
        return self.transform(image), int(self.labels[index])


class AugmentingCollate:
    """A class rather than a lambda, so that spawned workers can receive it."""

    def __init__(self, augment: LearnedAugment) -> None:
        self.augment, self.to_float = augment, v2.ToDtype(torch.float32, scale=True)

    def __call__(self, samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Collate, then augment every sample with its own draw."""
        images, labels = self.augment(default_collate(samples))
        return self.to_float(images), labels


def untrained() -> Augmenter:
    """Random, of a stated strength: the control that a fitted augmenter has to beat."""
    return Augmenter(AugmenterConfig(channels=1, size=28)).calibrate_(digits()["train"].tensors[0][:100])


def pipelines(augmenter: Augmenter, workers: int) -> dict[str, DataLoader[tuple[torch.Tensor, torch.Tensor]]]:
    """A loader for each place."""
    augment = LearnedAugment(augmenter)
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    options = {"batch_size": 100, "num_workers": workers, "shuffle": True}
    return {
        "per sample": DataLoader(Digits(v2.Compose([augment, *to_tensor])), **options),
        "in the collate function": DataLoader(Digits(v2.ToImage()), collate_fn=AugmentingCollate(augment), **options),
        "on the device": DataLoader(Digits(v2.Compose(to_tensor)), **options),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run one epoch of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    augmenter = Augmenter.from_pretrained(args.folder) if args.folder else untrained()
    for place, loader in pipelines(augmenter, args.workers).items():
        seen = 0
        on_device = augmenter.to(args.device) if place == "on the device" else None
        for images, labels in loader:
            batch = images.to(args.device)
            if on_device is not None:
                batch = on_device(batch)
            seen += len(labels)  # here the training step goes
        print(f"{place}: {seen} images like {tuple(batch.shape[1:])}")


if __name__ == "__main__":
    main()
