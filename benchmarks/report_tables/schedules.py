"""The verdict of a comparison on its schedule, at short and long ones."""

from __future__ import annotations

from report_tables.common import Row, caption, markdown, mean_std, read, table

CELLS = {"omniglot": "Omniglot, 10 per class", "mnist-50": "MNIST, 50 per class"}


@table("compare-schedules")
def _() -> str:
    reports: list[Row] = [read(f"accuracy/results/schedules-{cell}.json") for cell in CELLS]
    runs = [(CELLS[report["cell"]], run) for report in reports for run in report["runs"]]
    arms = list(dict.fromkeys(t["arm"] for _, run in runs for t in run["trainings"]))
    lines = []
    for name, run in runs:
        cells = []
        for arm in arms:
            found = [t for t in run["trainings"] if t["arm"] == arm]
            fitted = sum(t["accuracy"] for t in found) / len(found)
            cells.append(f"{mean_std([100 * t['error'] for t in found])}; {100 * fitted:.0f}")
        verdict = f"too short for {', '.join(run['too_short'])}" if run["too_short"] else "long enough"
        lines.append([f"{name}, {run['steps']:,} steps", *cells, verdict])
    seeds = " or ".join(sorted({str(len({t["seed"] for t in run["trainings"]})) for _, run in runs}))
    text = (
        f"Test error %, mean ± standard deviation over {seeds} seeds, of the first weights and the order; and % of the "
        "augmented training images that are right at the end."
    )
    commands = [report["command"] for report in reports]
    return markdown(["labels and schedule", *arms, "verdict"], lines) + caption(
        text, {**reports[0], "command": commands}
    )
