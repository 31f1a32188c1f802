"""Test error of augmentations on nine cells of five data sets, paired over seeds, with one setting for all.

    python benchmarks/accuracy/panel.py --data ROOT --seeds 50-59 --jobs 2
    python benchmarks/accuracy/panel.py --data ROOT --set flowers --per-class 20 --seeds 50-52
    python benchmarks/accuracy/panel.py --report

ROOT holds MNIST/raw as torchvision writes it, and the folders cifar10, sign-digits, omniglot and bccd-cells, each with
train/, val/ (or none) and test/ of class folders; --set names a folder of the same form, to run in place of the cells.
In a seed all arms share the labeled images, the classifier's first weights, the order of the images and the schedule.
All crop by an eighth of the side, and flip where that keeps the label. Arms that read validation labels get a fifth of
the labeled images for that, and train on the rest: the others, which train on all of these, are their control. Every
training is one line of the results file, and is not run again; the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
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
sys.path.append(str(HERE.parent))
from report_tables.panel import differences, panel_errors  # noqa: E402
from rows import append, read  # noqa: E402

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


def prepared(arm: str, model: nn.Module, data: Fold, cell: Cell, seed: int) -> tuple[Pixels, Any]:
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
    setting = Setting(
        model=model,
        make_model=lambda: data.model(cell.model),
        train=plain,
        val=val,
        config=cell.schedule,
        baseline=cell.baseline,
        seed=seed,
    )
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
    labeled, augment = prepared(arm, model, data, cell, seed)
    retrain(model, batches(labeled, cell.batch_size, shuffle=True), config, augment=augment, seed=seed)
    seconds = time.process_time() - start
    val, test = (batches(part, 500, shuffle=False) if len(part) else None for part in (data.val, data.test))
    val_error = None if val is None else evaluate(model, val)[0]
    test_error, test_loss = evaluate(model, test)
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
    if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
        raise argparse.ArgumentTypeError(f"must be a seed or a range of them such as 50-59, got {text!r}")
    return range(int(first), int(last or first) + 1)


def count(text: str) -> int:
    """A number of processes."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return int(text)


def source() -> dict[str, Any]:
    """What made a row of a results file."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return {
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "device": f"cpu, 1 thread, {platform.machine()}",
        "command": " ".join(["python", *(os.path.relpath(sys.argv[0]), *sys.argv[1:])]),
        "commit": commit,
    }


def identity(row: dict[str, Any]) -> str:
    """What makes a training the same one."""
    return json.dumps([row[key] for key in ("cell", "arm", "seed", "settings")], sort_keys=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean test errors, and differences to the baseline and to the prior, paired by seed, with 95 % t-intervals."""
    others = ("baseline", "prior")
    lines = [["cell", "arm", "seeds", "error %", *(f"minus {other}, points (95 %), p" for other in others), "rank"]]
    for cell, arms in panel_errors(rows).items():
        shared = set.intersection(*map(set, arms.values()))
        means = [statistics.mean(values[seed] for seed in shared) for values in arms.values()] if shared else []
        ranks = [f"{rank:g}" for rank in stats.rankdata(means)] if len(means) > 1 else [""] * len(arms)
        for (arm, values), rank in zip(arms.items(), ranks, strict=True):
            spread = f" +- {statistics.stdev(values.values()):.2f}" if len(values) > 1 else ""
            line = [cell, arm, str(len(values)), f"{statistics.mean(values.values()):.2f}{spread}"]
            line += ["" if arm == other else paired(values, arms.get(other, {})) for other in others]
            lines.append([*line, rank])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*shown, "", "Ranks are of the mean error in the seeds that all arms of a cell have."])


def paired(one: dict[int, float], other: dict[int, float]) -> str:
    """Mean difference in the seeds that both have, with its interval and exact p where there are two or more."""
    pairs = differences(one, other)
    if len(pairs) < 2:
        return f"{pairs[0]:+.2f}" if pairs else ""
    found = difference(pairs)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}], {found.p:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="root folder of the data sets")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=[*CELLS, *BESIDE], help="(the nine)")
    parser.add_argument("--arms", nargs="+", default=MAIN, help=f"({' '.join(MAIN)})")
    parser.add_argument("--seeds", type=numbers, default="50-59", help="such as 50-59 (%(default)s)")
    parser.add_argument("--set", metavar="DIR", help="a folder below ROOT to run in place of the cells")
    for field in dataclasses.fields(Cell)[1:]:
        given = None if field.default is dataclasses.MISSING else field.default
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(given, bool):
            parser.add_argument(option, action="store_true", help="of --set")
        else:
            parser.add_argument(option, type=type(given or 10), default=given or 10, help="of --set (%(default)s)")
    parser.add_argument("--jobs", type=count, default=1, help="processes that share the trainings (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "panel.jsonl")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    if not args.report and args.data is None:
        parser.error("--data is needed to train; --report prints the table alone")
    try:
        for arm in set(args.arms) - CONTROLS.keys() - {CHOSEN}:
            describe(arm)
    except ValueError as error:
        parser.error(f"{error}; controls are {', '.join(CONTROLS)}")
    cells = {name: (CELLS | BESIDE)[name] for name in args.cells}
    try:
        if args.set:
            values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Cell)[1:]}
            cells = {f"{Path(args.set).name}-{args.per_class}": Cell(args.set, **values)}
    except ValueError as error:
        parser.error(str(error))
    arms = list(dict.fromkeys(args.arms))
    wanted = {
        identity({"cell": name, "arm": arm, "seed": seed, "settings": dataclasses.asdict(cell)}): (
            (name, cell, arm, seed, args.data)
        )
        for seed in args.seeds
        for name, cell in cells.items()
        for arm in arms
    }
    if not args.report:
        done = {identity(row) for row in read(args.results)}
        jobs = [job for key, job in wanted.items() if key not in done]
        try:
            for cell in dict.fromkeys(job[1] for job in jobs):
                fold(args.data, cell, args.seeds[0])  # which refuses what cannot be trained on
        except (ValueError, OSError) as error:
            parser.error(" ".join(str(error).split()))
        try:
            run(jobs, args.results, args.jobs)
        except KeyboardInterrupt:
            raise SystemExit("interrupted; the same command goes on") from None
    rows = {key: row for row in read(args.results) if (key := identity(row)) in wanted}
    print(table(list(rows.values())) if rows else f"no results of these cells, arms and seeds in {args.results}")


def run(jobs: list[Job], results: Path, processes: int) -> None:
    """Do trainings, and append a row for each."""
    made = source()  # before the trainings, in which the checkout may change
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for k, row in enumerate(pool.imap_unordered(train, jobs), 1):
            append(results, {**row, **made})
            error, seconds = 100 * row["test_error"], row["seconds"]
            text = f"{k}/{len(jobs)} {row['cell']} {row['arm']} {row['seed']}: test {error:.2f} %, {seconds:.0f} s"
            print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
