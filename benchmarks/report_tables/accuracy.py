"""Tables of test errors."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from report_tables.common import (
    Row,
    caption,
    commits_text,
    constant,
    markdown,
    mean_std,
    p_text,
    paired,
    read,
    seeds_text,
    table,
)

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
    "mnist-cnn4": "`mnist-cnn4` of 0.1, fitted to other images",
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
