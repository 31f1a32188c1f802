"""MNIST with few labels: test error of augmentation arms, paired over seeds.

    python benchmarks/accuracy/mnist.py --data ROOT --seeds 0-9            # runs what is missing, then prints the table
    python benchmarks/accuracy/mnist.py --report --seeds 10-29             # the table alone, of these seeds

ROOT is that of torchvision.datasets.MNIST.

Protocol: the first 5,000 training images are the hyper-validation set, of which influence reads the first half and the
second half is for choosing; a class-balanced subset of the others (50 per class, drawn by the seed) is labeled. The
4-layer all-convolutional classifier at width 16 (TANDA: 64), batches of 50, SGD with Nesterov momentum, one cycle;
images in [0, 1]. In a seed all arms share initialization, order and schedule. An augmenting arm replaces half of each
batch of cropped images by augmented copies.
"""

from pathlib import Path

import torch
from harness import Arm, Task, main
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from learned_aug import AugmenterConfig
from learned_aug.digits import all_conv


def load(root, seed, per_class):
    source, test = (MNIST(root, train=flag) for flag in (True, False))
    images, labels = source.data[:, None].float() / 255, source.targets
    generator = torch.Generator().manual_seed(seed)
    order = 5000 + torch.randperm(55000, generator=generator)
    chosen = torch.cat([order[labels[order] == c][:per_class] for c in range(10)])
    return {
        "train": (images[chosen], labels[chosen]),
        "influence": (images[:2500], labels[:2500]),
        "choosing": (images[2500:5000], labels[2500:5000]),
        "test": (test.data[:, None].float() / 255, test.targets),
    }


BASELINES = {
    None: None,
    "crop": v2.RandomCrop(28, padding=2),
    "affine": v2.Compose([v2.RandomAffine(15, scale=(0.9, 1.1), shear=10), v2.RandomCrop(28, padding=2)]),
}
ARMS = {
    "none": Arm(),
    "crop": Arm("crop"),
    "affine": Arm("affine"),
    "crop, all labels": Arm("crop", labeled="all"),
    "untrained": Arm("crop", "untrained"),
    "untrained, 1.4 x": Arm("crop", "untrained", strength=1.4),  # the strength of steered draws, about
    "pretrained": Arm("crop", "pretrained"),
    "linear (paper)": Arm("crop", "linear"),
    "fitted": Arm("crop", "fitted"),
    "fitted, not pretrained": Arm("crop", "fitted, not pretrained"),
    "fitted to the control": Arm("crop", "fitted to the control"),
    "fitted, reversed": Arm("crop", "fitted", reverse=True),
    "fitted to harder": Arm("crop", "fitted to harder"),
    "steered": Arm("crop", "untrained", {"rule": "steered"}),
    "steered to harder": Arm("crop", "untrained", {"rule": "harder"}),
    "steered, taught": Arm("crop", "untrained", {"rule": "taught"}),
    "steered, without loss": Arm("crop", "untrained", {"rule": "without loss"}),
    "steered the other way": Arm("crop", "untrained", {"rule": "steered", "tilt": -3.0}),
    "untrained, all labels": Arm("crop", "untrained", labeled="all"),
    "steered to harder, all labels": Arm("crop", "untrained", {"rule": "harder"}, labeled="all"),
    "best of 2": Arm("crop", "untrained", {}),
    "worst of 2": Arm("crop", "untrained", {"rule": "worst"}),
    "hardest of 2": Arm("crop", "untrained", {"rule": "hardest"}),
    "random of 2": Arm("crop", "untrained", {"rule": "random"}),
    "fitted, best of 2": Arm("crop", "fitted", {}),
    "fitted, steered": Arm("crop", "fitted", {"rule": "steered"}),
    "mnist-cnn4": Arm("crop", "mnist-cnn4"),  # the pretrained weights, fitted once, to the images of seed 0
    **{
        f"steered, tau {size}": Arm("crop", "untrained", {"rule": "steered"}, config={"tau_dim": size})
        for size in (32, 64, 256)
    },
    # For choosing settings.
    **{f"fitted, tilt {tilt:g}": Arm("crop", f"fitted, tilt {tilt:g}") for tilt in (0.75, 1.5, 3.0, 6.0)},
    "best of 4": Arm("crop", "untrained", {"draws": 4}),
    "best of 2, damped": Arm("crop", "untrained", {"damping": 10.0, "weight_decay": 1e-3}),
}
TASK = Task(
    load=load,
    model=lambda args: all_conv(args.width),
    baselines=BASELINES,
    heuristic="crop",
    arms=ARMS,
    config=AugmenterConfig(channels=1, size=28),
    lr=0.05,
    batch_size=50,
    mix=0.5,
    every=100,
)

SETTINGS = {"per_class": 50, "steps": 1000, "width": 16, "pixels": 1.0}


if __name__ == "__main__":
    main(TASK, __doc__, Path(__file__).parent / "results" / "mnist.jsonl", **SETTINGS)
