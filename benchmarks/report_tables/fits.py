"""Tables of what fits give: on cells of the panel, and as the weights of the package."""

from __future__ import annotations

import statistics

from report_tables.accuracy import same_source
from report_tables.common import (
    HERE,
    Row,
    caption,
    commits_text,
    markdown,
    mean_std,
    read,
    read_rows,
    seeds_text,
    table,
)
from report_tables.panel import NOTHING, PANEL_CELLS, difference

WEIGHTS = ("mnist-cnn4", "cifar10-resnet56", "cifar10-wrn")


def seeds_of(rows: list[Row], arm: str) -> dict[int, float]:
    """Return the test errors of an arm, percent, by seed."""
    return {row["seed"]: 100 * row[arm]["test_error"] for row in rows}


@table("fits")
def _() -> str:
    rows = read_rows("accuracy/results/fits.jsonl")
    lines, used = [], []
    for on, tilt in dict.fromkeys((row["on"], row["tilt"]) for row in rows):
        for cell, name in PANEL_CELLS.items():
            found = [row for row in rows if (row["cell"], row["on"], row["tilt"]) == (cell, on, tilt)]
            if found:
                used += found
                wrong = [
                    statistics.mean(100 * row["diagnostics"][arm]["misclassified"] for row in found)
                    for arm in ("prior", "fitted")
                ]
                certain = sum(row["gain"]["mean"] > row["gain"]["margin"] for row in found)
                prior, fitted = (seeds_of(found, arm) for arm in ("prior", "fitted"))
                what = f"{name}; fitted to a classifier of the {on}" + (f", tilt {tilt:g}" if tilt != 3 else "")
                shares = f"{wrong[0]:.0f} / {wrong[1]:.0f}"
                errors = [mean_std(list(values.values())) for values in (prior, fitted)]
                lines.append([what, f"{certain} of {len(found)}", shares, *errors, difference(fitted, prior)])
    if not lines:
        return NOTHING
    head = ["data, labels per class", "predicted better", "draws wrong %", "prior", "fitted", "fitted minus prior"]
    text = (
        "Predicted better: seeds in which the judge of the fit is certain of it. Draws wrong: of the prior / of the "
        "fitted networks, by the classifier that was fitted to. Test error %, mean ± standard deviation, of fresh "
        "classifiers with each on half of every batch; differences paired by seed, with 95 % t-intervals, and the "
        "seeds in which the fitted networks are better."
    )
    seeds = seeds_text(row["seed"] for row in used)
    line = f"python benchmarks/accuracy/fits.py --data ROOT --seeds {seeds}"
    return markdown(head, lines) + caption(text, {**same_source(used), "command": line}, commits=commits_text(used))


@table("weights")
def _() -> str:
    paths = [f"weights/results/{name}.json" for name in WEIGHTS]
    rows: list[Row] = [read(path) for path in paths if (HERE / path).is_file()]
    if not rows:
        return NOTHING
    lines = []
    for row in rows:
        errors = {("crop" if arm.startswith("crop") else arm): values for arm, values in row["errors"].items()}
        shown = [mean_std(errors[arm]) for arm in ("crop", "TrivialAugmentWide", "these weights")]
        own, crop = (dict(enumerate(errors[arm])) for arm in ("these weights", "crop"))
        lines.append([f"`{row['name']}`", *shown, difference(own, crop), str(len(errors["crop"]))])
    head = ["name", "crop, flip", "TrivialAugmentWide", "these weights", "minus crop, flip", "trainings"]
    text = (
        "Test error %, mean ± standard deviation, by `learned_aug.compare`, of fresh classifiers on few labels, as "
        "each card says; the weights on half of every batch. Differences paired by seed, with 95 % t-intervals, and "
        "the seeds in which the weights are better."
    )
    source = {**same_source(rows), "command": [row["command"] for row in rows]}
    return markdown(head, lines) + caption(text, source, commits=commits_text(rows))
