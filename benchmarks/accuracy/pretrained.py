"""The pretrained weights: their fit, and their model cards.

    python benchmarks/accuracy/pretrained.py NAME --data ROOT    # fits, writes pretrained/NAME, prints its table entry
    python benchmarks/accuracy/pretrained.py NAME --card         # writes the card from what was measured

A fit is that of seed 0 of benchmarks/accuracy/mnist.py or cifar10.py, without stage 1, which showed no gain there. The
seeds that measure draw other training images: what is measured is how well weights that were fitted once serve on
images that the fit has not seen. The command that measures is in the card.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import cifar10
import mnist
from harness import Arm, Task, fit_config, fitted, read, settings_of, train

from learned_aug import Augmenter, CardFacts
from learned_aug.weights import files as weights
from learned_aug.weights.card import CardResult, render
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME, sha256
from learned_aug.weights.registry import Pretrained

HERE = Path(__file__).parent
FOLDERS = HERE.parents[1] / "pretrained"
PICTURES = HERE.parents[1] / "examples"  # made by examples/pictures.py
SOURCE = "fitted, not pretrained"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one set is fitted and measured."""

    task: Task
    settings: argparse.Namespace
    seeds: Sequence[int]  # that measure
    results: str  # of the measurement, a file
    data: str
    classifier: str
    facts: CardFacts  # the rest is filled in from the fit and the measurement


LABELS = "The labels that influence read are worth more as training data, where they may be used so."


def cifar_recipe(name, classifier, made, options, pictures):
    """Of weights for CIFAR-10: `options` are those of benchmarks/accuracy/cifar10.py that differ from its defaults."""
    flags = " ".join(f"--{option.replace('_', '-')} {value}" for option, value in options.items())
    return Recipe(
        task=cifar10.TASK,
        settings=argparse.Namespace(**{**cifar10.SETTINGS, **options}),
        seeds=range(50, 53),
        results="cifar10.jsonl",
        data="CIFAR-10, 1,000 labels",
        classifier=classifier,
        facts=CardFacts(
            data="CIFAR-10: 1,000 labelled images, 100 of each class, of 40,000 training images (seed 0); influence "
            "read 5,000 of the other 10,000.",
            classifier=f"{made} of 64 images with random crops and flips, bfloat16 autocast.",
            protocol="Fresh classifiers on other draws of 1,000 images, half of each batch of cropped and flipped "
            "images augmented; the whole test set. No setting was chosen for this set: they are those of digits. "
            f"`python benchmarks/accuracy/cifar10.py --data ROOT {flags} --seeds 50-52 --arms "
            f'"crop + flip" untrained {name}`.',
            limits="Small photographs and things alike. Three seeds show no difference to the untrained networks, nor "
            f"to crops and flips. {LABELS}",
            license="apache-2.0",
            data_license="none is stated for CIFAR-10 (Alex Krizhevsky, 2009); the weights contain no image",
            datasets=("uoft-cs/cifar10",),
            pictures={
                pictures / "cifar10.png": "Test images (first column) and nine draws of each, of the same noise in "
                "each row",
                pictures / "cifar10-traversal.png": "One image on the way from one draw to another",
            },
        ),
    )


RECIPES = {
    "mnist-cnn4": Recipe(
        task=mnist.TASK,
        settings=argparse.Namespace(**mnist.SETTINGS),
        seeds=range(50, 70),
        results="mnist.jsonl",
        data="MNIST, 500 labels",
        classifier="4-layer CNN of width 16",
        facts=CardFacts(
            data="MNIST: 500 labelled images, 50 of each class, of the last 55,000 training images (seed 0); influence "
            "read the first 2,500 training images.",
            classifier="4 convolutions 5x5 of stride 2, 16 to 128 channels, LeakyReLU .2, batch norm, one linear layer "
            "(TANDA's, at a quarter of its width); 1,000 steps of 50 images with random crops.",
            protocol="Fresh classifiers on other draws of 500 images (seeds 50 to 69, as far as they were run), half "
            "of each batch of cropped images augmented; the whole test set. Settings were chosen on other seeds, on "
            "hyper-validation images; a first set of weights, with stage 1, was measured on 8 of these seeds (+0.06 "
            "points against the control) and replaced. `python benchmarks/accuracy/mnist.py --data ROOT --seeds 50-69 "
            "--arms crop untrained mnist-cnn4`.",
            limits="A fit to one's own training images does more for them (see the README of learned-aug). Digits and "
            "things alike. It knows nothing of colour, and of no other classifier or number of labels than the above. "
            f"{LABELS}",
            license="apache-2.0",
            data_license="CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)",
            datasets=("ylecun/mnist",),
            pictures={
                PICTURES / "digits.png": "Test digits (first column) and nine draws of each, of the same noise in each "
                "row",
                PICTURES / "traversal.png": "One digit on the way from one draw to another",
            },
        ),
    ),
    "cifar10-resnet56": cifar_recipe(
        "cifar10-resnet56",
        "ResNet-56",
        "ResNet-56 (He et al.'s for CIFAR); 1,000 steps (64 epochs: a short schedule, that time on a CPU forces)",
        {"per_class": 100, "depth": 56, "steps": 1000},
        PICTURES / "cifar10-resnet56",
    ),
    "cifar10-wrn": cifar_recipe(
        "cifar10-wrn",
        "Wide-ResNet-10-2",
        "Wide-ResNet-10-2 (depth 10, widening factor 2; the paper's is 28-10, which time on a CPU does not allow); "
        "2,000 steps",
        {"per_class": 100, "depth": 10, "width": 32},
        PICTURES,
    ),
}


def fit_weights(name, recipe, root):
    task, settings = recipe.task, recipe.settings
    data = task.load(root, 0, settings.per_class)
    model = train(task, data["train"], settings, 0, task.baselines[task.heuristic], None)
    augmenter, diagnostics, seconds = fitted(task, data, settings, 0, Arm(task.heuristic, SOURCE), model)
    augmenter.save_pretrained(FOLDERS / name)
    (HERE / "results" / f"{name}.json").write_text(
        json.dumps({"diagnostics": diagnostics, "seconds": round(seconds, 1)}, indent=2) + "\n"
    )


def measured(name, recipe):
    """Test errors, percent, of these weights, their control and the baseline, on the seeds that all of them have."""
    arms = (name, "untrained", recipe.task.heuristic)
    rows = [row for row in read(HERE / "results" / recipe.results) if row["settings"] == settings_of(recipe.settings)]
    errors = {arm: {r["seed"]: 100 * r["test_error"] for r in rows if r["arm"] == arm} for arm in arms}
    seeds = [seed for seed in recipe.seeds if all(seed in of for of in errors.values())]
    return {arm: [of[seed] for seed in seeds] for arm, of in errors.items()}


def write_card(name, recipe):
    fit = json.loads((HERE / "results" / f"{name}.json").read_text())
    heuristic = recipe.task.heuristic
    config = fit_config(0, Arm(heuristic, SOURCE), recipe.settings)
    arms = (f"{heuristic} + these weights", f"{heuristic} + untrained, same strength", f"{heuristic} alone")
    card = dataclasses.replace(
        recipe.facts,
        results=tuple(
            CardResult(arm=arm, error=statistics.mean(errors), std=statistics.stdev(errors), runs=len(errors))
            for arm, errors in zip(arms, measured(name, recipe).values(), strict=True)
        ),
        settings={
            f"{part}.{key}": value
            for part in ("pretrain", "maximize", "influence")
            for key, value in vars(getattr(config, part)).items()
        },
        diagnostics={"fitted": fit["diagnostics"]},
        cost=f"{fit['seconds']:.0f} s for the fit, one CPU core.",
    )
    augmenter = Augmenter.from_pretrained(FOLDERS / name)
    files = weights.encode(augmenter.config, augmenter.state_dict())
    weights.write(FOLDERS / name, {**files, **render(card, augmenter.config, files, name)})


def entry(name, recipe):
    """What belongs into the table of learned_aug/weights/registry.py."""
    files = {file: (FOLDERS / name / file).read_bytes() for file in (CONFIG_NAME, WEIGHTS_NAME)}
    own, control, alone = (
        f"{statistics.mean(e):.2f} %" if e else "not measured" for e in measured(name, recipe).values()
    )
    return Pretrained(
        name=name,
        data=recipe.data,
        classifier=recipe.classifier,
        bytes=sum(map(len, files.values())),
        license="Apache-2.0",
        error=f"test error {own} (untrained control {control}, {recipe.task.heuristic} {alone})",
        config_sha256=sha256(files[CONFIG_NAME]),
        weights_sha256=sha256(files[WEIGHTS_NAME]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--data", help="root folder of the data set")
    parser.add_argument("--card", action="store_true", help="write the card of the weights that are there")
    args = parser.parse_args()
    recipe = RECIPES[args.name]
    if args.card:
        write_card(args.name, recipe)
    elif args.data:
        fit_weights(args.name, recipe, args.data)
    else:
        parser.error("--data ROOT or --card is needed")
    print(repr(entry(args.name, recipe)))


if __name__ == "__main__":
    main()
