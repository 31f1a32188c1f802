"""Docstrings of the package as reStructuredText: what they write as plain text must not be read as markup.

The docstrings use single backticks for names, as Markdown does, and formulas such as |r| or x* in plain text.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

MARKUP = re.compile(r"(``.+?``|:[\w:]+:`[^`]+`|`[^`]+`|(?<!\w)\*\*?[^*\s][^*]*\*\*?(?!\w))")
BARS = re.compile(r"\|")
STAR = re.compile(r"(?<=[\w)])\*(?![\w*])")  # x*, but neither *emphasis* nor *args


def escape(line: str) -> str:
    """Escape bars and stars outside of code and emphasis, in a line that draws no table."""
    if line.lstrip().startswith("|"):
        return line
    parts = MARKUP.split(line)
    parts[::2] = [STAR.sub(r"\\*", BARS.sub(r"\\|", text)) for text in parts[::2]]
    return "".join(parts)


def tables(lines: list[str]) -> list[str]:
    """Return the lines with each Markdown table as a list table."""
    out: list[str] = []
    rows: list[list[str]] = []
    for line in [*lines, ""]:
        if line.lstrip().startswith("|") and line.rstrip().endswith("|"):
            indent = line[: len(line) - len(line.lstrip())]
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if rows:
            out += [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            for row in (row for row in rows if not all(re.fullmatch(":?-+:?", cell) for cell in row)):
                out += [f"{indent}   {'* -' if k == 0 else '  -'} {cell}" for k, cell in enumerate(row)]
            out.append("")
            rows = []
        out.append(line)
    return out[:-1]


def named_returns(lines: list[str]) -> list[str]:
    """Return the lines with a Returns section that names several values as a list of them."""
    if "Returns:" not in (stripped := [line.strip() for line in lines]):
        return lines
    start = stripped.index("Returns:") + 1
    end = next((k for k in range(start, len(lines)) if not stripped[k]), len(lines))
    margin = len(lines[start]) - len(lines[start].lstrip())
    named = [bool(re.match(rf" {{{margin}}}\w+: ", line)) for line in lines[start:end]]
    if sum(named) < 2:
        return lines
    body = [
        f"{' ' * margin}{'* ' if is_name else '  '}{line[margin:]}"
        for is_name, line in zip(named, lines[start:end], strict=True)
    ]
    return [*lines[:start], f"{' ' * margin}By name:", "", *body, *lines[end:]]


def code(lines: list[str]) -> list[str]:
    """Return the lines with what is indented before the first section, such as "Args:", as literal blocks."""
    out: list[str] = []
    inside = section = False
    for line in lines:
        section = section or bool(re.match(r"[A-Z][a-z]+:$", line))
        indented = line.startswith("    ") and not section
        if indented and not inside and len(out) > 1 and not out[-1] and not out[-2].endswith("::"):
            out += ["::", ""]
        inside = indented or (inside and not line)
        out.append(line)
    return out


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape a docstring, before napoleon reads it."""
    if lines and lines[0].startswith("Alias for field number"):  # what Python writes where there is no text
        lines.clear()
    if what in ("attribute", "property", "data"):  # napoleon would take "Strength: a share" for a type and its text
        lines[:0] = ["..", ""]  # an empty comment
    escaped, literal = [], False
    for line in code(lines):
        if literal and line.strip() and not line.startswith(" "):
            literal = False
        escaped.append(line if literal else escape(line))
        literal = literal or line.rstrip().endswith("::")
    lines[:] = tables(named_returns(escaped))


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen before napoleon does."""
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True}
