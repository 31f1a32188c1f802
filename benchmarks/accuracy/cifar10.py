"""CIFAR-10 with a tenth of the labels: test error of augmentation arms, paired over seeds.

    python benchmarks/accuracy/cifar10.py --data ROOT --seeds 0-5     # runs what is missing, then prints the table
    python benchmarks/accuracy/cifar10.py --report                    # the table alone

ROOT is that of torchvision.datasets.CIFAR10, or holds an ImageFolder tree train/ and test/.

Protocol: 10,000 training images are the hyper-validation set, of which influence reads the first half and the second
half is for choosing; of the other 40,000, 400 per class, drawn by the seed, are labeled. ResNet-8 (He et al.'s for
CIFAR with one block per stage; time on a CPU forces it, `--depth 56` is the paper's, `--depth 28 --width 160` is
Wide-ResNet-28-10), batches of 64, SGD with Nesterov momentum, one cycle of 2,000 steps (32 epochs), bfloat16 autocast
(`--amp 0`: float32); images in [0, 1]. In a seed all arms share initialization, order and schedule. An augmenter
replaces half of each batch of cropped and flipped images; a policy of torchvision is applied to all of them, before the
crop.
"""

import functools
from pathlib import Path

import torch
from harness import Arm, Task, main
from resnets import residual_network
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

from learned_aug import AugmenterConfig

HYPER_VAL = 10_000


@functools.lru_cache
def images_of(root, train):
    """All images in [0, 1] and labels, in one fixed random order."""
    folder = Path(root) / ("train" if train else "test")
    if folder.is_dir():
        pairs = ImageFolder(folder, transform=v2.PILToTensor())
        images, labels = (torch.stack([x for x, _ in pairs]), torch.tensor(pairs.targets))
    else:
        source = CIFAR10(root, train=train)
        images, labels = torch.from_numpy(source.data).movedim(3, 1), torch.tensor(source.targets)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order].float() / 255, labels[order]


def load(root, seed, per_class):
    images, labels = images_of(root, True)
    order = HYPER_VAL + torch.randperm(len(labels) - HYPER_VAL, generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[labels[order] == c][:per_class] for c in range(10)])
    half = HYPER_VAL // 2
    return {
        "train": (images[chosen], labels[chosen]),
        "influence": (images[:half], labels[:half]),
        "choosing": (images[half:HYPER_VAL], labels[half:HYPER_VAL]),
        "test": images_of(root, False),
    }


def policy(kind):
    """A torchvision policy, which needs integers, from an image in [0, 1] to one."""
    return v2.Compose([v2.ToDtype(torch.uint8, scale=True), kind, v2.ToDtype(torch.float32, scale=True)])


CROP_FLIP = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
POLICIES = {
    "TrivialAugmentWide": v2.TrivialAugmentWide(),
    "AutoAugment": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "RandAugment": v2.RandAugment(),
    "AugMix": v2.AugMix(),
}
BASELINES = {
    None: None,
    "crop + flip": v2.Compose(CROP_FLIP),
    "Cutout": v2.Compose([*CROP_FLIP, v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0), value=0.5)]),
    **{name: v2.Compose([policy(kind), *CROP_FLIP]) for name, kind in POLICIES.items()},
    "TrivialAugmentWide alone": policy(POLICIES["TrivialAugmentWide"]),
}
ARMS = {
    "none": Arm(),
    "crop + flip": Arm("crop + flip"),
    "crop + flip, all labels": Arm("crop + flip", labeled="all"),
    "Cutout": Arm("Cutout"),
    **{name: Arm(name) for name in POLICIES},
    "untrained": Arm("crop + flip", "untrained"),
    "untrained, 1.4 x": Arm("crop + flip", "untrained", strength=1.4),  # the strength of steered draws, about
    "pretrained": Arm("crop + flip", "pretrained"),
    "linear (paper)": Arm("crop + flip", "linear"),
    "fitted": Arm("crop + flip", "fitted"),
    "fitted, not pretrained": Arm("crop + flip", "fitted, not pretrained"),
    "fitted to the control": Arm("crop + flip", "fitted to the control"),
    "fitted, reversed": Arm("crop + flip", "fitted", reverse=True),
    "fitted to harder": Arm("crop + flip", "fitted to harder"),
    "steered": Arm("crop + flip", "untrained", {"rule": "steered"}),
    "steered to harder": Arm("crop + flip", "untrained", {"rule": "harder"}),
    "steered, taught": Arm("crop + flip", "untrained", {"rule": "taught"}),
    "steered, without loss": Arm("crop + flip", "untrained", {"rule": "without loss"}),
    "steered the other way": Arm("crop + flip", "untrained", {"rule": "steered", "tilt": -3.0}),
    # The pretrained weights, fitted once, to the images of seed 0.
    **{name: Arm("crop + flip", name) for name in ("cifar10-resnet56", "cifar10-wrn")},
    "best of 2": Arm("crop + flip", "untrained", {}),
    "worst of 2": Arm("crop + flip", "untrained", {"rule": "worst"}),
    "hardest of 2": Arm("crop + flip", "untrained", {"rule": "hardest"}),
    "random of 2": Arm("crop + flip", "untrained", {"rule": "random"}),
    "spatial only": Arm("crop + flip", "untrained", config={"variant": "spatial"}),
    "appearance only": Arm("crop + flip", "untrained", config={"variant": "appearance"}),
    "serial": Arm("crop + flip", "untrained", config={"variant": "serial"}),
    "pooled": Arm("crop + flip", "untrained", config={"pooled": True}),  # one affine warp, one color filter
    "2 control points": Arm("crop + flip", "untrained", config={"control_points": 2}),
    "8 control points": Arm("crop + flip", "untrained", config={"control_points": 8}),
    "TAW + untrained": Arm("TrivialAugmentWide", "untrained"),
    "TAW + fitted": Arm("TrivialAugmentWide", "fitted"),
    "TAW + steered": Arm("TrivialAugmentWide", "untrained", {"rule": "steered"}),
    "TAW + steered to harder": Arm("TrivialAugmentWide", "untrained", {"rule": "harder"}),
    "untrained beside TAW": Arm("crop + flip", "untrained", rest="TrivialAugmentWide alone"),  # half of a batch each
    "TAW + best of 2": Arm("TrivialAugmentWide", "untrained", {}),
    "TAW in half": Arm("crop + flip", "TrivialAugmentWide alone"),
    "TAW in half, best of 2": Arm("crop + flip", "TrivialAugmentWide alone", {}),
}
TASK = Task(
    load=load,
    model=lambda args: residual_network(args.depth, args.width),
    baselines=BASELINES,
    heuristic="crop + flip",
    arms=ARMS,
    config=AugmenterConfig(channels=3, size=32),
    lr=0.1,
    batch_size=64,
    mix=0.5,
    every=200,
)

SETTINGS = {"per_class": 400, "steps": 2000, "width": 16, "depth": 8, "pixels": 1.0, "color": 0.05, "amp": 1}


if __name__ == "__main__":
    main(TASK, __doc__, Path(__file__).parent / "results" / "cifar10.jsonl", **SETTINGS)
