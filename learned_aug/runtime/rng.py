"""Repeatable randomness: each draw of a fit is a function of the seed and of where it is made, and of nothing before.

So a fit repeats from its seed alone, goes on from any step without a saved generator, and draws the same for an image
whichever process holds it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

__all__ = ["Reseed", "derived", "forked", "generator"]


def derived(*where: int | str) -> int:
    """Derive a seed of 63 bits for a place, such as (seed, "maximize", step)."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in where)  # numpy writes its integers otherwise
    digest = hashlib.sha256(repr(plain).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*where: int | str) -> torch.Generator:
    """Return a new generator, on the CPU, seeded for a place."""
    return torch.Generator().manual_seed(derived(*where))


class Reseed(Protocol):
    """Seeds for a place; what :func:`forked` gives."""

    def __call__(self, *where: int | str) -> None:
        """Seed all generators."""


@contextmanager
def forked(own: Iterable[torch.Generator] = ()) -> Iterator[Reseed]:
    """Let the body seed the global generators that data sets and transforms draw from; on exit they are as before.

    Those are torch's on the CPU, Python's, NumPy's legacy one, and `own`, generators that the user gave to a loader.
    Transforms are to run on the CPU: generators of accelerators are left alone.
    """
    generators = [torch.default_generator, *own]
    states = [g.get_state() for g in generators]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002

    def reseed(*where: int | str) -> None:
        seed = derived(*where)
        for g in generators:
            g.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002

    try:
        yield reseed
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
