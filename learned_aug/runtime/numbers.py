"""Checks of numbers that users give as settings, of any library; without torch, so that a configuration needs none."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

__all__ = [
    "as_number",
    "check_at_least",
    "check_at_most_one",
    "check_count",
    "check_number",
    "check_seed",
    "numbers",
]


def check_at_least(config: object, **bounds: float) -> None:
    """Refuse fields of a settings object that are not finite or below their bound, and counts that are no integers.

    Args:
        config: a dataclass of settings.
        bounds: field name to its lowest value.

    Raises:
        ValueError: naming the first such field.
    """
    for name, low in bounds.items():
        check = check_count if name in ("steps", "batch_size") else check_number
        check(f"{type(config).__name__}.{name}", getattr(config, name), low)


def check_at_most_one(config: object, *names: str) -> None:
    """Refuse fields of a settings object that are above 1.

    Raises:
        ValueError: naming the first such field.
    """
    for name in names:
        if (value := getattr(config, name)) > 1:
            raise ValueError(f"{type(config).__name__}.{name} must be in [0, 1], got {value}")


def check_count(name: str, value: Any, low: float) -> int:
    """Refuse what is no integer of `low` or more, and return it as Python's, of whichever library it is.

    Raises:
        ValueError: with what it is.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}; leave it out, or give one such as {low}")
    return number


def check_number(name: str, value: Any, low: float = -math.inf, remedy: str = "leave it out") -> float:
    """Refuse what is no finite number of `low` or more, and return it as Python's, of whichever library it is.

    Raises:
        ValueError: with what it is, and `remedy`.
    """
    number = as_number(value)
    if not (math.isfinite(number) and number >= low):
        bound = "" if low == -math.inf else f" >= {low:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}; {remedy}")
    return number


def as_number(value: Any) -> float:
    """Return a number of any library as a float; NaN, which lies in no range, for what is none or too large."""
    try:
        return math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def check_seed(seed: Any, name: str = "seed") -> int:
    """Refuse what is no integer, which would be cut to one in silence, and return it.

    Raises:
        TypeError: if it is something else.
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {seed!r}; give one such as 0") from None


def numbers(values: Any, default: float = math.nan) -> tuple[float, ...]:
    """Return a mean or standard deviation, one number or one for each channel, as floats; NaN for what is none.

    Args:
        values: a number, or several, of any library; None is `default`.
        default: what None stands for.
    """
    if values is None:
        return (default,)
    if hasattr(values, "flatten"):  # an array or tensor of any shape
        values = values.flatten().tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        return (as_number(values),)
    return tuple(number for value in values for number in numbers(value))
