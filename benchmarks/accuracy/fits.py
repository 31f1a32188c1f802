"""Does what `fit` learned pay for fresh classifiers? Its networks beside their prior, on cells of the panel.

    python benchmarks/accuracy/fits.py --data ROOT --cells mnist-50 color-10 sign-10 --seeds 40-42

In a seed a classifier is trained with the baseline (--on baseline) or with the prior, the augmenter is fitted to it,
with all of the cell's hyper-validation images, which are no training images, and fresh classifiers are trained with the
prior and with the fitted networks, half of each batch. So the labels that the fit reads come on top: a gain here may be
theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from cells import CELLS, Cell, batches, fold
from panel import append, numbers, read, source
from torch import nn

from learned_aug import Augmenter, DropoutConfig, FitConfig, SteeredDraws, evaluate, fit, retrain
from learned_aug.training import UNSTEERED

HERE = Path(__file__).parent


def run(name: str, cell: Cell, seed: int, root: Path, on: str, tilt: float) -> dict[str, Any]:
    """Fit, train one classifier with each of the networks, and measure them."""
    data = fold(root, cell, seed)
    config = cell.schedule
    train = batches(data.train, cell.batch_size, shuffle=True)
    val, test = (batches(part, 500, shuffle=False) for part in (data.val, data.test))

    def trained(*, augmented: bool = True, networks: Augmenter | None = None) -> nn.Module:
        """A classifier that saw draws of the networks, by default of the prior, or none."""
        torch.manual_seed(seed)
        model = data.model(cell.model)
        augment = SteeredDraws(model, augmenter=networks, seed=seed, **UNSTEERED) if augmented else None
        retrain(model, train, config, augment=augment, seed=seed)
        return model

    model = trained(augmented=on == "prior")
    start = time.process_time()
    fitting = FitConfig(maximize=DropoutConfig(tilt=tilt), seed=seed)
    result = fit(model, data.train.plain(), data.val, config=fitting, progress=False)
    row: dict[str, Any] = {
        "cell": name,
        "seed": seed,
        "on": on,
        "tilt": tilt,
        "settings": dataclasses.asdict(cell),
        "gain": result.gain._asdict(),
        "chosen": "prior" if result.augmenter is result.prior else "fitted",
        "diagnostics": result.diagnostics,
        "fit_seconds": round(time.process_time() - start, 1),
    }
    models = {"first": model, "prior": trained(networks=result.prior), "fitted": trained(networks=result.fitted)}
    for arm, model in models.items():
        row[arm] = {"val_error": evaluate(model, val)[0], "test_error": evaluate(model, test)[0]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root folder of the data sets")
    parser.add_argument("--cells", nargs="+", default=["mnist-50", "color-10", "sign-10"], choices=list(CELLS))
    parser.add_argument("--seeds", default="40-42", help="such as 40-42 (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "fits.jsonl")
    parser.add_argument(
        "--on", choices=["baseline", "prior"], default="baseline", help="what the fit is to (%(default)s)"
    )
    parser.add_argument("--tilt", type=float, default=DropoutConfig.tilt, help="of the fit (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = source()
    done = {(row["cell"], row["seed"], row["on"], row["tilt"]) for row in read(args.results)}
    for seed in numbers(args.seeds):
        for name in args.cells:
            if (name, seed, args.on, args.tilt) not in done:
                row = {**run(name, CELLS[name], seed, args.data, args.on, args.tilt), **made}
                append(args.results, row)
                errors = ", ".join(f"{a} {100 * row[a]['test_error']:.2f} %" for a in ("first", "prior", "fitted"))
                print(f"{name} {seed}: {errors}; {row['chosen']} chosen, gain {row['gain']}", flush=True)


if __name__ == "__main__":
    main()
