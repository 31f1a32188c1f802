"""A caller's autocast: what is read or trained inside of it sees the weights as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["uncached_autocast"]


@contextmanager
def uncached_autocast() -> Iterator[None]:
    """Let a caller's autocast cast weights anew at each pass of the body.

    Autocast keeps its copies of weights until its outermost context ends. Training steps inside of one would go on with
    the first weights, and a pass without gradients would leave copies through which none flow.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
