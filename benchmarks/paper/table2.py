"""Table 2 of the paper: CIFAR-10 and CIFAR-100 with three large classifiers. Test error %, the paper's beside ours.

    torchrun --nproc-per-node 8 benchmarks/paper/table2.py --data ROOT --compile --workers 8
    python benchmarks/paper/table2.py --data ROOT --rows Wide --arms Cutout paper --scale 0.01
    python benchmarks/paper/table2.py                       # the table alone

ROOT is torchvision's of CIFAR10 and CIFAR100, or holds class folders, ROOT/cifar10/train and test.

Protocol: AutoAugment's, whose baselines the paper quotes: a policy, a crop of the padded image, a flip, then Cutout in
all arms but the heuristic one. The paper's networks are fitted to a classifier that is trained on 40,000 images, with
the other 10,000; final trainings of all arms are on all 50,000. TrivialAugmentWide's published figures are those of its
authors (Mueller and Hutter, 2021), with the same Cutout.
"""

from __future__ import annotations

import dataclasses

from runner import AUTO_AUGMENT, CUTOUT, HEURISTIC, METHODS, TRIVIAL_AUGMENT, Row, main

CUT = {"AutoAugment": AUTO_AUGMENT, **METHODS, "TrivialAugmentWide": TRIVIAL_AUGMENT}
ARMS = {
    "heuristic": HEURISTIC,
    "Cutout": CUTOUT,
    **{name: dataclasses.replace(arm, cutout=True) for name, arm in CUT.items()},
}
MODELS = {
    "Wide-ResNet-28-10": {"epochs": 200, "batch": 128, "lr": 0.1, "weight_decay": 5e-4},
    "Shake-Shake 26 2x96d": {"epochs": 1800, "batch": 128, "lr": 0.01, "weight_decay": 1e-3},
    "PyramidNet-272 + ShakeDrop": {"epochs": 1800, "batch": 64, "lr": 0.05, "weight_decay": 5e-5},
}
SHARED = {"decay": "cosine", "nesterov": True, "clip": 5.0, "with_val": True}
ROWS = [
    Row(name=f"{name}, {model}", data=data, model=model, **values, **SHARED)
    for name, data in (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100"))
    for model, values in MODELS.items()
]

if __name__ == "__main__":
    main(__doc__, ROWS, ARMS)
