"""Paired comparison over seeds, by the statistics of learned_aug.compare."""

from learned_aug.training.comparison import _t975, difference

__all__ = ["_t975", "compare"]


def compare(differences):
    """Mean, 95 % interval and exact two-sided p-value of paired differences, see :func:`difference`."""
    found = difference(list(differences))
    return found.mean, found.low, found.high, found.p
