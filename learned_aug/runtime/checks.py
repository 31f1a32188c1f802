"""Checks that settings share."""

from __future__ import annotations

import math

__all__ = ["check_at_least", "check_at_most_one"]


def check_at_least(config: object, **bounds: float) -> None:
    """Refuse fields of a settings object that are not finite or below their bound, and counts that are no integers.

    Args:
        config: a dataclass of settings.
        bounds: field name to its lowest value.

    Raises:
        ValueError: naming the first such field.
    """
    for name, low in bounds.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= low):
            raise ValueError(f"{type(config).__name__}.{name} must be a finite number >= {low}, got {value}")
        if name in ("steps", "batch_size") and not isinstance(value, int):
            raise ValueError(f"{type(config).__name__}.{name} must be an integer, got {value!r}")


def check_at_most_one(config: object, *names: str) -> None:
    """Refuse fields of a settings object that are above 1.

    Raises:
        ValueError: naming the first such field.
    """
    for name in names:
        if (value := getattr(config, name)) > 1:
            raise ValueError(f"{type(config).__name__}.{name} must be in [0, 1], got {value}")
