"""Does it help here? Short trainings of fresh classifiers, the same but for their augmentation."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learned_aug.runtime.data import Data
from learned_aug.runtime.events import Event, OnEvent, ProgressBars
from learned_aug.runtime.rng import forked
from learned_aug.training.arms import ARMS, Arm
from learned_aug.training.retrain import RetrainConfig, evaluate, retrain

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` measured.

    Attributes:
        errors: by arm, share of the images that are wrong, one for each seed.
        losses: by arm, mean cross-entropy, nats, likewise.
    """

    errors: dict[str, list[float]]
    losses: dict[str, list[float]]

    @property
    def best(self) -> str:
        """The arm of the lowest mean loss."""
        return min(self.losses, key=lambda arm: statistics.mean(self.losses[arm]))

    def __str__(self) -> str:
        """A table: means and standard deviations; the differences are to the first arm, paired by seed."""
        first = next(iter(self.errors))
        width = max(map(len, self.errors))
        lines = [f"{'':{width}}  error %        loss   error minus {first!r}, points"]
        for arm, errors in self.errors.items():
            line = f"{arm:{width}}  {_percent(errors)}  {statistics.mean(self.losses[arm]):6.4f}"
            if arm != first:
                pairs = zip(errors, self.errors[first], strict=True)
                line += "   " + _percent([one - other for one, other in pairs], sign="+")
            lines.append(line)
        return "\n".join([*lines, f"{len(errors)} training(s) of each; +- is the standard deviation"])


def compare(
    make_model: Callable[[], nn.Module],
    train: Data,
    val: Data,
    arms: Sequence[str] | Mapping[str, Arm],
    config: RetrainConfig | None = None,
    *,
    baseline: Callable[[Tensor], Tensor] | None = None,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    on_event: OnEvent | None = None,
) -> Comparison:
    """Train fresh classifiers with each augmentation, and evaluate them on images held out.

    All arms of a seed share the first weights, if `make_model` draws them from torch's global generator, the order of
    the images, if `train` is a Dataset, and the schedule. Few seeds prove little: a sign test needs six that all agree.
    Shorter trainings may do for a choice: on MNIST, 300 of 1,000 steps put the fitted augmenter before its control and
    before crops in 8 of 8 seeds, the control before crops, a smaller difference, in 5; with 100 steps that was 5, 6 and
    5 (benchmarks/accuracy/proxies.py).

    Args:
        make_model: gives a fresh classifier, on the device to use.
        train: (image, label) pairs, as :func:`learned_aug.fit` takes them.
        val: likewise, not in `train`; images that influence has not read make the choice honest.
        arms: names of ready-made arms, "baseline", "TrivialAugmentWide", "prior" and "steered"; or, by name, functions
            from the fresh classifier to what :func:`retrain` takes as `augment`, such as
            ``lambda model: SteeredDraws(model, augmenter=result.augmenter, tilt=0)``.
        config: of the trainings.
        baseline: on single images (C, H, W), in all arms.
        seeds: one training of each arm for each.
        progress: show a bar for each training.
        on_event: gets the events of :func:`retrain`, the arm in their stage: "retrain: fitted".

    Raises:
        ValueError: if there is no arm or no seed, or a training diverges.
    """
    if not arms or not seeds:
        raise ValueError(f"arms and seeds must hold at least one each, got {len(arms)} and {len(seeds)}; add some")
    if not isinstance(arms, Mapping):
        if unknown := [name for name in arms if name not in ARMS]:
            raise ValueError(f"arms must be of {', '.join(ARMS)}, got {', '.join(unknown)}; give others as a mapping")
        arms = {name: ARMS[name] for name in arms}
    errors: dict[str, list[float]] = {arm: [] for arm in arms}
    losses: dict[str, list[float]] = {arm: [] for arm in arms}
    with ProgressBars() as bars:
        listeners = ([bars] if progress else []) + ([on_event] if on_event is not None else [])
        for seed in seeds:
            for arm, augment in arms.items():

                def tell(event: Event, stage: str = f"retrain: {arm}") -> None:
                    for listener in listeners:
                        listener(dataclasses.replace(event, stage=stage))

                with forked() as reseed, torch.random.fork_rng(_accelerators()):
                    reseed(seed, "compare")
                    torch.manual_seed(seed)  # of the accelerator as well, where noise and dropout are drawn
                    model = make_model()
                    retrain(model, train, config, augment=augment(model), baseline=baseline, seed=seed, on_event=tell)
                    error, loss = evaluate(model, val)
                if not math.isfinite(loss):
                    raise ValueError(
                        f"the training of {arm!r} must end in a finite loss, got {loss} for seed {seed}; lower "
                        "RetrainConfig.lr"
                    )
                errors[arm].append(error)
                losses[arm].append(loss)
    return Comparison(errors, losses)


def _accelerators() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def _percent(shares: list[float], sign: str = "") -> str:
    """Mean and spread of shares, in percent."""
    spread = f" +- {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.mean(shares):{sign}6.2f}{spread}"
