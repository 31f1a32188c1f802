"""What the tables share: their registry, readers of committed figures, statistics, and text."""

from __future__ import annotations

import ast
import functools
import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from learned_aug.training.comparison import difference

HERE = Path(__file__).parents[1]
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


def read_rows(path: str) -> list[Row]:
    """Return the rows of a committed .jsonl, none where it does not exist yet."""
    found: list[Row] = read(path) if (HERE / path).is_file() else []
    return found


@functools.cache
def constant(path: str, name: str) -> Any:
    """Return a literal that a script assigns to a name, without running the script."""
    for node in ast.parse((HERE / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise KeyError(f"{path} assigns no literal to {name}")


# Statistics


def paired(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float, float]:
    """Return mean, 95 % interval (paired t) and exact two-sided sign-flip p of the differences `one` minus `other`."""
    found = difference([a - b for a, b in zip(one, other, strict=True)])
    return found.mean, found.low, found.high, found.p


# Text


def load_text(found: Row) -> str:
    """Return the load of the machine before and after a measurement."""
    return f"{found['load_before'][0]:.1f} before, {found['load_after'][0]:.1f} after"


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
    text = re.sub(r"(--classifier) \S*/", r"\1 ", text)
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
