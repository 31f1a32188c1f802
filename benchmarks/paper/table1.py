"""Table 1 of the paper: few and all labels, a 4-layer CNN and ResNet-56. Test error %, the paper's beside ours.

    python benchmarks/paper/table1.py --data ROOT --seeds 0 1 2 --rows MNIST
    python benchmarks/paper/table1.py --data ROOT --rows "CIFAR-10, 10 %" --scale 0.01
    torchrun --nproc-per-node 8 benchmarks/paper/table1.py --data ROOT --rows CIFAR --compile --workers 8
    python benchmarks/paper/table1.py                       # the table alone

ROOT is torchvision's of MNIST, CIFAR10 and CIFAR100; CIFAR may also be class folders, ROOT/cifar10/train and test.

Protocol: Ratner et al.'s (TANDA), which Table 1 shares. The paper's networks are fitted to the classifier of the
heuristic arm, with the hyper-validation images (5,000 of MNIST, 10,000 of CIFAR), and then augment all images of a new
training. The rows of all labels train on the hyper-validation images as well, in all arms; those of few labels do not,
so that the paper's method reads more labels than the others: "ours, train + val" says what these are worth. The
learning rate of the rows of all labels is ours. Ratner's figures are quoted; they use unlabeled images too.
"""

from runner import HEURISTIC, METHODS, NONE, TRIVIAL_AUGMENT, Arm, Row, main

ARMS = {
    "none": NONE,
    "heuristic": HEURISTIC,
    "TrivialAugmentWide": TRIVIAL_AUGMENT,
    **METHODS,
    "ours, train + val": Arm(networks="steered", with_val=True),
}
MNIST = {"data": "mnist", "model": "4-layer CNN", "epochs": 100, "batch": 50, "lr": 1e-3}
CIFAR = {"model": "ResNet-56", "epochs": 150, "lr": 0.1, "decay": (2 / 3,), "weight_decay": 2e-4, "plain": 10}
ALL = {"batch": 128, "with_val": True}
ROWS = [
    Row(name="MNIST, 1 %", per_class=50, **MNIST),
    Row(name="MNIST, 10 %", per_class=500, **MNIST),
    Row(name="CIFAR-10, 10 %", data="cifar10", per_class=400, batch=50, **CIFAR),
    Row(name="CIFAR-10, 100 %", data="cifar10", **ALL, **CIFAR),
    Row(name="CIFAR-100, 100 %", data="cifar100", **ALL, **CIFAR),
]

if __name__ == "__main__":
    main(__doc__, ROWS, ARMS)
