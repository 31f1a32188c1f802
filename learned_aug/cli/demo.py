"""The whole method on a small real data set, 600 training digits of MNIST that come with the package.

Trains a 4-layer all-convolutional classifier without augmentation, with random crops, and with the crops and the
untrained augmenter (the control); fits the augmenter to the last of these (influence, learned dropout); trains fresh
classifiers with the fitted one, and with draws of the untrained one steered while the classifier trains, from the same
start on the same schedule; and prints their test errors. Writes to the folder --out: augmenter/ (the weights),
digits.png (rows are images, columns are draws; the first column is the original) and results.json. One seed shows the
path; it is no evidence for or against an arm.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from learned_aug.augmenter import Augmenter
from learned_aug.digits import all_conv, digits
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pipeline import fit
from learned_aug.nets import AugmenterConfig
from learned_aug.runtime.events import Event, ProgressBars
from learned_aug.training.retrain import RetrainConfig, evaluate, retrain
from learned_aug.training.steer import SteeredDraws
from learned_aug.transform import LearnedAugment
from learned_aug.viz import diversity_grid
from learned_aug.weights.files import write_atomic

__all__ = ["add_arguments", "demo", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--out", type=Path, default=Path("learned-aug-demo"), help="folder for the results (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the networks, the fit and the data (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the training: shows the path, not the accuracy"
    )


def run(args: argparse.Namespace) -> str:
    """Run the demo with the options of the command.

    Raises:
        OSError: if the folder cannot be written.
    """
    try:
        return demo(args.out, seed=args.seed, quick=args.quick)
    except OSError as error:
        raise OSError(f"cannot write to {args.out}: {error}; choose another folder with --out") from error


def demo(out: Path, *, seed: int = 0, quick: bool = False, progress: bool = True) -> str:
    """Run the demo.

    Args:
        out: folder for the results, made if need be.
        seed: of everything.
        quick: a tenth of the training steps.
        progress: show bars.

    Returns:
        The table of results and the paths written.

    Raises:
        OSError: if `out` cannot be written; found out before the training.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass
    begin = time.perf_counter()
    data, crop = digits(), v2.RandomCrop(28, padding=2)
    share = 10 if quick else 1
    schedule = RetrainConfig(steps=1000 // share)
    config = FitConfig(seed=seed, maximize=DropoutConfig(steps=600 // share))
    draws = torch.Generator().manual_seed(seed)
    untrained = Augmenter(AugmenterConfig(channels=1, size=28), generator=draws)
    sample = data["train"].tensors[0][:100]
    untrained.calibrate_(sample, warp=3 / 28, generator=draws)  # digits bear more than photographs
    errors: dict[str, dict[str, float]] = {}
    with ProgressBars() as bars:

        def train(
            arm: str,
            baseline: Callable[[Tensor], Tensor] | None,
            augment: Callable[[nn.Module], nn.Module | SteeredDraws | None] = lambda model: None,
        ) -> nn.Module:
            # A demo may seed torch's global generator, the library may not. The same start and order for each arm.
            torch.manual_seed(seed)
            model = all_conv()
            retrain(
                model,
                data["train"],
                schedule,
                baseline=baseline,
                augment=augment(model),
                seed=seed,
                on_event=(lambda event: bars(dataclasses.replace(event, stage=f"train: {arm}"))) if progress else None,
            )
            errors[arm] = {part: evaluate(model, data[part])[0] for part in ("test", "val")}
            return model

        train("no augmentation", None)
        train("baseline (crop)", crop)
        model = train("baseline + untrained control", crop, lambda model: untrained)

        def show(event: Event) -> None:
            bars(dataclasses.replace(event, stage=f"fit: {event.stage}"))

        started = time.perf_counter()
        result = fit(
            model,
            data["train"],
            data["val"],
            baseline=crop,
            augmenter=untrained,
            config=config,
            progress=False,
            on_event=show if progress else None,
        )
        fit_seconds = time.perf_counter() - started
        train("baseline + fitted", crop, lambda model: result.augmenter)
        train("baseline + steered", crop, lambda model: SteeredDraws(untrained, model, data["train"], data["val"]))

    result.augmenter.save_pretrained(out / "augmenter")
    images = torch.stack([data["test"][k][0] for k in range(8)])
    diversity_grid(result.augmenter, images).save(out / "digits.png")
    _check_reload(out / "augmenter", images[0])
    figures: dict[str, Any] = {
        "seed": seed,
        "quick": quick,
        "error": errors,
        "fit_seconds": fit_seconds,
        "seconds": time.perf_counter() - begin,
        "diagnostics": result.diagnostics,
        "versions": {"torch": torch.__version__},
    }
    write_atomic(out / "results.json", (json.dumps(figures, indent=2) + "\n").encode())
    return _report(out, figures, str(result))


def _check_reload(folder: Path, image: Tensor) -> None:
    """The saved weights, in a pipeline as a user would have it, must change an image, each time differently."""
    pipeline = v2.Compose([LearnedAugment.from_pretrained(folder), v2.Normalize([0.1307], [0.3081])])
    one, two = pipeline(image), pipeline(image)
    plain = v2.functional.normalize(image, [0.1307], [0.3081])
    if torch.equal(one, two) or torch.equal(one, plain):
        raise RuntimeError(f"the weights in {folder}, reloaded, do not augment; please report this with results.json")


def _report(out: Path, figures: dict[str, Any], diagnostics: str) -> str:
    lines = [
        f"{'':30}  test error  hyper-validation error",
        *(f"{arm:30}  {e['test']:10.2%}  {e['val']:22.2%}" for arm, e in figures["error"].items()),
        "",
        f"600 training, 2,000 hyper-validation and 2,000 test images, seed {figures['seed']}, one run of each: "
        "differences below about one point are noise.",
        f"Fit {figures['fit_seconds']:.0f} s, all {figures['seconds']:.0f} s.",
        "",
        "What the augmenters do:",
        diagnostics,
        "",
        f"Wrote {out / 'augmenter'}, {out / 'digits.png'} and {out / 'results.json'}.",
        "Reloaded the weights in a v2.Compose: they augment.",
    ]
    return "\n".join(lines)
