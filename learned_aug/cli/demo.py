"""The whole method on a small real data set, 600 training digits of MNIST that come with the package.

Trains a 4-layer all-convolutional classifier without augmentation, with random crops, with crops and the prior (random
networks of random strength, the control), and with draws of the prior steered by the classifier in training; fits the
networks to the classifier that the prior trained (influence, learned dropout), and trains with the fitted ones where
the fit prefers them to the prior. All start from the same weights, on the same schedule; their test errors are printed.

  learned-aug demo --out learned-aug-demo

Writes to the folder --out: augmenter/ (the weights), digits.png (rows are images, columns are draws; the first column
is the original) and results.json. One seed shows the path; it is no evidence for or against an arm.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from learned_aug.cli.main import IncompleteError
from learned_aug.cli.report import Parts, png
from learned_aug.cli.settings import seed_number
from learned_aug.cli.work import keep_folder
from learned_aug.digits import all_conv, digits
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pipeline import fit
from learned_aug.runtime.events import OnEvent, ProgressBars
from learned_aug.training.retrain import RetrainConfig, evaluate, retrain
from learned_aug.training.steer import UNSTEERED, SteeredDraws
from learned_aug.transform import LearnedAugment
from learned_aug.viz import diversity_grid
from learned_aug.weights.files import write_atomic

__all__ = ["add_arguments", "demo", "run"]

STEPS, FIT_STEPS = 1000, 600  # of each training, and of the fit
PRIOR, STEERED = "crop + prior", "crop + steered"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--out", type=Path, default=Path("learned-aug-demo"), help="folder for the results (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="seed of the networks, the fit and the data (%(default)s)"
    )
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
        seed: seed of the networks, the fit and the data.
        quick: take a tenth of the training steps.
        progress: whether to show bars.

    Returns:
        The table of results and the paths written.

    Raises:
        IncompleteError: if the picture failed; the weights and figures are written.
        OSError: if `out` cannot be written, or another process works there; found out before the training.
    """
    begin = time.perf_counter()
    lock = keep_folder(out)
    data, crop = digits(), v2.RandomCrop(28, padding=2)
    share = 10 if quick else 1
    schedule = RetrainConfig(steps=STEPS // share)
    config = FitConfig(seed=seed, maximize=DropoutConfig(steps=FIT_STEPS // share))
    errors: dict[str, dict[str, float]] = {}
    steered: dict[str, SteeredDraws] = {}
    with ProgressBars() as bars:

        def show(stage: str) -> OnEvent | None:
            return (lambda event: bars(dataclasses.replace(event, stage=stage))) if progress else None

        def train(
            arm: str, augment: Callable[[nn.Module], SteeredDraws] | None = None, baseline: v2.Transform | None = crop
        ) -> nn.Module:
            # A demo may seed torch's global generator, the library may not. The same start and order for each arm.
            torch.manual_seed(seed)
            model = all_conv()
            if augment is not None:
                steered[arm] = augment(model)
            retrain(
                model,
                data["train"],
                schedule,
                baseline=baseline,
                augment=steered.get(arm),
                seed=seed,
                on_event=show(f"train: {arm}"),
            )
            errors[arm] = {part: evaluate(model, data[part])[0] for part in ("test", "val")}
            return model

        train("no augmentation", baseline=None)
        train("crop")
        model = train(PRIOR, lambda model: SteeredDraws(model, seed=seed, **UNSTEERED))
        prior = steered[PRIOR].augmenter
        train(STEERED, lambda model: SteeredDraws(model, seed=seed))
        started = time.perf_counter()
        result = fit(
            model,
            data["train"],
            data["val"],
            baseline=crop,
            augmenter=prior,
            config=config,
            progress=False,
            on_event=(lambda event: bars(dataclasses.replace(event, stage=f"fit: {event.stage}")))
            if progress
            else None,
        )
        result.augmenter.save_pretrained(out / "augmenter")  # before all that can fail
        fit_seconds = time.perf_counter() - started
        if result.augmenter is not result.prior:
            train(
                "crop + fitted", lambda model: SteeredDraws(model, augmenter=result.augmenter, seed=seed, **UNSTEERED)
            )

    lock.close()
    images = torch.stack([data["test"][k][0] for k in range(8)])
    _check_reload(out / "augmenter", images[0])
    figures: dict[str, Any] = {
        "seed": seed,
        "quick": quick,
        "error": errors,
        "fit_seconds": fit_seconds,
        "seconds": time.perf_counter() - begin,
        "verdict": result.verdict,
        "diagnostics": result.diagnostics,
        "versions": {"torch": torch.__version__},
    }
    write_atomic(out / "results.json", (json.dumps(figures, indent=2) + "\n").encode())
    parts = Parts()
    with parts.attempt("digits.png"):
        picture = diversity_grid(result.augmenter, images, generator=torch.Generator().manual_seed(seed))
        write_atomic(out / "digits.png", png(picture))
    report = _report(out, figures, str(result))
    if parts.missing:
        raise IncompleteError(report, parts.missing)
    return report


def _check_reload(folder: Path, image: Tensor) -> None:
    """See that the saved weights, in a pipeline as a user would have it, change an image, each time differently.

    Raises:
        RuntimeError: if they do not.
    """
    pipeline = v2.Compose([LearnedAugment.from_pretrained(folder), v2.Normalize([0.1307], [0.3081])])
    one, two = pipeline(image), pipeline(image)
    plain = v2.functional.normalize(image, [0.1307], [0.3081])
    if torch.equal(one, two) or torch.equal(one, plain):
        raise RuntimeError(f"the weights in {folder}, reloaded, do not augment; please report this with results.json")


def _report(out: Path, figures: dict[str, Any], diagnostics: str) -> str:
    written = [name for name in ("augmenter", "digits.png", "results.json") if (out / name).exists()]
    lines = [
        f"{'trained with':16}  test error  val error",
        *(f"{arm:16}  {e['test']:10.2%}  {e['val']:9.2%}" for arm, e in figures["error"].items()),
        "",
        "test error: share of 2,000 test images that are wrong; val error: of the 2,000 images whose influence the fit "
        "reads.",
        f"prior: random networks. steered: its draws, made harder by the classifier. 600 training images, seed "
        f"{figures['seed']}, one run of each: differences below about one point are noise.",
        f"Fit {figures['fit_seconds']:.0f} s, all {figures['seconds']:.0f} s.",
        "",
        "What the networks do:",
        diagnostics,
        "",
        f"Wrote {', '.join(str(out / name) for name in written)}.",
        "Reloaded the weights in a v2.Compose: they augment.",
        "",
        "Next, in your own training loop:",
        "  steered = learned_aug.SteeredDraws(model)    # once",
        "  images = steered(images, labels)             # in each step",
        "or with your own images and classifier: learned-aug fit --help",
    ]
    return "\n".join(lines)
