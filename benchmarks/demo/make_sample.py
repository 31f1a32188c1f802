"""Make learned_aug/data/mnist-sample.npz, the data of `learned-aug demo`, from torchvision's MNIST.

    python benchmarks/demo/make_sample.py --data ROOT

ROOT is where torchvision.datasets.MNIST keeps its files. Class-balanced, drawn with a fixed seed: 600 training and
2,000 hyper-validation images of MNIST's training set, without overlap, and 2,000 test images of its test set.
"""

import argparse
from pathlib import Path

import numpy as np
from torchvision.datasets import MNIST

OUT = Path(__file__).parents[2] / "learned_aug" / "data" / "mnist-sample.npz"


def balanced(rng, labels, per_class, taken=()):
    """Indices of `per_class` images of each class, none of them in `taken`, in a random order."""
    free = np.setdiff1d(np.arange(len(labels)), taken)
    picked = [rng.choice(free[labels[free] == c], per_class, replace=False) for c in range(10)]
    return rng.permutation(np.concatenate(picked))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="root folder of torchvision.datasets.MNIST")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    source, test = (MNIST(args.data, train=flag) for flag in (True, False))
    labels, test_labels = source.targets.numpy(), test.targets.numpy()
    train = balanced(rng, labels, 60)
    val = balanced(rng, labels, 200, taken=train)
    chosen = balanced(rng, test_labels, 200)
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        OUT,
        train_images=source.data.numpy()[train],
        train_labels=labels[train].astype(np.uint8),
        val_images=source.data.numpy()[val],
        val_labels=labels[val].astype(np.uint8),
        test_images=test.data.numpy()[chosen],
        test_labels=test_labels[chosen].astype(np.uint8),
    )
    print(f"{OUT}: {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
