"""Paired comparison over seeds."""

import itertools
import math

import torch


def compare(differences):
    """Mean, 95 % interval and exact two-sided p-value of paired differences.

    The interval is Student's; p is that of the sign-flip test on the mean, over all flips up to 16 pairs and over
    100,000 random ones beyond.
    """
    d = torch.tensor(differences, dtype=torch.float64)
    n = len(d)
    mean = float(d.mean())
    half = _t975(n - 1) * float(d.std()) / math.sqrt(n)
    if n <= 16:
        signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)
    else:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (100_000, n), generator=generator).double() * 2 - 1
        signs[0] = 1  # the observed one, so that p is never 0
    flipped = (signs * d).mean(1).abs()
    p = float((flipped >= abs(mean) - 1e-12).double().mean())
    return mean, mean - half, mean + half, p


def _t975(df):
    """The .975 quantile of Student's t, by bisection of its distribution function."""
    low, high = 1.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        x = torch.linspace(0, middle, 20_001, dtype=torch.float64)
        log = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        density = torch.exp(log - (df + 1) / 2 * torch.log1p(x.square() / df))
        low, high = (middle, high) if float(torch.trapezoid(density, x)) < 0.475 else (low, middle)
    return middle
