"""A caller's autocast: what is read or trained inside of it sees the weights as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["fresh_casts"]


@contextmanager
def fresh_casts() -> Iterator[None]:
    """Let the body, and what comes after it, cast weights anew within a caller's autocast.

    Autocast keeps its copies of weights until its outermost context ends. What was read before would be of other
    weights, and a pass without gradients leaves copies through which none flow.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
