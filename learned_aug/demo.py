"""The whole method on a small real data set, 600 training digits of MNIST that come with the package.

Trains a 4-layer all-convolutional classifier without augmentation, with random crops, and with the crops and the
untrained augmenter (the control); fits the augmenter to the last of these (influence, learned dropout); trains fresh
classifiers with the fitted one, and with draws of the untrained one steered while the classifier trains, from the same
start on the same schedule; and prints their test errors. Writes to the folder --out: augmenter/ (the weights),
digits.png (rows are images, columns are draws; the first column is the original) and results.json. One seed shows the
path; it is no evidence for or against an arm.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from learned_aug.augmenter import Augmenter
from learned_aug.fit import (
    Event,
    FitConfig,
    MaximizeConfig,
    ProgressBars,
    RetrainConfig,
    SteeredDraws,
    evaluate,
    fit,
    retrain,
)
from learned_aug.nets import AugmenterConfig
from learned_aug.transform import LearnedAugment
from learned_aug.viz import diversity_grid
from learned_aug.weights import write_atomic

__all__ = ["all_conv", "digits", "run"]


def all_conv(width: int = 16, channels: int = 1, classes: int = 10) -> nn.Sequential:
    """TANDA's MNIST classifier: 5x5 convolutions of stride 2, LeakyReLU .2, batch norm from the second on, one Linear.

    Args:
        width: channels of the first of four layers, doubled by each (TANDA: 64; 16 here, for the CPU).
        channels: of the 28x28 images.
        classes: K.
    """
    layers: list[nn.Module] = []
    for k in range(4):
        source, target = channels if k == 0 else width << (k - 1), width << k
        layers += [nn.Conv2d(source, target, 5, stride=2, padding=2), nn.BatchNorm2d(target), nn.LeakyReLU(0.2)]
    del layers[1]  # no batch norm on the first
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * (width << 3), classes))


def digits() -> dict[str, TensorDataset]:
    """The class-balanced MNIST sample of this package: "train" 600, "val" 2,000, "test" 2,000 images in [0, 1]."""
    with as_file(files("learned_aug") / "data" / "mnist-sample.npz") as path, np.load(path) as arrays:
        return {
            part: TensorDataset(
                torch.from_numpy(arrays[f"{part}_images"])[:, None].float() / 255,
                torch.from_numpy(arrays[f"{part}_labels"]).long(),
            )
            for part in ("train", "val", "test")
        }


def run(out: Path, *, seed: int = 0, quick: bool = False, progress: bool = True) -> str:
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
    config = FitConfig(seed=seed, maximize=MaximizeConfig(steps=600 // share))
    draws = torch.Generator().manual_seed(seed)
    untrained = Augmenter(AugmenterConfig(channels=1, size=28), generator=draws)
    sample = data["train"].tensors[0][:100]
    untrained.calibrate_(sample, pixels=3.0, generator=draws)  # digits bear more than photographs
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
                generator=torch.Generator().manual_seed(seed),
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
