"""Render the committed figures of the benchmarks as tables in the pages of the documentation.

    python benchmarks/report.py            # rewrite every generated table in docs/ and README.md
    python benchmarks/report.py --check    # change nothing; exit with 1 and name the pages that are stale

A page marks the place of a table by two comments, `<!-- begin: NAME -->` and `<!-- end: NAME -->`. The text between
them belongs to the function that is registered here under NAME. Each table ends in a line that says what made the
figures: command, device, versions, commits. Needs scipy; torch is not needed.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# Importing them registers their tables.
from report_tables import accuracy, fit, fits, influence, panel, paper, schedules, throughput  # noqa: F401
from report_tables.common import TABLES

__all__ = ["BEGIN", "TABLES", "main", "once"]

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
README = HERE.parent / "README.md"
MARKED = re.compile(r"<!-- begin: (?P<name>\S+) -->\n(?P<body>.*?)<!-- end: (?P=name) -->", re.DOTALL)
BEGIN = re.compile(r"<!-- begin: (\S+) -->")


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
