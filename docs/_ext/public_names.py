"""A directive that describes the public names of a module, each once: at the highest module that offers it."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

TOP = "learned_aug"


class PublicNames(Directive):
    """`.. public-names:: MODULE`, in reStructuredText, documents what MODULE.__all__ lists.

    `automodule` does not do: a name that several modules offer would be described several times, and the package
    learned_aug.fit has the name of the function.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the module's own text, links to what is described above, and the descriptions of the rest."""
        (path,) = self.arguments
        module = importlib.import_module(path)
        top = set(importlib.import_module(TOP).__all__) if path != TOP else set()
        names = [name for name in module.__all__ if not name.startswith("__")]
        own = [name for name in names if name not in top]
        lines = [*inspect.cleandoc(module.__doc__ or "").splitlines(), ""]
        options = self.state.document.settings.env.app
        options.emit("autodoc-process-docstring", "module", path, module, None, lines)
        if shared := [name for name in names if name in top]:
            links = ", ".join(f":py:obj:`{name} <{TOP}.{name}>`" for name in shared)
            lines += [f"Also offered here, and described above: {links}.", ""]
        for name in own:
            lines += _directive(path, name, getattr(module, name))
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=f"{path}.__all__"), self.content_offset, node)
        return node.children


def _directive(path: str, name: str, value: Any) -> list[str]:
    """Return the autodoc directive of a public name."""
    if inspect.isclass(value):
        bases = ["   :show-inheritance:"] if issubclass(value, Exception) else []
        return [f".. autoclass:: {path}.{name}", "   :members:", *bases, ""]
    if callable(value) and not hasattr(value, "__args__"):
        return [f".. autofunction:: {path}.{name}", ""]
    return [f".. py:data:: {path}.{name}", "", f"   {re.sub(r'[a-z_.]+[.]', '', repr(value))}", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True}
