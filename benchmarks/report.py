"""Render the committed figures of the benchmarks as tables in the pages of the documentation.

    python benchmarks/report.py            # rewrite every generated table in docs/ and README.md
    python benchmarks/report.py --check    # change nothing; exit with 1 and name the pages that are stale

A page marks the place of a table by two comments, `<!-- begin: NAME -->` and `<!-- end: NAME -->`. The text between
them belongs to the function that is registered here under NAME. Each table ends in a line that says what made the
figures: command, device, versions, commits. Needs scipy; torch is not needed.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
README = HERE.parent / "README.md"
MARKED = re.compile(r"<!-- begin: (?P<name>\S+) -->\n(?P<body>.*?)<!-- end: (?P=name) -->", re.DOTALL)
BEGIN = re.compile(r"<!-- begin: (\S+) -->")
TABLES: dict[str, Callable[[], str]] = {}

Row = dict[str, Any]


def table(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the function that renders the table NAME."""

    def register(render: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = render
        return render

    return register


# Reading


@functools.cache
def read(path: str) -> Any:
    """Return what a committed file of figures holds: a list of rows for .jsonl, the value itself for .json."""
    text = (HERE / path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.endswith(".jsonl") else json.loads(text)


@functools.cache
def constant(path: str, name: str) -> Any:
    """Return a literal that a script assigns to a name, without running the script."""
    for node in ast.parse((HERE / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise KeyError(f"{path} assigns no literal to {name}")


# Statistics


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the exact two-sided p of the sign-flip test on the mean of up to 40 paired differences.

    It is the p of scipy.stats.permutation_test(..., permutation_type="samples", n_resamples=inf), which enumerates all
    2^n flips in Python; here the flips of both halves are combined by bisection, so that 20 pairs take a millisecond.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) > 40:
        raise ValueError(f"an exact test takes at most 40 pairs, got {len(d)}; use scipy.stats.permutation_test")
    one, two = (
        functools.reduce(lambda sums, x: np.concatenate([sums + x, sums - x]), part, np.zeros(1))
        for part in np.array_split(d, 2)
    )
    two.sort()
    goal = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    above = len(two) - np.searchsorted(two, goal - one, side="left")
    return min(1.0, 2 * float(above.sum()) / 2.0 ** len(d))


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float, float]:
    """Return mean, 95 % interval (paired t) and exact two-sided sign-flip p of the differences `one` minus `other`."""
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    differences = [a - b for a, b in zip(one, other, strict=True)]
    return statistics.mean(differences), float(interval.low), float(interval.high), sign_flip_p(differences)


# Text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def caption(text: str, source: Row, **more: str) -> str:
    """Return the line under a table: what the figures are, and what made them."""
    versions = ", ".join(f"{name} {number}" for name, number in source["versions"].items())
    commands = [source["command"]] if isinstance(source["command"], str) else source["command"]
    shown = " and ".join(f"`{command(one)}`" for one in commands)
    facts = [text, f"Command: {shown}.", f"Device: {device(source['device'])}.", f"{versions}."]
    facts += [f"{name.capitalize()}: {value}." for name, value in more.items() if value]
    return "\n*" + " ".join(facts) + "*\n"


def command(text: str) -> str:
    """Return a command without the folders of the machine that it ran on."""
    text = re.sub(r"--(out|results|work) \S*/\S*", "", text)
    text = re.sub(r"(--data) \S+", r"\1 ROOT", text)
    return " ".join(text.split())


def device(text: str) -> str:
    """Return a device in words."""
    return re.sub(r"\b1 threads\b", "1 thread", text).replace("cpu", "CPU")


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """Return mean and standard deviation, or the value alone where there is one."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def p_text(p: float) -> str:
    """Return a p-value as it is read."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def seeds_text(seeds: Iterable[int]) -> str:
    """Return seeds as ranges, such as 50-55, 60."""
    found = sorted(set(seeds))
    runs = [[found[0], found[0]]]
    for seed in found[1:]:
        if seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def commits_text(rows: Iterable[Row]) -> str:
    """Return the commits that made rows, abbreviated, in the order of the file."""
    found = list(dict.fromkeys(row["commit"][:7] for row in rows if row.get("commit")))
    return ", ".join(found) if len(found) <= 4 else f"{found[0]} to {found[-1]} ({len(found)})"


# Accuracy

SIDES = {"mnist": 28, "cifar10": 32}
MNIST = {"per_class": 50, "steps": 1000, "width": 16, "pixels": 1.0}
CIFAR = {"per_class": 100, "steps": 2000, "width": 16, "depth": 8, "pixels": 1.0, "color": 0.05, "amp": 1}


def runs_of(task: str, settings: Row, seeds: Iterable[int] | None = None) -> dict[str, dict[int, Row]]:
    """Return the runs of a task at settings, by arm and seed."""
    wanted = None if seeds is None else set(seeds)
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in read(f"accuracy/results/{task}.jsonl"):
        if row["settings"] == settings and (wanted is None or row["seed"] in wanted):
            found[row["arm"]][row["seed"]] = row
    return found


def accuracy_source(task: str, rows: Sequence[Row], settings: Row) -> Row:
    """Return what made rows of the accuracy benchmark, with one command that makes them all."""
    defaults = constant(f"accuracy/{task}.py", "SETTINGS")
    options = [f"--{k.replace('_', '-')} {v:g}" for k, v in settings.items() if defaults.get(k) != v]
    script = f"python benchmarks/accuracy/{task}.py --data ROOT --seeds"
    seeds = seeds_text(row["seed"] for row in rows).split(", ")
    return {**same_source(rows), "command": [" ".join([script, part, *options]) for part in seeds]}


def same_source(rows: Sequence[Row]) -> Row:
    """Return device and versions of rows, which must have one of each."""
    found = {json.dumps([row["device"], row["versions"]]) for row in rows}
    if len(found) > 1:
        raise ValueError(f"the rows of a table must come from one device and one set of versions, got {sorted(found)}")
    return {"device": rows[0]["device"], "versions": rows[0]["versions"]}


def strength_text(task: str, settings: Row) -> str:
    """Return the strength of the draws in honest units: a share of the image side, and of the range [0, 1]."""
    text = f"strength of the warps {settings['pixels'] / SIDES[task]:.3f} of the side ({settings['pixels']:g} px)"
    return text + (f", of the colors {settings['color']:g} of the range" if "color" in settings else "")


def accuracy(
    task: str, settings: Row, arms: Mapping[str, str], *, seeds: Iterable[int] | None = None, reference: str
) -> str:
    """Return a table of test errors by arm, with the paired differences to the reference arm.

    Args:
        task: "mnist" or "cifar10".
        settings: what the runs share.
        arms: name in the results to name in the table, in its order.
        seeds: the seeds to show; None shows all.
        reference: the arm that the others are compared with.
    """
    found = runs_of(task, settings, seeds)
    base, used, rows = found[reference], [], []
    for arm, name in arms.items():
        runs = found[arm]
        errors = {seed: 100 * row["test_error"] for seed, row in runs.items()}
        used += runs.values()
        pairs = sorted(runs.keys() & base.keys())
        cells = [name, str(len(errors)), mean_std(list(errors.values())), "", "", ""]
        if arm != reference and len(pairs) > 1:
            mean, low, high, p = paired([errors[s] for s in pairs], [100 * base[s]["test_error"] for s in pairs])
            better = sum(errors[s] < 100 * base[s]["test_error"] for s in pairs)
            cells[3:] = [f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", p_text(p), f"{better} of {len(pairs)}"]
        rows.append(cells)
    head = ["trained with", "seeds", "test error %", f"minus {arms[reference]}, points", "p", "seeds better"]
    text = (
        "Mean ± standard deviation over seeds; differences paired by seed, with 95 % t-intervals and exact two-sided "
        f"sign-flip p. Labeled images per class {settings['per_class']}, steps {settings['steps']}, "
        f"width {settings['width']}" + (f", depth {settings['depth']}" if "depth" in settings else "") + ", "
        f"{strength_text(task, settings)}."
    )
    return markdown(head, rows) + caption(text, accuracy_source(task, used, settings), commits=commits_text(used))


MNIST_ARMS = {
    "crop": "random crop",
    "untrained": "prior",
    "untrained, 1.4 x": "prior, 1.4 times as strong",
    "fitted": "fitted, with stage 1",
    "fitted, not pretrained": "fitted",
    "fitted, reversed": "fitted, what was learned reversed",
    "fitted to harder": "fitted toward a higher loss",
    "mnist-cnn4": "`mnist-cnn4`, fitted to other images",
    "steered": "steered by influence",
    "steered to harder": "steered by loss",
    "steered, without loss": "steered by what is left of the influence without the loss",
}
CIFAR_ARMS = {
    "crop + flip": "crop and flip",
    "untrained": "prior",
    "untrained, 1.4 x": "prior, 1.4 times as strong",
    "fitted, not pretrained": "fitted",
    "steered": "steered by influence",
    "steered to harder": "steered by loss",
}


@table("mnist-500-mild")
def _() -> str:
    return accuracy("mnist", MNIST, MNIST_ARMS, seeds=range(50, 70), reference="untrained")


@table("mnist-500-all-labels")
def _() -> str:
    arms = {
        "crop, all labels": "random crop",
        "untrained, all labels": "prior",
        "steered to harder, all labels": "steered by loss",
    }
    found = runs_of("mnist", MNIST)
    shared = set.intersection(*(set(found[arm]) for arm in arms))
    return accuracy("mnist", MNIST, arms, seeds=shared, reference="untrained, all labels")


@table("mnist-500-strong")
def _() -> str:
    arms = {
        "untrained": "prior",
        "fitted, not pretrained": "fitted to the classifier of the crops",
        "fitted to the control": "fitted to the classifier of the prior",
        "steered": "steered by influence",
    }
    return accuracy("mnist", {**MNIST, "pixels": 3.0}, arms, seeds=range(50, 70), reference="untrained")


@table("mnist-500-choice")
def _() -> str:
    arms = {
        "none": "no augmentation",
        "crop": "random crop",
        "untrained": "prior",
        "pretrained": "stage 1 alone",
        "linear (paper)": "the paper's stage 3",
        "best of 2": "better of two draws, by influence",
        "worst of 2": "worse of two draws, by influence",
        "hardest of 2": "harder of two draws, by loss",
        "random of 2": "one of two draws, at random",
    }
    return accuracy("mnist", MNIST, arms, seeds=range(10, 30), reference="untrained")


@table("mnist-500-tau")
def _() -> str:
    arms = {"untrained": "prior, tau of 128"}
    arms |= {f"steered, tau {size}": f"steered by influence, tau of {size}" for size in (32, 64)}
    arms |= {"steered": "steered by influence, tau of 128"}
    arms |= {"steered, tau 256": "steered by influence, tau of 256"}
    return accuracy("mnist", MNIST, arms, seeds=range(50, 56), reference="steered")


@table("mnist-5000")
def _() -> str:
    settings = {"per_class": 500, "steps": 5000, "width": 32, "pixels": 2.0}
    arms = {"crop": "random crop", "untrained": "prior", "steered": "steered by influence"}
    return accuracy("mnist", settings, arms, reference="untrained")


@table("cifar10-1000-mild")
def _() -> str:
    return accuracy("cifar10", CIFAR, CIFAR_ARMS, seeds=range(50, 61), reference="untrained")


STRONG = {**CIFAR, "pixels": 2.0, "color": 0.2}


@table("cifar10-1000-strong")
def _() -> str:
    arms = {
        "crop + flip": "crop and flip",
        "TrivialAugmentWide": "TrivialAugmentWide, crop and flip",
        "untrained": "prior",
        "fitted to the control": "fitted to the classifier of the prior",
        "steered, taught": "steered by the loss of a trained teacher",
    }
    return accuracy("cifar10", STRONG, arms, seeds=range(50, 56), reference="untrained")


@table("cifar10-1000-fields")
def _() -> str:
    arms = {
        "crop + flip": "crop and flip",
        "untrained": "prior: warps and colors at once",
        "serial": "warps, then colors",
        "spatial only": "warps alone",
        "appearance only": "colors alone",
    }
    return accuracy("cifar10", STRONG, arms, seeds=range(50, 53), reference="untrained")


@table("cifar10-1000-points")
def _() -> str:
    arms = {
        "untrained": "prior: 4 x 4 control points",
        "2 control points": "2 x 2 control points",
        "8 control points": "8 x 8 control points",
        "pooled": "one warp and one filter for the whole image",
    }
    return accuracy("cifar10", STRONG, arms, seeds=range(30, 32), reference="untrained")


@table("cifar10-1000-on-policy")
def _() -> str:
    arms = {
        "TrivialAugmentWide": "TrivialAugmentWide, crop and flip",
        "TAW + untrained": "the same, then the prior",
        "TAW + steered": "the same, then steered by influence",
    }
    return accuracy("cifar10", CIFAR, arms, reference="TrivialAugmentWide")


@table("cifar10-4000-short")
def _() -> str:
    arms = {
        "crop + flip": "crop and flip",
        "TrivialAugmentWide": "TrivialAugmentWide, crop and flip",
        "untrained": "prior",
        "fitted": "fitted, with stage 1",
        "fitted, not pretrained": "fitted",
        "best of 2": "better of two draws, by influence",
        "steered (exploratory code)": "steered by influence",
    }
    return accuracy("cifar10", {**CIFAR, "per_class": 400}, arms, reference="untrained")


@table("cifar10-4000-long")
def _() -> str:
    arms = {
        "crop + flip": "crop and flip",
        "TrivialAugmentWide": "TrivialAugmentWide, crop and flip",
        "untrained": "prior",
    }
    return accuracy("cifar10", {**STRONG, "per_class": 400, "steps": 8000}, arms, reference="untrained")


def weights_table(name: str, settings: Row) -> str:
    """Return the table of a set of weights of the package beside its controls."""
    arms = {"crop + flip": "crop and flip", "untrained": "prior", name: f"`{name}`"}
    return accuracy("cifar10", {**CIFAR, **settings}, arms, reference="untrained")


@table("weights-cifar10-wrn")
def _() -> str:
    return weights_table("cifar10-wrn", {"width": 32, "depth": 10})


@table("weights-cifar10-resnet56")
def _() -> str:
    return weights_table("cifar10-resnet56", {"depth": 56, "steps": 1000})


@table("strength-search")
def _() -> str:
    choices = {
        "mnist": ("MNIST, 500 labels", MNIST, range(30, 36)),
        "cifar10": ("CIFAR-10, 1,000 labels", CIFAR, range(30, 32)),
    }
    rows, used, commands = [], [], []
    for task, (name, settings, seeds) in choices.items():
        free = [key for key in ("pixels", "color") if key in settings]
        found: dict[tuple[float, ...], list[Row]] = defaultdict(list)
        for row in read(f"accuracy/results/{task}.jsonl"):
            strength = {key: row["settings"][key] for key in free}
            if row["arm"] == "untrained" and row["seed"] in seeds and row["settings"] == {**settings, **strength}:
                found[tuple(strength.values())].append(row)
        for _, group in sorted(found.items()):
            used += group
            text = strength_text(task, group[0]["settings"]).removeprefix("strength of the ")
            rows.append([f"{name}: {text}", str(len(group)), mean_std([100 * row["val_error"] for row in group])])
        options = "".join(f" --{key} {key.upper()}" for key in free)
        commands.append(f"python benchmarks/accuracy/{task}.py --data ROOT --seeds {seeds_text(seeds)}{options}")
    text = "Error of the prior on hyper-validation images that nothing read; strengths were chosen on these seeds."
    source = {**same_source(used), "command": commands}
    return markdown(["data, strength", "seeds", "error %"], rows) + caption(text, source, commits=commits_text(used))


@table("proxies-mnist")
def _() -> str:
    rows = read("accuracy/results/proxies-mnist.jsonl")
    pairs = (("fitted", "untrained"), ("untrained", "baseline"), ("fitted", "baseline"), ("untrained", "reversed"))
    names = {"untrained": "prior", "baseline": "crop", "fitted": "fitted", "reversed": "reversed"}
    losses: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        losses[row["proxy"], row["seed"]][row["candidate"]] = row["choosing"][1]
    lines = []
    for proxy in sorted({proxy for proxy, _ in losses}):
        whole = [values for (name, _), values in losses.items() if name == proxy and len(values) == len(names)]
        lines.append([proxy, *(f"{sum(v[a] < v[b] for v in whole)} of {len(whole)}" for a, b in pairs)])
    head = ["short training", *(f"{names[a]} before {names[b]}" for a, b in pairs)]
    text = (
        "Seeds in which the loss after a short training orders two augmentations as full trainings do on average "
        "(MNIST, 500 labels); from the fitted classifier (restart) or from scratch."
    )
    source = {**rows[0], "command": f"python benchmarks/accuracy/{rows[0]['command'].removeprefix('python ')}"}
    return markdown(head, lines) + caption(text, source, commits=commits_text(rows))


@table("directions")
def _() -> str:
    found = {name: read(f"accuracy/results/directions-{name}.json") for name in ("mnist", "cifar10")}
    names = {"mnist": "MNIST, 500 labels", "cifar10": "CIFAR-10, 1,000 labels"}
    moments = list(found["mnist"]["cosines"])
    rows = [
        [names[name], *(f"{part['cosines'][m]['mean']:.2f} ± {part['cosines'][m]['std']:.2f}" for m in moments)]
        for name, part in found.items()
    ]
    text = (
        "Mean cosine, over 500 training images, of the two directions of the dropout mask: the one that lowers the "
        "influence and the one that raises the loss; mean and standard deviation over "
        + " and ".join(f"{len(part['seeds'])} seeds ({names[name]})" for name, part in found.items())
        + "."
    )
    source = {**found["mnist"], "command": "python benchmarks/accuracy/directions.py TASK --data ROOT --seeds 0-2"}
    return markdown(["moment of the training", *moments], rows) + caption(
        text, source, commits=commits_text(found.values())
    )


# Influence


@table("influence-validity")
def _() -> str:
    found = read("influence/results/validity.json")
    changes = {"leave_one_out": "left out", "augmented_copy": "replaced by an augmented copy"}
    heads = {"refitted": "refitted", "as_found": "as found"}
    norms = {h["seed"]: h["mean_square_feature_norm"] for h in found["heads_as_found"] if h["n_train"] == 10_000}
    rows = []
    for head, head_name in heads.items():
        for decay in (1.0, 0.1, 0.01):
            for change, change_name in changes.items():
                group = [
                    row
                    for row in found["rows"]
                    if (row["n_train"], row["weight_decay"], row["change"], row["head"], row["ihvp"], row["damping"])
                    == (10_000, decay, change, head, "exact", 0.0)
                ]
                rows.append(
                    [
                        f"{change_name}; head {head_name}",
                        f"{decay:g}",
                        mean_std([r["pearson"] for r in group], 4),
                        mean_std([r["spearman"] for r in group], 4),
                        mean_std([r["slope"] for r in group], 3),
                        mean_std([100 * r["sign_agreement"] for r in group], 1),
                    ]
                )
    head = ["change of one training image", "weight decay", "Pearson", "Spearman", "slope", "sign right, %"]
    text = (
        "Predicted against actual changes of the loss on "
        f"{found['n_val']:,} images, each after refitting the head to convergence; MNIST, N = 10,000, "
        f"{found['n_changed']} changes for each seed, mean ± standard deviation over {len(norms)} seeds, no damping. "
        f"The mean squared norm of the features is {min(norms.values()):,.0f} to {max(norms.values()):,.0f}. A slope "
        "of 1 is right."
    )
    return markdown(head, rows) + caption(text, found)


@table("influence-damping")
def _() -> str:
    found = read("influence/results/validity.json")
    kinds = [("exact", d) for d in (0.0, 0.1, 1.0, 10.0, 100.0)] + [("block diagonal", 0.0), ("plain gradient", 0.0)]
    rows = []
    for ihvp, damping in kinds:
        cells = [f"exact, damping {damping:g}" if ihvp == "exact" else ihvp]
        for change in ("leave_one_out", "augmented_copy"):
            group = [
                row
                for row in found["rows"]
                if (row["n_train"], row["weight_decay"], row["change"], row["head"], row["ihvp"], row["damping"])
                == (10_000, 1.0, change, "refitted", ihvp, damping)
            ]
            cells += [mean_std([row["pearson"] for row in group], 3), mean_std([row["slope"] for row in group], 3)]
        rows.append(cells)
    head = ["inverse Hessian", "left out: Pearson", "slope", "replaced: Pearson", "slope"]
    text = (
        "The same changes, weight decay 1, head refitted; damping in units of the mean eigenvalue of the Hessian's "
        "data term; mean and standard deviation over seeds."
    )
    return markdown(head, rows) + caption(text, found)


@table("influence-speed")
def _() -> str:
    found = read("influence/results/speed.json")
    problems = [(64, 10, 50_000), (640, 10, 50_000), (2048, 1000, 20_000)]
    groups: dict[str, dict[tuple[int, int, int, float], Row]] = defaultdict(dict)
    for row in [*found["rows"], *found["small_damping"]["rows"]]:
        groups[row["solver"]].setdefault((row["D"], row["K"], row["N"], row["damping"]), row)
    columns = [(*problem, damping) for problem in problems for damping in (10.0, 0.1, 0.01)]
    columns = [c for c in columns if sum(c in group for group in groups.values()) > 1]

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        if "failed" in row:
            return row["failed"]
        repeats = "" if row["repeats"] > 1 else " *"
        return f"{row['median_s']:.3g}{repeats} ({row['residual']:.0e})"

    rows = [
        [
            name.replace("ours", "learned-aug").replace("error 1e", "tolerance 1e"),
            *(cell(group.get(c)) for c in columns),
        ]
        for name, group in groups.items()
    ]
    head = ["solver", *(f"D {d:,}, K {k:,}, N {n:,}, damping {x:g}" for d, k, n, x in columns)]
    text = (
        "CPU seconds for one s_val, median of 3 runs (\\* a single run), and in brackets the relative residual "
        f"reached, measured in float64; asked for {found['residual_asked']:g}. Damping in mean eigenvalues of the "
        "Hessian. EK-FAC and Arnoldi approximate the Hessian: their residual says how far."
    )
    return markdown(head, rows) + caption(text, found)


# Fit


@table("fit-stages")
def _() -> str:
    found = read("fit/results/stages.json")
    names = {
        "train features": "features of the training images",
        "val features": "features of the hyper-validation images",
        "refit": "refit of the head",
        "ihvp": "s_val",
        "pretrain": "stage 1 (off by default)",
        "maximize": "stage 3",
        "diagnostics": "diagnostics",
    }
    step = found["training step"]
    rows = [
        [names.get(name, name), f"{seconds:.1f}", f"{seconds / step:.0f}"] for name, seconds in found["seconds"].items()
    ]
    rows.append(["all", f"{found['fit']:.1f}", f"{found['fit'] / step:.0f}"])
    images = found["images"]
    text = (
        f"One run, ResNet-{found['depth']}, {images['train']:,} training and {images['influence']:,} hyper-validation "
        f"images of CIFAR-10; a training step of that classifier takes {step:.2f} s."
    )
    return markdown(["part of the fit", "seconds", "as many training steps"], rows) + caption(text, found)


@table("fit-memory")
def _() -> str:
    found = read("fit/results/memory.json")
    rows = [
        [
            f"{row['D']:,} features, {row['K']:,} classes, features in {row['cache']}",
            f"{row['peak_above_bytes'] / 2**30:.2f}",
            f"{row['cache_bytes'] / 2**30:.2f}",
            f"{row['probabilities_bytes'] / 2**30:.2f}",
        ]
        for row in found["rows"]
    ]
    text = f"N = {found['rows'][0]['N']:,} training images; one run each, peak of the process less that before the fit."
    head = ["problem", "peak, GiB", "of it features", "of it probabilities"]
    return markdown(head, rows) + caption(text, found)


@table("fit-half-precision")
def _() -> str:
    found = read("fit/results/memory.json")
    by_dtype: dict[str, list[Row]] = defaultdict(list)
    for row in found["half_precision"]:
        by_dtype[row["cache"].removeprefix("torch.")].append(row)

    def figures(group: list[Row], key: str) -> str:
        return f"{statistics.mean(r[key] for r in group):.1e} ± {statistics.stdev(r[key] for r in group):.0e}"

    rows = [[name, str(len(g)), figures(g, "s_val"), figures(g, "influence")] for name, g in by_dtype.items()]
    text = "Relative change of s_val, and of the influences, if features are cached in half precision."
    return markdown(["features in", "seeds", "s_val", "influence"], rows) + caption(text, found)


@table("fit-kills")
def _() -> str:
    found = read("fit/results/kills.json")
    reached: dict[str, int] = defaultdict(int)
    for trial in found["trials"]:
        reached[trial["reached"]] += 1
    places = ", ".join(f"{count} {place}" for place, count in sorted(reached.items()))
    rows = [
        ["kills at random moments", str(found["kills"])],
        ["of these during the write of a checkpoint", str(found["in_write"])],
        ["checkpoints that could not be read afterward", str(found["unreadable_checkpoints"])],
        ["resumed to the same bits", str(found["bit_equal"])],
    ]
    return markdown(["", "count"], rows) + caption(f"Where the fits were when they were killed: {places}.", found)


@table("fit-distributed")
def _() -> str:
    found = read("fit/results/distributed.json")
    rows = []
    for name, part in found["relative_difference_from_one_process"].items():
        two, control = part["two processes"], part["control"]
        rows.append([name, f"{two['weights']:.1e}", f"{control['weights']:.1e}"])
    text = (
        "Relative difference of the weights from those of one process, for two processes and for a control: one "
        "process whose sums run in another order. All processes end with equal bits: "
        + ("yes" if found["processes_equal_to_the_last_bit"] else "no")
        + "."
    )
    return markdown(["stage", "two processes", "control"], rows) + caption(text, found)


@table("fit-imagenet-plan")
def _() -> str:
    found = read("fit/results/imagenet_plan.json")
    forms = found["forms"]
    parts = list(dict.fromkeys(part for form in forms.values() for part in form["plan"]["hours"]))
    rows = [[f"{part}, hours"] + [f"{form['plan']['hours'][part]:.3f}" for form in forms.values()] for part in parts]
    rows.append(["all, GPU hours"] + [f"{form['plan']['gpu_hours']:.2f}" for form in forms.values()])
    kept = next(iter(forms.values()))["plan"]["gigabytes_per_gpu"]
    rows += [
        [f"{name}, GB for each GPU", *(f"{f['plan']['gigabytes_per_gpu'][name]:.1f}" for f in forms.values())]
        for name in kept
    ]
    assumed = found["assumed"]
    text = (
        "Counted on the CPU and scaled, never run on ImageNet: "
        f"{assumed['gpus']} GPUs at {assumed['tflops']:g} TFLOP/s and {assumed['memory_gb_s']:g} GB/s, "
        f"{assumed['decoded_per_s']:,.0f} images decoded a second, batches of {assumed['batch']}."
    )
    source = {**found, "device": f"CPU, counted on {found['counted_on_images']} images"}
    return markdown(["", *forms], rows) + caption(text, source, commits=found["commit"][:7])


# Throughput


def throughput(path: str, clock: str) -> str:
    """Return microseconds per image by contender and size, of one clock, with ratios."""
    found = read(path)
    sizes = {"32": "32 px", "224": "224 px"}
    names = list(dict.fromkeys(name for size in sizes for name in found["results"][size]))
    against = ("TrivialAugmentWide, PIL each", "kornia RandAugment, float batch")
    key = "cpu_mean_microseconds_per_image" if clock == "cpu" else "mean_microseconds_per_image"
    rows = []
    for name in names:
        cells = [name]
        for size in sizes:
            row = found["results"][size].get(name)
            if row is None:
                cells += [""] * 3
                continue
            cells.append(f"{row[key]:,.0f}")
            for other in against:
                ratio, low, high = row[f"speed over {other}"][clock]
                cells.append("1" if name == other else f"{ratio:.2g} [{low:.2g}, {high:.2g}]")
        rows.append(cells)
    head = [""]
    for size in sizes.values():
        head += [f"{size}: us an image", "speed over TrivialAugmentWide", "speed over kornia RandAugment"]
    seconds = "CPU time" if clock == "cpu" else "wall-clock time"
    text = (
        f"Mean {seconds} an image over {found['rounds']} rounds, all contenders in turn in each round; ratios of means "
        "with 95 % intervals from resampling the rounds, above 1 is faster. Batches hold 256 images at 32 px and 16 at "
        f"224 px; {found['threads']} thread{'s' if found['threads'] > 1 else ''}."
    )
    source = {**found, "device": f"{found['device']}, {found['threads']} of {found['cores']} cores"}
    load = f"{found['load_before'][0]:.1f} before, {found['load_after'][0]:.1f} after"
    return markdown(head, rows) + caption(text, source, commit=found["commit"][:7], date=found["date"], load=load)


@table("throughput-1-thread")
def _() -> str:
    return throughput("throughput/results/cpu-1-thread.json", "cpu")


@table("throughput-2-threads")
def _() -> str:
    return throughput("throughput/results/cpu-2-threads.json", "wall")


@table("throughput-step-share")
def _() -> str:
    found = read("throughput/results/cpu-1-thread.json")
    rows = [
        [
            name,
            str(step["batch"]),
            f"{step['milliseconds_per_image']:.1f}",
            f"{step['share_of_the_augmenter_percent']:.3f} %",
        ]
        for name, step in found["training_steps"].items()
    ]
    text = "Time of a training step an image, and the share of it that augmenting a batch takes."
    source = {**found, "device": f"{found['device']}, {found['threads']} of {found['cores']} cores"}
    head = ["classifier", "batch", "ms an image", "share of the augmenter"]
    return markdown(head, rows) + caption(text, source, commit=found["commit"][:7], date=found["date"])


# The panel

PANEL_CELLS = {
    "mnist-50": "MNIST, 50",
    "color-10": "digits in color, 10",
    "color-60": "digits in color, 60",
    "omniglot": "Omniglot, 10",
    "sign-10": "sign digits, 10",
    "cells-30": "blood cells, 30",
    "cifar10-100": "CIFAR-10, 100",
    "cifar10-500": "CIFAR-10, 500",
    "cifar10-1000": "CIFAR-10, 1,000",
}
PANEL_ARMS = {
    "baseline": "crop, flip",
    "TrivialAugmentWide": "TrivialAugmentWide",
    "prior": "prior",
    "steered": "steered",
    "reversed": "steered, reversed",
    "ungated": "steered, no gate",
}
Errors = dict[str, dict[str, dict[int, float]]]  # percent, by cell, arm and seed


def panel_rows() -> list[Row]:
    """Return the trainings of the panel."""
    path = "accuracy/results/panel.jsonl"
    return read(path) if (HERE / path).is_file() else []


def panel_errors(rows: Iterable[Row]) -> Errors:
    """Return the test errors of trainings."""
    found: Errors = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["cell"]][row["arm"]][row["seed"]] = 100 * row["test_error"]
    return found


def panel_caption(text: str, rows: Sequence[Row]) -> str:
    """Return the line under a table of the panel."""
    seeds = seeds_text(row["seed"] for row in rows)
    line = f"python benchmarks/accuracy/panel.py --data ROOT --seeds {seeds}"
    return caption(text, {**same_source(rows), "command": line}, commits=commits_text(rows))


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Return the mean paired difference with its interval, and in how many seeds it is below 0; empty without pairs."""
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        return f"{one[seeds[0]] - other[seeds[0]]:+.2f} (1)" if seeds else ""
    mean, low, high, _ = paired([one[s] for s in seeds], [other[s] for s in seeds])
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], {sum(one[s] < other[s] for s in seeds)} of {len(seeds)}"


@table("panel")
def _() -> str:
    rows = [row for row in panel_rows() if row["arm"] in list(PANEL_ARMS)[:4]]
    if not rows:
        return "*No results yet.*\n"
    errors, lines = panel_errors(rows), []
    for cell, name in PANEL_CELLS.items():
        if cell in errors:
            arms = errors[cell]
            shown = [mean_std(list(arms[arm].values())) if arm in arms else "" for arm in list(PANEL_ARMS)[:4]]
            others = [difference(arms["steered"], arms[arm]) for arm in ("prior", "TrivialAugmentWide")]
            lines.append([name, *shown, *others])
    head = ["data, labels per class", *list(PANEL_ARMS.values())[:4], "steered minus prior", "steered minus TAW"]
    text = (
        "Test error %, mean ± standard deviation over seeds; differences in points, paired by seed, with 95 % "
        "t-intervals, and the seeds in which steering is better."
    )
    return markdown(head, lines) + panel_caption(text, rows)


@table("panel-controls")
def _() -> str:
    rows = panel_rows()
    errors, lines = panel_errors(rows), []
    for cell, name in PANEL_CELLS.items():
        for arm in list(PANEL_ARMS)[4:]:
            if arm in errors[cell]:
                mean = mean_std(list(errors[cell][arm].values()))
                others = [difference(errors[cell][arm], errors[cell][other]) for other in ("prior", "steered")]
                lines.append([name, PANEL_ARMS[arm], mean, *others])
    if not lines:
        return "*No results yet.*\n"
    used = [row for row in rows if row["arm"] in list(PANEL_ARMS)[4:]]
    return markdown(["data, labels per class", "arm", "error %", "minus prior", "minus steered"], lines) + (
        panel_caption("Controls, as in the table above.", used)
    )


@table("panel-short")
def _() -> str:
    rows = [row for row in panel_rows() if row["arm"] in list(PANEL_ARMS)[:4]]
    if not rows:
        return "*No results yet.*\n"
    errors, lines = panel_errors(rows), []
    for cell, name in PANEL_CELLS.items():
        if cell in errors:
            arms = errors[cell]
            means = {arm: statistics.mean(arms[arm].values()) for arm in list(PANEL_ARMS)[:4] if arms.get(arm)}
            best = min(means.values())
            shown = [f"**{means[a]:.1f}**" if means[a] == best else f"{means[a]:.1f}" for a in means]
            lines.append([name, *shown, str(min(len(arms[a]) for a in means))])
    head = ["test error %", *list(PANEL_ARMS.values())[:4], "seeds"]
    return markdown(head, lines)


# Pages


class PageError(ValueError):
    """A page whose markers do not fit the tables."""


def rendered(text: str, page: str) -> str:
    """Return the text of a page with every marked table rendered anew.

    Raises:
        PageError: if a marker names no table, or has no end.
    """
    whole = {match["name"] for match in MARKED.finditer(text)}
    for name in BEGIN.findall(text):
        if name not in TABLES:
            raise PageError(f"{page}: no table is called {name!r}; there are {', '.join(sorted(TABLES))}")
        if name not in whole:
            raise PageError(f"{page}: the marker of {name!r} has no end; add <!-- end: {name} -->")
    return MARKED.sub(lambda m: f"<!-- begin: {m['name']} -->\n{once(m['name'])}<!-- end: {m['name']} -->", text)


@functools.cache
def once(name: str) -> str:
    """Return a rendered table."""
    return f"\n{TABLES[name]()}\n"


def pages(docs: Path) -> list[Path]:
    """Return the pages that hold markers, in order."""
    found = [p for p in sorted(docs.rglob("*.md")) if "_build" not in p.parts]
    return [p for p in [*found, *([README] if docs == DOCS else [])] if BEGIN.search(p.read_text("utf-8"))]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is stale")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages (%(default)s)")
    args = parser.parse_args(argv)
    stale = []
    for page in pages(args.docs):
        name = str(page.relative_to(args.docs)) if page != README else README.name
        text = page.read_text("utf-8")
        try:
            new = rendered(text, name)
        except PageError as error:
            print(error, file=sys.stderr)
            return 1
        if new != text:
            stale.append(name)
            if not args.check:
                page.write_text(new, "utf-8")
    if not args.check:
        print(f"rewrote {', '.join(stale) or 'nothing'}")
        return 0
    for name in stale:
        print(f"{name} is stale; run python benchmarks/report.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
