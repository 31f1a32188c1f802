"""How alike the directions are that lower the influence and that raise the loss: what two forms of SteeredDraws follow.

    python benchmarks/accuracy/directions.py mnist --data ROOT --seeds 0-2
    python benchmarks/accuracy/directions.py cifar10 --data ROOT --seeds 0-2

For both, the gradient with respect to the dropout mask of one augmented copy of an image, by a snapshot of a classifier
in training; the mean over 500 training images of the cosine between the two, at five moments of a training with
untrained draws. Data, classifiers and schedules are those of mnist.py (500 labels) and cifar10.py (1,000 labels).
"""

import argparse
import json
import statistics
from pathlib import Path

import cifar10
import mnist
import torch
import torch.nn.functional as F
from harness import Arm, fitted, numbers, provenance, train
from torch.utils.data import TensorDataset

from learned_aug.training.steer import SteeredDraws

TASKS = {"mnist": (mnist.TASK, mnist.SETTINGS), "cifar10": (cifar10.TASK, {**cifar10.SETTINGS, "per_class": 100})}
MOMENTS = (0.2, 0.4, 0.6, 0.8, 1.0)
IMAGES = 500


def cosines(task, args, seed):
    """One mean cosine for each moment."""
    data = task.load(args.data, seed, args.per_class)
    augmenter, _, _ = fitted(task, data, args, seed, Arm(task.heuristic, "untrained"), task.model(args))
    labelled, val = TensorDataset(*data["train"]), TensorDataset(*data["influence"])
    images, labels = (tensor[:IMAGES] for tensor in data["train"])
    moments = [round(share * args.steps) for share in MOMENTS]
    found = []

    def watched(model):
        steps = 0

        def augment(x, y):
            nonlocal steps
            steps += 1
            if steps in moments:
                noise = augmenter.draw_noise(IMAGES, generator=torch.Generator().manual_seed(steps))
                masks = augmenter.trace(images, noise).masks
                forms = SteeredDraws(augmenter, model, labelled, val), SteeredDraws(augmenter, model, labelled, None)
                for form in forms:
                    form.renew()
                one, two = (form.direction(images, labels, masks).flatten(1) for form in forms)
                found.append(float(F.cosine_similarity(one, two).mean()))
            return augmenter(x)

        return augment

    train(task, data["train"], args, seed, task.baselines[task.heuristic], watched)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", required=True, help="root folder of the data set")
    parser.add_argument("--seeds", type=numbers, default=range(3), help="such as 0-2, two at least")
    args = parser.parse_args()
    task, settings = TASKS[args.task]
    runs = [cosines(task, argparse.Namespace(data=args.data, **settings), seed) for seed in args.seeds]
    report = {
        **provenance(),
        "settings": settings,
        "seeds": list(args.seeds),
        "cosines": {
            f"{share:.0%} of the steps": {
                "mean": statistics.mean(values),
                "std": statistics.stdev(values),
                "each": values,
            }
            for share, values in zip(MOMENTS, zip(*runs, strict=True), strict=True)
        },
    }
    path = Path(__file__).parent / "results" / f"directions-{args.task}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for moment, values in report["cosines"].items():
        print(f"{moment:18} {values['mean']:+.3f} +- {values['std']:.3f}")


if __name__ == "__main__":
    main()
