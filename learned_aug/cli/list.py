"""List the pretrained weights of this release: what from_pretrained takes by name."""

from __future__ import annotations

import argparse

from learned_aug.weights.registry import list_pretrained

__all__ = ["add_arguments", "run"]

LEGEND = """
Name: data and classifier of the fit, mean test error of classifiers trained with it and of its controls (spreads and
numbers of runs are in the model cards), size, license. Next, look at what one does:
  learned-aug preview {name} photo.jpg --out grid.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: the command has none."""


def run(args: argparse.Namespace) -> str:
    """Return one line for each set of weights, what the lines say, and what to do next."""
    found = list_pretrained()
    if not found:
        return "No pretrained weights come with this release."
    return "\n".join([*map(str, found), LEGEND.format(name=found[0].name)])
