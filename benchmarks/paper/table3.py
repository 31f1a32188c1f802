"""Table 3 of the paper: ImageNet with ResNet-50 and ResNet-200. Test error %, the paper's beside ours.

    torchrun --nproc-per-node 8 benchmarks/paper/table3.py --data ROOT --compile --workers 16
    python benchmarks/paper/table3.py                       # the table alone

ROOT holds train/ and val/ with a folder for each class, as torchvision.datasets.ImageNet lays them out.

Protocol: AutoAugment's, which the paper follows: 270 epochs of 4,096, Inception's crops, flips and colors in all arms;
AutoAugment's policy is that of ImageNet. Of the training images 50,000 are the hyper-validation set of the fit, and are
trained on in the end. The paper's networks have 8 layers at 224 px, and their fields grow for half of stage 1. Errors
are top 1 / top 5, as the paper has them. The paper's figures of ResNet-200 are
quoted at second hand, TrivialAugmentWide's are its authors' (Mueller and Hutter, 2021), with another schedule.
"""

from runner import AUTO_AUGMENT, HEURISTIC, METHODS, TRIVIAL_AUGMENT, Row, main

ARMS = {"heuristic": HEURISTIC, "AutoAugment": AUTO_AUGMENT, **METHODS, "TrivialAugmentWide": TRIVIAL_AUGMENT}
SCHEDULE = {"epochs": 270, "batch": 4096, "lr": 1.6, "weight_decay": 1e-4, "nesterov": True}
SHARED = {"data": "imagenet", "decay": (90 / 270, 180 / 270, 240 / 270), "with_val": True, "growth": 0.5}
ROWS = [Row(name=f"ImageNet, {model}", model=model, **SCHEDULE, **SHARED) for model in ("ResNet-50", "ResNet-200")]

if __name__ == "__main__":
    main(__doc__, ROWS, ARMS)
