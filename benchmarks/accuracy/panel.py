"""Test error of augmentations on nine cells of five data sets, paired over seeds, with one setting for all.

    python benchmarks/accuracy/panel.py --data ROOT --seeds 50-59 --jobs 2
    python benchmarks/accuracy/panel.py --data ROOT --set flowers --per-class 20 --seeds 50-52
    python benchmarks/accuracy/panel.py --report

ROOT holds MNIST/raw as torchvision writes it, and the folders cifar10, sign-digits, omniglot and bccd-cells, each with
train/, val/ (or none) and test/ of class folders; --set adds a folder of the same form. In a seed all arms share the
labeled images, the classifier's first weights, the order of the images and the schedule. All crop by an eighth of the
side, and flip where that keeps the label. Arms that read validation labels get a fifth of the labeled images for that,
and train on the rest. Every training is one line of the results file, and is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from cells import BESIDE, CELLS, Cell, Fold, Pixels, batches, fold
from scipy import stats
from torch import nn
from torchvision.transforms import v2

from learned_aug import DrawChoice, SteeredDraws, evaluate, retrain
from learned_aug.training.arms import Setting, build, describe, reads_val
from learned_aug.training.comparison import difference

HERE = Path(__file__).parent
# Settings of steered draws that differ from the defaults: the controls.
CONTROLS: dict[str, dict[str, Any]] = {
    "constant": {"share": 0.5, "strength": 1.0},
    "untilted": {"tilt": 0.0},
    "reversed": {"tilt": -3.0},
    "ungated": {"gate": 0.0},
}
CHOSEN = "TrivialAugmentWide, the better of two by influence"
MAIN = ["baseline", "TrivialAugmentWide", "prior", "steered"]
Job = tuple[str, Cell, str, int, Path]


def prepared(arm: str, model: nn.Module, data: Fold, kind: str, seed: int) -> tuple[Pixels, Any]:
    """Return what an arm trains on, and its augmentation."""
    if arm in CONTROLS:
        return data.train, SteeredDraws(model, seed=seed, **CONTROLS[arm])
    labeled, plain, val = data.train, data.train, None
    if arm == CHOSEN or reads_val(arm):
        fifth = torch.arange(len(labeled)) % 5 == 0  # the images are in the order of their classes
        labeled, val = labeled.part(~fifth), labeled.part(fifth).plain()
        plain = labeled.plain()
    if arm == CHOSEN:
        return labeled, DrawChoice(model, v2.TrivialAugmentWide(), train=plain, val=val, seed=seed)
    setting = Setting(model=model, make_model=lambda: data.model(kind), train=plain, val=val, seed=seed)
    return labeled, build(arm, setting)


def train(job: Job) -> dict[str, Any]:
    """Train one classifier and measure it."""
    name, cell, arm, seed, root = job
    torch.set_num_threads(1)
    data = fold(root, cell, seed)
    torch.manual_seed(seed)
    model = data.model(cell.model)
    config = cell.schedule
    start = time.process_time()
    labeled, augment = prepared(arm, model, data, cell.model, seed)
    retrain(model, batches(labeled, cell.batch_size, shuffle=True), config, augment=augment, seed=seed)
    seconds = time.process_time() - start
    val, test = (batches(part, 500, shuffle=False) for part in (data.val, data.test))
    (val_error, _), (test_error, test_loss) = evaluate(model, val), evaluate(model, test)
    return {
        "cell": name,
        "arm": arm,
        "seed": seed,
        "settings": dataclasses.asdict(cell),
        "val_error": val_error,
        "test_error": test_error,
        "test_loss": test_loss,
        "seconds": round(seconds, 1),
    }


def numbers(text: str) -> range:
    """The seeds that a command line names, such as 50-59."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def source() -> dict[str, Any]:
    """What made a row of a results file."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return {
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "device": f"cpu, 1 thread, {platform.machine()}",
        "command": " ".join(["python", *(os.path.relpath(sys.argv[0]), *sys.argv[1:])]),
        "commit": commit,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; a line cut off by a kill is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def identity(row: dict[str, Any]) -> str:
    """What makes a training the same one."""
    return json.dumps([row[key] for key in ("cell", "arm", "seed", "settings")], sort_keys=True)


def table(rows: list[dict[str, Any]], key: str = "test_error") -> str:
    """Mean errors, and differences to the prior, paired by seed, with 95 % t-intervals."""
    errors: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        errors[row["cell"]][row["arm"]][row["seed"]] = 100 * row[key]
    lines = [f"{'cell':14}{'arm':20} n  error %         minus prior, points (95 %)   seeds better"]
    for cell, arms in errors.items():
        for arm in arms:
            values, prior = arms[arm], arms.get("prior", {})
            mean, spread = stats.tmean(list(values.values())), stats.tstd(list(values.values()))
            line = f"{cell:14}{arm:20}{len(values):2}  {mean:5.2f} +- {spread:5.2f}"
            pairs = [values[s] - prior[s] for s in values.keys() & prior.keys()]
            if arm != "prior" and len(pairs) > 1:
                mean, low, high, *_ = difference(pairs)
                line += f"  {mean:+6.2f} [{low:+6.2f}, {high:+6.2f}]   {sum(d < 0 for d in pairs)} of {len(pairs)}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="root folder of the data sets")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=[*CELLS, *BESIDE], help="(the nine)")
    parser.add_argument("--arms", nargs="+", default=MAIN, help=f"({' '.join(MAIN)})")
    parser.add_argument("--seeds", default="50-59", help="such as 50-59 (%(default)s)")
    parser.add_argument("--set", metavar="DIR", help="a folder below ROOT to run in place of the cells")
    for field in dataclasses.fields(Cell)[1:]:
        given = None if field.default is dataclasses.MISSING else field.default
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(given, bool):
            parser.add_argument(option, action="store_true", help="of --set")
        else:
            parser.add_argument(option, type=type(given or 10), default=given or 10, help="of --set (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the trainings (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "panel.jsonl")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    try:
        for arm in set(args.arms) - CONTROLS.keys() - {CHOSEN}:
            describe(arm)
    except ValueError as error:
        parser.error(f"{error}; controls are {', '.join(CONTROLS)}")
    cells = {name: (CELLS | BESIDE)[name] for name in args.cells}
    if args.set:
        values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Cell)[1:]}
        cells = {f"{args.set}-{args.per_class}": Cell(args.set, **values)}
    seeds = numbers(args.seeds)
    if not args.report:
        if args.data is None:
            parser.error("--data is needed to train")
        done = {identity(row) for row in read(args.results)}
        jobs = [(n, c, a, s, args.data) for s in seeds for n, c in cells.items() for a in args.arms]
        jobs = [
            job
            for job in jobs
            if identity({"cell": job[0], "arm": job[2], "seed": job[3], "settings": dataclasses.asdict(job[1])})
            not in done
        ]
        made = source()  # before the trainings, in which the checkout may change
        context = multiprocessing.get_context("spawn")
        with context.Pool(args.jobs) as pool, args.results.open("a") as file:
            for k, row in enumerate(pool.imap_unordered(train, jobs), 1):
                file.write(json.dumps({**row, **made}) + "\n")
                file.flush()
                print(
                    f"{k}/{len(jobs)} {row['cell']} {row['arm']} {row['seed']}: test {100 * row['test_error']:.2f} %, "
                    f"{row['seconds']:.0f} s",
                    file=sys.stderr,
                )
    rows = [r for r in read(args.results) if r["seed"] in seeds and r["cell"] in cells and r["arm"] in args.arms]
    print(table(rows) if rows else "no results yet: give --data")


if __name__ == "__main__":
    main()
