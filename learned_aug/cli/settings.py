"""Options of the command line that are made of settings: their defaults, and the texts after their fields as help."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Any

__all__ = ["add_setting", "field_texts", "seed_number", "strength"]


def strength(text: str) -> float | tuple[float, float]:
    """Read the strength of a family: X, the same for all images, or LO,HI, a range to draw each image's from.

    Raises:
        ArgumentTypeError: if it is neither; the values themselves are checked by the settings.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) <= 2:
            return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a number X, or a range LO,HI such as 0,0.125, got {text!r}")


def seed_number(text: str) -> int:
    """Read a seed that all generators take.

    Raises:
        ArgumentTypeError: if it is none.
    """
    try:
        if 0 <= (number := int(text)) < 2**63:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**63 - 1, got {text!r}; give one such as 0")


def field_texts(settings: type) -> dict[str, str]:
    """Return the string literal after each field of a dataclass of settings, on one line."""
    (source,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    body = source.body if isinstance(source, ast.ClassDef) else []
    texts = {}
    for field, text in itertools.pairwise(body):
        literal = text.value if isinstance(text, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(literal, ast.Constant) and isinstance(literal.value, str):
            texts[ast.unparse(field.target)] = " ".join(literal.value.split())
    return texts


def add_setting(group: Any, settings: type, field: str, option: str | None = None, **overrides: Any) -> None:
    """Add the option of one field of a dataclass of settings.

    Args:
        group: a parser, or a group of its options.
        settings: dataclass that has the field.
        field: name of the field.
        option: name of the option on the command line; by default that of the field.
        overrides: arguments of ``add_argument`` that are not to be taken from the field.
    """
    (found,) = (f for f in dataclasses.fields(settings) if f.name == field)
    text = field_texts(settings)[field].replace("%", "%%") + " (%(default)s)"
    default: Any = found.default
    kind = type(default)
    options = {"type": kind, "default": default, "metavar": "N" if kind is int else "X", "help": text}
    if kind is tuple:  # argparse reads a default that is text as it reads an option
        options |= {"type": strength, "default": ",".join(f"{v:g}" for v in default), "metavar": "X|LO,HI"}
    group.add_argument(option or f"--{field.replace('_', '-')}", **{**options, **overrides})
