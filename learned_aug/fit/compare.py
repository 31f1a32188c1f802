"""Does it help here? Short trainings of fresh classifiers, the same but for their augmentation."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from learned_aug.fit.choose import DrawChoice
from learned_aug.fit.config import RetrainConfig
from learned_aug.fit.data import Data
from learned_aug.fit.events import Event, OnEvent, ProgressBars
from learned_aug.fit.retrain import evaluate, retrain
from learned_aug.fit.rng import forked, generator

__all__ = ["Comparison", "compare"]

Arm = Callable[[nn.Module], Callable[[Tensor], Tensor] | DrawChoice | None]


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
        """The arm of the lowest mean loss, which is steadier than the error."""
        return min(self.losses, key=lambda arm: statistics.mean(self.losses[arm]))

    def __str__(self) -> str:
        """A table; the differences are to the first arm, paired by seed."""
        first = next(iter(self.errors))
        width = max(map(len, self.errors))
        lines = [f"{'':{width}}  error %        loss   error minus {first!r}, points"]
        for arm, errors in self.errors.items():
            line = f"{arm:{width}}  {_percent(errors)}  {statistics.mean(self.losses[arm]):6.4f}"
            if arm != first:
                pairs = zip(errors, self.errors[first], strict=True)
                line += "   " + _percent([one - other for one, other in pairs], sign="+")
            lines.append(line)
        return "\n".join([*lines, f"lowest loss: {self.best}; {len(errors)} training(s) of each"])


def compare(
    make_model: Callable[[], nn.Module],
    train: Data,
    val: Data,
    arms: Mapping[str, Arm],
    config: RetrainConfig | None = None,
    *,
    baseline: Callable[[Tensor], Tensor] | None = None,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    on_event: OnEvent | None = None,
) -> Comparison:
    """Train fresh classifiers with each augmentation, and evaluate them on images held out.

    All arms of a seed share the first weights, if `make_model` draws them from torch's global generator, the order of
    the images and the schedule. To choose between augmentations a third of the usual steps was enough on MNIST: with
    300 of 1,000 the fitted augmenter came before its control in 8 of 8 seeds. A tenth was not, nor was going on from
    the trained classifier, which favours what it was trained with (benchmarks/accuracy/proxies.py).

    Args:
        make_model: gives a fresh classifier, on the device to use.
        train: (image, label) pairs, as :func:`learned_aug.fit` takes them.
        val: likewise, not in `train`; images that influence has not read make the choice honest.
        arms: by name, from the fresh classifier to what replaces a share of each batch, as :func:`retrain` takes it:
            ``lambda model: None`` for the baseline alone, ``lambda model: result.augmenter``,
            ``lambda model: SteeredDraws(result.untrained, model, train, val)``.
        config: of the trainings.
        baseline: on single images (C, H, W), in all arms.
        seeds: one training of each arm for each.
        progress: show a bar for each training.
        on_event: gets the events of :func:`retrain`, the arm in their stage: "retrain: fitted".

    Raises:
        ValueError: if there is no arm or no seed.
    """
    if not arms or not seeds:
        raise ValueError(f"arms and seeds must hold at least one each, got {len(arms)} and {len(seeds)}; add some")
    errors: dict[str, list[float]] = {arm: [] for arm in arms}
    losses: dict[str, list[float]] = {arm: [] for arm in arms}
    with ProgressBars() as bars:
        for seed in seeds:
            for arm, augment in arms.items():

                def tell(event: Event, stage: str = f"retrain: {arm}") -> None:
                    named = dataclasses.replace(event, stage=stage)
                    for listener in ([bars] if progress else []) + ([on_event] if on_event is not None else []):
                        listener(named)

                with forked() as reseed:
                    reseed(seed, "compare")
                    model = make_model()
                    order = generator(seed, "compare", "order")
                    retrain(
                        model, train, config, augment=augment(model), baseline=baseline, generator=order, on_event=tell
                    )
                    error, loss = evaluate(model, val)
                errors[arm].append(error)
                losses[arm].append(loss)
    return Comparison(errors, losses)


def _percent(shares: list[float], sign: str = "") -> str:
    """Mean and spread of shares, in percent."""
    spread = f" +- {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.mean(shares):{sign}6.2f}{spread}"
