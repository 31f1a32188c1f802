"""Comparison: what paired trainings measured, with intervals, exact p-values, and whether they were long enough."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

import torch

__all__ = ["Comparison", "Difference", "Training", "difference"]

EXACT = 40  # pairs up to which all flips of signs are counted
FITTED = 0.99  # share of augmented training images that is right where more steps would bring little
HALF = 0.5  # share below which an arm is far from fitted, whichever leads
LONGEST = 40  # characters of a name in the table
NOTICED = 0.005  # a change of the error difference below it says nothing of a trend


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of one arm.

    Attributes:
        arm: its name.
        seed: its seed.
        error: share of the test images that are wrong.
        loss: mean cross-entropy there, nats.
        half_error: that share after half of the steps.
        accuracy: share of the augmented training images that were right over the last tenth of the steps; NaN where all
            labels are soft.
        seconds: wall-clock time, all that the arm needs included.
    """

    arm: str
    seed: int
    error: float
    loss: float
    half_error: float = math.nan
    accuracy: float = math.nan
    seconds: float = math.nan


class Difference(NamedTuple):
    """A mean of paired differences, 95 % Student interval, and exact two-sided p of the sign-flip test."""

    mean: float
    low: float
    """NaN for a single pair, as are `high` and `p`."""
    high: float
    p: float
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` measured.

    Attributes:
        trainings: finished ones, seed by seed.
    """

    trainings: tuple[Training, ...]

    @property
    def arms(self) -> list[str]:
        """Names, the one that others are compared to first."""
        return list(dict.fromkeys(t.arm for t in self.trainings))

    @property
    def seeds(self) -> list[int]:
        """Seeds that every arm has finished."""
        found = dict.fromkeys(t.seed for t in self.trainings)
        return [s for s in found if sum(t.seed == s for t in self.trainings) == len(self.arms)]

    def values(self, what: str) -> dict[str, list[float]]:
        """By arm, a field of its trainings: one for each of `seeds`."""
        given = {(t.arm, t.seed): float(getattr(t, what)) for t in self.trainings}
        return {arm: [given[arm, seed] for seed in self.seeds] for arm in self.arms}

    @property
    def errors(self) -> dict[str, list[float]]:
        """By arm, share of the test images that are wrong, one for each seed."""
        return self.values("error")

    @property
    def losses(self) -> dict[str, list[float]]:
        """By arm, mean cross-entropy, nats, likewise."""
        return self.values("loss")

    @property
    def seconds(self) -> dict[str, list[float]]:
        """By arm, seconds, likewise."""
        return self.values("seconds")

    @property
    def best(self) -> str:
        """The arm of the lowest mean error; of equal ones, that of the lower loss.

        Raises:
            ValueError: if no seed is finished by all arms.
        """
        if not self.seeds:
            raise ValueError("a comparison must have a seed that all arms have finished, got none yet; go on with it")
        errors, losses = self.errors, self.losses
        return min(self.arms, key=lambda arm: (statistics.mean(errors[arm]), statistics.mean(losses[arm])))

    def difference(self, arm: str, to: str | None = None) -> Difference:
        """Return the error of `arm` minus that of `to`, by default the first arm, paired by seed; shares."""
        errors = self.errors
        other = errors[self.arms[0] if to is None else to]
        return difference([a - b for a, b in zip(errors[arm], other, strict=True)])

    @property
    def too_short(self) -> list[str]:
        """Arms behind the best one that a longer schedule might put first.

        Those that are wrong on more than half of their augmented training images. And, as long as the arm that has
        fitted most of its images leads, or does not overfit yet (is wrong on more of these than of the test images):
        those whose distance to the best one fell from half of the schedule to its end so fast that the same fall twice
        more would close it, or that do not overfit yet. But for arms that have fitted their images.
        """
        best, found = self.best, []
        errors, half = self.errors, self.values("half_error")
        fitted = {arm: statistics.mean(values) for arm, values in self.values("accuracy").items()}
        weakest = max(fitted, key=lambda arm: -1.0 if math.isnan(fitted[arm]) else fitted[arm])
        early = weakest == best or not fitted[weakest] >= 1 - statistics.mean(errors[weakest])
        for arm, right in fitted.items():
            error = statistics.mean(errors[arm])
            behind = error - statistics.mean(errors[best])
            falls = statistics.mean(half[arm]) - statistics.mean(half[best]) - behind
            closes = falls > max(behind / 2, NOTICED)
            far = right < HALF or (early and (closes or right < 1 - error))
            if behind > NOTICED and not right >= FITTED and far:
                found.append(arm)
        return found

    @property
    def long_enough(self) -> bool:
        """Whether the schedule was long enough to rank all arms, as far as its second half shows."""
        return not self.too_short

    def __str__(self) -> str:
        """A table: means and standard deviations; the differences are to the first arm, paired by seed."""
        if not self.seeds:
            return "no seed is finished by all arms yet"
        first, errors, losses, seconds = self.arms[0], self.errors, self.losses, self.seconds
        accuracy = self.values("accuracy")
        names = {arm: " ".join(arm.split())[:LONGEST] for arm in errors}
        width = max(map(len, names.values()))
        head = f"error minus {names[first]!r}, points (95 %)"
        lines = [f"{'':{width}}  error %          loss    s each    fitted  {head:36}  p"]
        for arm in self.arms:
            line = f"{names[arm]:{width}}  {_percent(errors[arm])}  {statistics.mean(losses[arm]):6.4f}"
            fitted = statistics.mean(accuracy[arm])
            line += f"  {statistics.mean(seconds[arm]):7.1f}  " + (
                "       -" if math.isnan(fitted) else f"{fitted:8.1%}"
            )
            if arm != first:
                d = self.difference(arm)
                line += f"  {100 * d.mean:+6.2f}"
                if d.pairs > 1:
                    line += f" [{100 * d.low:+6.2f}, {100 * d.high:+6.2f}]".ljust(30) + f"  {d.p:.3g}"
            lines.append(line.rstrip())
        return "\n".join([*lines, "", *self._notes()])

    def _notes(self) -> list[str]:
        count = len(self.seeds)
        if count == 1:
            notes = ["One seed: no interval, differences may be chance; add seeds."]
        else:
            least = 2.0 ** (1 - count)
            notes = [
                f"{count} seeds; +- is the standard deviation; p, over all flips of signs, is at least {least:.2g}."
            ]
        if short := self.too_short:
            notes.append(
                f"The schedule is too short to rank strong augmentation: {', '.join(short)} may overtake {self.best} "
                "with more steps."
            )
        return notes


def difference(values: list[float]) -> Difference:
    """Return mean, 95 % interval and exact two-sided p-value of paired differences.

    The interval is Student's; p is that of the sign-flip test on the mean, over all flips up to 40 pairs, over 100,000
    random ones beyond.
    """
    d = torch.tensor(values, dtype=torch.float64, device="cpu")
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, n)
    half = _t975(n - 1) * float(d.std()) / math.sqrt(n)
    goal = abs(float(d.sum())) - 1e-12 * float(d.abs().sum())
    if n <= EXACT:  # sums over all flips of one half, to which bisection adds those of the other
        one, two = (
            functools.reduce(lambda sums, x: torch.cat([sums + x, sums - x]), part, d.new_zeros(1))
            for part in d.tensor_split(2)
        )
        above = len(two) - torch.searchsorted(two.sort().values, goal - one)
        p = min(1.0, 2 * float(above.sum()) / 2.0**n)
    else:
        source = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (100_000, n), generator=source, device="cpu").double() * 2 - 1
        signs[0] = 1  # the observed one, so that p is never 0
        p = float(((signs * d).sum(1).abs() >= goal).double().mean())
    return Difference(mean, mean - half, mean + half, p, n)


def _t975(freedom: int) -> float:
    """Return the 0.975 quantile of Student's t, by bisection of its distribution function."""
    low, high = 1.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        x = torch.linspace(0, middle, 20_001, dtype=torch.float64, device="cpu")
        scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        density = torch.exp(scale - (freedom + 1) / 2 * torch.log1p(x.square() / freedom))
        low, high = (middle, high) if float(torch.trapezoid(density, x)) < 0.475 else (low, middle)
    return (low + high) / 2


def _percent(shares: list[float]) -> str:
    """Mean and spread of shares, in percent."""
    spread = f"+- {100 * statistics.stdev(shares):5.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.mean(shares):6.2f} {spread:8}"
