"""What mean influences say of the few global settings of steered draws, while a classifier trains.

    python benchmarks/accuracy/signals.py --data ROOT --seeds 40-41

Every hundred steps s_val is solved for each of eight folds of up to 2,000 further labeled images. Over 400 draws of
labeled training images this gives the predicted fall of the validation loss by augmenting at all, its slope along the
strength of each family, and what steering adds, each in units of the root mean square of single draws, with its 95 %
interval over draws and folds. The training follows none of it: it has the defaults of SteeredDraws. One line of the
results file is one training.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from cells import CELLS, Cell, Pixels, batches, fold
from panel import append, numbers, read, source
from torch import Tensor

from learned_aug import Augmenter, SteeredDraws, evaluate, retrain
from learned_aug.config import FAMILIES
from learned_aug.fit.judge import deal, estimate
from learned_aug.influence import HeadTap, InfluenceConfig, collect, find_head, influence_aug, solve_s_val
from learned_aug.runtime.stream import Stream

HERE = Path(__file__).parent
EVERY, DRAWS, VALIDATION = 100, 400, 2000


class Watched(SteeredDraws):
    """Steered draws that note, every hundred calls, what the mean influence says of their settings."""

    def __init__(self, model: torch.nn.Module, train: Pixels, val: Pixels, *, seed: int) -> None:
        super().__init__(model, seed=seed)
        self.tap = HeadTap(self.reader.model, find_head(self.reader.model))
        self.data = train, val
        self.notes: list[dict[str, Any]] = []

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.calls > self.warmup and (self.calls - self.warmup) % EVERY == 0:
            assert self.augmenter is not None
            self.notes.append(self._note(self.augmenter))
        return super().__call__(images, labels)

    @torch.no_grad()
    def _note(self, augmenter: Augmenter) -> dict[str, Any]:
        def stream(data: Pixels, name: str, **options: Any) -> Stream:
            return Stream(data, name, "signals", seed=self.calls, batch_size=200, device=augmenter.device, **options)

        train, val = self.data
        parts: list[tuple[Tensor, ...]] = []
        confidence, source = self.confidence, torch.Generator().manual_seed(self.calls)
        with self.reader._evaluating():
            with self.tap:
                folds = deal(collect(self.tap, stream(val, "val").once()))
                seen = collect(self.tap, stream(train, "train").once())
            head, s_val = solve_s_val(seen, folds[0], self.tap.head, InfluenceConfig(), also=folds[1:])
            for images, labels in stream(train, "train", shuffle=True).once():
                noise = augmenter.draw_noise(len(images), generator=source)
                plain = augmenter(images, noise)
                steered = self._read(augmenter, images, labels, noise, source, 1.0)
                with self.tap:
                    clean, one, other = (head(self.tap(x)[0], labels) for x in (images, plain, steered))
                falls = [-influence_aug(s_val.value, x, clean, 0.0) for x in (one, other)]
                parts.append((*falls, augmenter.strengths(noise)))
                if sum(len(part[2]) for part in parts) >= DRAWS:
                    break
        self.confidence = confidence
        prior, steered = (torch.cat([part[k] for part in parts], 1).double() for k in (0, 1))
        strengths = torch.cat([part[2] for part in parts]).double()
        unit = prior.square().mean().sqrt()
        along = (strengths - strengths.mean(0)) / strengths.std(0)
        centered = prior - prior.mean(1, keepdim=True)
        found = {f"strength of {name}": centered * along[:, k] for k, name in enumerate(FAMILIES)}
        found |= {"augmenting": prior, "steering": steered - prior}
        return {
            "call": self.calls,
            "confidence": confidence,
            **{name: list(estimate(falls / unit)) for name, falls in found.items()},
        }


def train(name: str, cell: Cell, seed: int, root: Path) -> dict[str, Any]:
    """Train one classifier and return what was noted."""
    torch.set_num_threads(1)
    data = fold(root, cell, seed)
    torch.manual_seed(seed)
    model = data.model(cell.model)
    held = torch.randperm(len(data.val), generator=torch.Generator().manual_seed(seed))[:VALIDATION]
    watched = Watched(model, data.train.plain(), data.val.part(held), seed=seed)
    config = cell.schedule
    retrain(model, batches(data.train, cell.batch_size, shuffle=True), config, augment=watched, seed=seed)
    error, _ = evaluate(model, batches(data.test, 500, shuffle=False))
    settings = dataclasses.asdict(cell)
    return {"cell": name, "seed": seed, "settings": settings, "test_error": error, "notes": watched.notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root folder of the data sets")
    parser.add_argument("--cells", nargs="+", default=["color-10", "sign-10", "cells-30", "cifar10-100"], help="(four)")
    parser.add_argument("--seeds", default="40-41", help="such as 40-41 (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "signals.jsonl")
    args = parser.parse_args()
    done = {(row["cell"], row["seed"]) for row in read(args.results)}
    for seed in numbers(args.seeds):
        for name in args.cells:
            if (name, seed) in done:
                continue
            row = train(name, CELLS[name], seed, args.data)
            append(args.results, {**row, **source()})
            print(name, seed, "done", flush=True)


if __name__ == "__main__":
    main()
