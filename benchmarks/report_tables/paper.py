"""The paper's tables: published figures, and ours where there are any."""

from __future__ import annotations

from collections.abc import Sequence

from report_tables.accuracy import same_source
from report_tables.common import Row, caption, commits_text, markdown, mean_std, read, read_rows, seeds_text, table

SCRIPTS = ("table1", "table2", "table3", "ablation")


def cell(rows: Sequence[Row]) -> str:
    """Return error % and, in brackets, the number of trainings."""
    return f"{mean_std([100 * row['test_error'] for row in rows])} ({len(rows)})" if rows else ""


def paper_table(script: str) -> str:
    """Return a table with the rows of the paper below each other, published and here, and its arms side by side."""
    published, results = read("paper/published.json")[script], read_rows(f"paper/results/{script}.jsonl")
    arms = list(dict.fromkeys([*(arm for row in published.values() for arm in row), *(r["arm"] for r in results)]))
    lines = []
    for row, errors in published.items():
        lines.append([f"{row}: published", *(str(errors.get(arm, "")) for arm in arms)])
        found = [r for r in results if r["row"] == row]
        for scale in sorted({r["scale"] for r in found}, reverse=True):
            part = "here" if scale == 1 else f"here, {scale:g} of the epochs"
            cells = [cell([r for r in found if (r["arm"], r["scale"]) == (arm, scale)]) for arm in arms]
            lines.append([f"{row}: {part}", *cells])
    text = markdown(["test error %", *arms], lines)
    if not results:
        return text + "\n*Published figures; not run here.*\n"
    command = f"python benchmarks/paper/{script}.py --data ROOT"
    line = f"Here: mean ± standard deviation (trainings), seeds {seeds_text(r['seed'] for r in results)}."
    return text + caption(line, {**same_source(results), "command": command}, commits=commits_text(results))


for name in SCRIPTS:
    table(f"paper-{name}")(lambda name=name: paper_table(name))
