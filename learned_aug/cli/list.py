"""List the pretrained weights of this release: what from_pretrained takes by name."""

from __future__ import annotations

import argparse

from learned_aug.weights.registry import list_pretrained

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: the command has none."""


def run(args: argparse.Namespace) -> str:
    """Return one line for each set of weights."""
    return "\n".join(map(str, list_pretrained())) or "No pretrained weights come with this release."
