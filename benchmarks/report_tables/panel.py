"""Tables of the panel: the default augmentations on all cells, and their controls."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from scipy import stats

from learned_aug.training import comparison
from report_tables.accuracy import same_source
from report_tables.common import (
    Row,
    caption,
    commits_text,
    markdown,
    mean_std,
    read_rows,
    seeds_text,
    table,
)

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
# Beside the nine: a larger classifier, and more labels for a choice that reads some of them.
LARGER_CELLS = {"color-10-wrn": "digits in color, 10", "sign-10-wrn": "sign digits, 10"}
CHOICE_CELLS = {**PANEL_CELLS, "color-200": "digits in color, 200", "color-500": "digits in color, 500"}
PANEL_ARMS = {
    "baseline": "crop, flip",
    "TrivialAugmentWide": "TrivialAugmentWide",
    "prior": "prior",
    "steered": "steered",
    "constant": "steered, share and strength constant",
    "untilted": "share and strength alone",
    "reversed": "steered, reversed",
    "ungated": "steered, no gate",
}
# Arms that need no search and no further labels.
RANKED = {
    **dict(list(PANEL_ARMS.items())[:4]),
    "RandAugment": "RandAugment",
    "RandAugment+steered": "RandAugment, then steered",
    "Mixup": "Mixup",
    "CutMix": "CutMix",
}
MAIN, CONTROLS = list(PANEL_ARMS)[:4], list(PANEL_ARMS)[4:]
CHOSEN = "TrivialAugmentWide, the better of two by influence"
SEEN = {"cifar10-500": range(60, 65)}  # where the form before did harm, which led to the present one
NOTHING = "*No results yet.*\n"
Errors = dict[str, dict[str, dict[int, float]]]  # percent, by cell, arm and seed


def panel_rows(*, fresh: bool = False) -> list[Row]:
    """Return the trainings of the panel; or those of fresh seeds alone, whose test errors led to no choice."""
    rows = read_rows("accuracy/results/panel.jsonl")
    return unseen(rows) if fresh else rows


def unseen(rows: Iterable[Row]) -> list[Row]:
    """Return the trainings whose test errors led to no choice."""
    return [row for row in rows if row["seed"] not in SEEN.get(row["cell"], ())]


def panel_errors(rows: Iterable[Row], part: str = "test") -> Errors:
    """Return the errors of trainings on a part of the data, "test" or "val"."""
    found: Errors = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["cell"]][row["arm"]][row["seed"]] = 100 * row[f"{part}_error"]
    return found


def panel_caption(text: str, rows: Sequence[Row]) -> str:
    """Return the line under a table of the panel."""
    seeds = seeds_text(row["seed"] for row in rows)
    line = f"python benchmarks/accuracy/panel.py --data ROOT --seeds {seeds}"
    return caption(text, {**same_source(rows), "command": line}, commits=commits_text(rows))


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Return the differences of two arms in the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def compared(found: Mapping[str, Mapping[int, float]], arms: Iterable[str]) -> list[list[float]]:
    """Return the errors of each arm in the seeds that all arms of a cell share; the baseline's in those it has."""
    arms = list(arms)
    seeds = set.intersection(*(set(found[arm]) for arm in arms if arm != "baseline" and arm in found))
    return [[value for seed, value in sorted(found.get(arm, {}).items()) if seed in seeds] for arm in arms]


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Return the mean paired difference with its interval, and in how many seeds it is below 0; empty without pairs."""
    values = differences(one, other)
    if len(values) < 2:
        return f"{values[0]:+.2f} (1)" if values else ""
    found = comparison.difference(values)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}], {sum(v < 0 for v in values)} of {len(values)}"


def side_by_side(
    arms: Mapping[str, str],
    ours: str,
    others: Mapping[str, str],
    text: str,
    cells: Mapping[str, str] = PANEL_CELLS,
) -> str:
    """Return a table of the errors of arms by cell, and of the paired differences of one of them to others.

    Args:
        arms: the columns, arm to name.
        ours: the arm of which the differences are.
        others: what it is compared with, arm to the head of the column.
        text: caption.
        cells: the rows, cell to name.
    """
    rows = [row for row in panel_rows(fresh=True) if row["arm"] in {*arms, *others} and row["cell"] in cells]
    if not rows:
        return NOTHING
    errors, lines = panel_errors(rows), []
    for cell, name in cells.items():
        if ours in (found := errors[cell]):
            shown = [mean_std(values) if values else "" for values in compared(found, arms)]
            lines.append([name, *shown, *(difference(found[ours], found[arm]) for arm in others)])
    return markdown(["data, labels per class", *arms.values(), *others.values()], lines) + panel_caption(text, rows)


@table("panel")
def _() -> str:
    return side_by_side(
        {arm: PANEL_ARMS[arm] for arm in MAIN},
        "steered",
        {"prior": "steered minus prior", "TrivialAugmentWide": "steered minus TAW"},
        "Test error %, mean ± standard deviation over the seeds that all arms but the first share; differences in "
        "points, paired by seed, with 95 % t-intervals, and the seeds in which steering is better.",
    )


@table("panel-larger")
def _() -> str:
    return side_by_side(
        {arm: PANEL_ARMS[arm] for arm in MAIN[1:]},
        "steered",
        {"prior": "steered minus prior", "TrivialAugmentWide": "steered minus TAW"},
        "As in the first table, with a Wide-ResNet-16-2 in place of the ResNet-8.",
        LARGER_CELLS,
    )


@table("panel-held-out")
def _() -> str:
    rows = [row for row in panel_rows(fresh=True) if row["arm"] in ("prior", "steered")]
    test, val = (panel_errors(rows, part) for part in ("test", "val"))
    lines = [
        [name, *(difference(part[cell]["steered"], part[cell].get("prior", {})) for part in (test, val))]
        for cell, name in PANEL_CELLS.items()
        if "steered" in test[cell]
    ]
    if not lines:
        return NOTHING
    return markdown(["data, labels per class", "test images", "the rest"], lines) + panel_caption(
        "Steered minus prior, as in the first table: on the test images, and on the rest of the training part of the "
        "data, 5,000 images at most.",
        rows,
    )


@table("panel-square")
def _() -> str:
    now = [row for row in panel_rows() if row["arm"] == "steered"]
    before = read_rows("accuracy/results/panel-linear.jsonl")
    parts = [(panel_errors(now, part), panel_errors(before, part)) for part in ("test", "val")]
    lines = [
        [name, *(difference(new[cell]["steered"], old[cell]["steered"]) for new, old in parts)]
        for cell, name in PANEL_CELLS.items()
        if all(errors[cell]["steered"] for errors in parts[0])
    ]
    if not lines:
        return NOTHING
    text = (
        "The square minus the confidence itself: on the test images, and on the rest of the training part of the data."
    )
    return markdown(["data, labels per class", "test images", "the rest"], lines) + panel_caption(text, now + before)


@table("panel-controls")
def _() -> str:
    rows = panel_rows(fresh=True)
    errors, lines = panel_errors(rows), []
    for cell, name in PANEL_CELLS.items():
        for arm in CONTROLS:
            if len(errors[cell][arm]) > 2:
                mean = mean_std(list(errors[cell][arm].values()))
                others = [difference(errors[cell][arm], errors[cell][other]) for other in ("prior", "steered")]
                lines.append([name, PANEL_ARMS[arm], mean, *others])
    if not lines:
        return NOTHING
    used = [row for row in rows if row["arm"] in CONTROLS]
    return markdown(["data, labels per class", "arm", "error %", "minus prior", "minus steered"], lines) + (
        panel_caption("Controls, in points of test error; those of at least three seeds.", used)
    )


@table("panel-rank")
def _() -> str:
    rows = [row for row in panel_rows() if row["arm"] in RANKED]
    errors, shown = panel_errors(rows), {}
    for cell in PANEL_CELLS:
        arms = errors[cell]
        seeds = set.intersection(*(set(arms[arm]) for arm in RANKED))
        if len(seeds) > 1:
            shown[cell] = ([statistics.mean(arms[arm][seed] for seed in seeds) for arm in RANKED], len(seeds))
    if not shown:
        return NOTHING
    ranks = [stats.rankdata(means) for means, _ in shown.values()]  # of equal means their middle
    lines = []
    for k, (arm, name) in enumerate(RANKED.items()):
        cells = [
            f"{means[k] - means[0]:+.1f}" if arm != "baseline" else f"{means[0]:.1f}" for means, _ in shown.values()
        ]
        lines.append([name, *cells, f"{statistics.mean(rank[k] for rank in ranks):.1f}"])
    head = ["arm", *(f"{PANEL_CELLS[cell]} ({n})" for cell, (_, n) in shown.items()), "mean rank"]
    text = (
        "Test error % of the baseline, and mean paired differences to it in points, below 0 is better; the number of "
        "seeds in brackets. The rank is that of the mean among all arms of the table."
    )
    return markdown(head, lines) + panel_caption(text, rows)


@table("panel-on-top")
def _() -> str:
    return side_by_side(
        {"RandAugment": "RandAugment", "steered": "steered", "RandAugment+steered": "RandAugment, then steered"},
        "RandAugment+steered",
        {
            "RandAugment": "both minus RandAugment",
            "steered": "both minus steered",
            "RandAugment+prior": "both minus RandAugment, then the prior",
        },
        "As in the first table; RandAugment acts on all images.",
    )


@table("panel-choice")
def _() -> str:
    return side_by_side(
        {"TrivialAugmentWide": "TrivialAugmentWide", CHOSEN: "the better of two of its draws, by influence"},
        CHOSEN,
        {"TrivialAugmentWide": "difference"},
        "As in the first table. The arm that reads labels trains on four fifths of them, the influence reads the rest.",
        CHOICE_CELLS,
    )


@table("panel-short")
def _() -> str:
    rows = [row for row in panel_rows(fresh=True) if row["arm"] in MAIN and row["cell"] in PANEL_CELLS]
    errors, lines = panel_errors(rows), []
    for cell, name in PANEL_CELLS.items():
        arms = errors[cell]
        if "steered" not in arms:
            continue
        line = [name, *(f"{statistics.mean(values):.1f}" if values else "" for values in compared(arms, MAIN))]
        for other in ("prior", "TrivialAugmentWide"):
            found = comparison.difference(differences(arms["steered"], arms.get(other, {})))
            line.append(
                f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}] ({found.pairs})" if found.pairs > 1 else ""
            )
        lines.append(line)
    if not lines:
        return NOTHING
    head = [
        "test error %",
        *(PANEL_ARMS[arm] for arm in MAIN),
        "steered minus prior",
        "steered minus TrivialAugmentWide",
    ]
    text = (
        "Means over the seeds that all arms but the first share; differences paired by seed, with 95 % t-intervals and "
        "the number of seeds."
    )
    return markdown(head, lines) + panel_caption(text, rows)


@table("signals")
def _() -> str:
    rows = read_rows("accuracy/results/signals.jsonl")
    if not rows:
        return NOTHING
    notes = [note for row in rows for note in row["notes"]]
    lines = []
    for name in ("augmenting", "steering", "strength of affine", "strength of warp", "strength of color"):
        line = [name]
        for part in ([n for n in notes if n["confidence"] < 0.5], [n for n in notes if n["confidence"] >= 0.5]):
            means = [n[name][0] for n in part]
            signs = [(mean > 0) - (mean < 0) if abs(mean) > margin else 0 for mean, margin in (n[name] for n in part)]
            line += [f"{statistics.mean(means):+.2f}", f"{signs.count(1)} / {signs.count(-1)} of {len(signs)}"]
        lines.append(line)
    head = ["what changes", "confidence < .5: mean", "above / below 0", "confidence ≥ .5: mean", "above / below 0"]
    cells = ", ".join(dict.fromkeys(PANEL_CELLS[row["cell"]] for row in rows))
    text = (
        "Predicted fall of the validation loss, positive is good, in units of the root mean square of single draws, "
        f"and how many of the 95 % intervals lie above or below 0. Every hundred steps of trainings on {cells}."
    )
    seeds = seeds_text(row["seed"] for row in rows)
    line = f"python benchmarks/accuracy/signals.py --data ROOT --seeds {seeds}"
    return markdown(head, lines) + caption(text, {**same_source(rows), "command": line}, commits=commits_text(rows))
