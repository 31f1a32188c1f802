"""A directive that shows what a command of the package prints for --help, asked when the pages are built."""

from __future__ import annotations

import contextlib
import io
import os

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


def help_of(arguments: list[str]) -> str:
    """Return the help text of `learned-aug ARGUMENTS`, 100 columns wide and without colors."""
    from learned_aug.cli.main import main

    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return out.getvalue()


class CliHelp(Directive):
    """`{cli-help} fit` shows the help of `learned-aug fit`; without an argument that of `learned-aug`."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return a literal block."""
        arguments = self.arguments[0].split() if self.arguments else []
        text = help_of(arguments)
        if not text:
            raise self.error(f"learned-aug {' '.join(arguments)} --help printed nothing; is it a command?")
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("cli-help", CliHelp)
    return {"parallel_read_safe": True}
