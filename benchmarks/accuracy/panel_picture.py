"""Draw the panel: for each data set, the mean paired difference of each arm to the baseline, with its 95 % interval.

    python benchmarks/accuracy/panel_picture.py examples/panel.png
    python benchmarks/accuracy/panel_picture.py mine.png --results mine.jsonl

The second one is of the rows that panel.py has written for a data set of one's own, given as --set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from panel import HERE, read

sys.path.insert(0, str(Path(__file__).parents[1]))
from report_tables.panel import PANEL_CELLS, differences, panel_errors, unseen

from learned_aug.training.comparison import difference

ARMS = {"TrivialAugmentWide": "tab:gray", "prior": "tab:blue", "steered": "tab:orange"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "panel.jsonl")
    args = parser.parse_args()
    errors = panel_errors(unseen(read(args.results)))
    names = {**PANEL_CELLS, **{cell: cell for cell in errors if cell not in PANEL_CELLS}}  # those of --set too
    cells = [cell for cell in names if all(arm in errors[cell] for arm in ("baseline", *ARMS))]
    if not cells:
        parser.error(f"{args.results} must hold the arms baseline, {', '.join(ARMS)} of a data set")
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.5 * len(cells)), layout="constrained")
    axes.axvline(0, color="black", linewidth=0.8)
    for k, (arm, color) in enumerate(ARMS.items()):
        for row, cell in enumerate(cells):
            pairs = differences(errors[cell][arm], errors[cell]["baseline"])
            mean, low, high, *_ = difference(pairs) if len(pairs) > 1 else (pairs[0],) * 3
            label = arm if row == 0 else None
            at = row + 0.22 * (k - 1)
            axes.errorbar(mean, at, xerr=[[mean - low], [high - mean]], fmt="o", ms=4, color=color, label=label)
    axes.set_yticks(range(len(cells)), [names[cell] for cell in cells])
    axes.invert_yaxis()
    axes.set_xlabel("test error minus the baseline's, points (95 %)")
    axes.legend(loc="lower left")
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
